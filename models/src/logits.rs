//! What a step leaves for a sampler: tokens that the device has drawn, and logits, which stay on the
//! device that computed them until they are asked for.

use candle_core::Tensor;
use sconce_kernels::draw_tokens::Drawn;
use sconce_kernels::{TopLogits, read_rows, read_words};

use crate::error::Error;

/// Logits of a step: one row for each segment that asked, in segment order.
#[derive(Debug)]
pub struct Logits<'a> {
    rows: usize,
    vocab_size: usize,
    held: Held<'a>,
    /// Of the leading rows.
    drawn: &'a [Drawn],
}

#[derive(Debug)]
enum Held<'a> {
    /// `[rows, vocab_size]`.
    Host(&'a [f32]),
    Device(DeviceLogits<'a>),
}

/// Logits on a device whose memory is not the host's.
#[derive(Debug)]
pub(crate) struct DeviceLogits<'a> {
    /// `[at least rows, vocab_size]`.
    pub(crate) logits: &'a Tensor,
    /// Room for one row, `[vocab_size]`.
    pub(crate) row: &'a mut [f32],
    /// The largest of each row.
    pub(crate) found: &'a TopLogits,
    /// How many of each row; one for each row.
    pub(crate) counts: &'a [u32],
    /// Room for a copy of them.
    pub(crate) copy: &'a mut TopCopy,
}

/// The largest logits of the rows of a step, on the host.
#[derive(Debug)]
pub(crate) struct TopCopy {
    /// Of a row.
    held: usize,
    /// `[rows, held]`.
    values: Vec<f32>,
    /// `[rows, held]`.
    ids: Vec<u32>,
    /// `[rows, 2]`.
    sums: Vec<f32>,
    /// Whether they are those of the last step.
    fresh: bool,
}

/// The largest logits of a row, as [`TopLogits`] has them.
#[derive(Debug, Clone, Copy)]
pub struct TopRow<'a> {
    /// The largest first.
    pub values: &'a [f32],
    /// Their tokens.
    pub ids: &'a [u32],
    /// Sums over the whole row of `exp(logit - largest)`, and of the same by the temperature of the row's
    /// draw; NaN if a logit is not finite.
    pub sums: [f32; 2],
}

impl<'a> Logits<'a> {
    /// Logits on the host, `[rows, vocab_size]`.
    pub fn on_host(data: &'a [f32], vocab_size: usize) -> Self {
        Self { rows: data.len() / vocab_size, vocab_size, held: Held::Host(data), drawn: &[] }
    }

    /// Logits on a device.
    pub(crate) fn on_device(held: DeviceLogits<'a>, vocab_size: usize) -> Self {
        Self { rows: held.counts.len(), vocab_size, held: Held::Device(held), drawn: &[] }
    }

    /// The same with tokens that were drawn from the leading rows, as their [uses](crate::RowUse) say.
    #[must_use]
    pub(crate) fn with_drawn(self, drawn: &'a [Drawn]) -> Self {
        Self { drawn, ..self }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The token that was drawn from row `index`; [`Drawn::Undrawn`] where it is for the host to draw.
    pub fn drawn(&self, index: usize) -> Drawn {
        self.drawn.get(index).copied().unwrap_or(Drawn::Undrawn)
    }

    /// Row `index`, `[vocab_size]`, copied from the device if it is there.
    ///
    /// # Errors
    /// The device cannot be read.
    pub fn row(&mut self, index: usize) -> Result<&[f32], Error> {
        match &mut self.held {
            Held::Host(data) => Ok(&data[index * self.vocab_size..][..self.vocab_size]),
            Held::Device(held) => {
                read_rows(&held.logits.narrow(0, index, 1)?, held.row)?;
                Ok(held.row)
            }
        }
    }

    /// The largest of row `index`, copied from the device with those of the other rows when the first is
    /// asked for; none where the whole row is as near.
    ///
    /// # Errors
    /// The device cannot be read.
    pub fn top(&mut self, index: usize) -> Result<Option<TopRow<'_>>, Error> {
        match &mut self.held {
            Held::Host(_) => Ok(None),
            Held::Device(held) => {
                held.copy.read(held.found, held.counts.len())?;
                Ok(Some(held.copy.row(index, held.counts[index] as usize)))
            }
        }
    }
}

impl TopCopy {
    /// Room for the `held` largest of `rows` rows.
    pub(crate) fn new(rows: usize, held: usize) -> Self {
        Self {
            held,
            values: vec![0.0; rows * held],
            ids: vec![0; rows * held],
            sums: vec![0.0; rows * 2],
            fresh: false,
        }
    }

    /// Bytes that as much room takes.
    pub(crate) fn bytes_for(rows: usize, held: usize) -> u64 {
        rows as u64 * (2 * held as u64 + 2) * 4
    }

    /// Makes the copy one of a step before.
    pub(crate) fn expire(&mut self) {
        self.fresh = false;
    }

    /// Copies the leading rows, if they are not there.
    fn read(&mut self, found: &TopLogits, rows: usize) -> Result<(), Error> {
        if self.fresh {
            return Ok(());
        }
        read_rows(&found.values, &mut self.values[..rows * self.held])?;
        read_words(&found.ids, &mut self.ids[..rows * self.held])?;
        read_rows(&found.sums, &mut self.sums[..rows * 2])?;
        self.fresh = true;
        Ok(())
    }

    fn row(&self, row: usize, count: usize) -> TopRow<'_> {
        TopRow {
            values: &self.values[row * self.held..][..count],
            ids: &self.ids[row * self.held..][..count],
            sums: [self.sums[row * 2], self.sums[row * 2 + 1]],
        }
    }
}
