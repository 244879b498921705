//! Buffers of the head, for the few rows whose logits were asked for, and how these are read: on the
//! CPU all of them, from a GPU the largest of each row, and a whole row where those are not enough.

use candle_core::Tensor;
use sconce_kernels::top_logits::TOP_MAX;
use sconce_kernels::{ActivationBuffer, TopLogits, gpu, read_rows, read_words};

use super::workspace::{Allocator, Part};
use crate::error::Error;
use crate::model::{DeviceLogits, Logits, TopRow};

/// Buffers of the head.
#[derive(Debug)]
pub(crate) struct HeadWorkspace {
    /// Those rows of the residual stream, `[rows, hidden_size]`.
    pub(crate) hidden: Tensor,
    /// The same, normalized.
    pub(crate) normed: Tensor,
    /// `[rows, vocab_size]`.
    pub(crate) logits: Tensor,
    /// Quantized rows of `normed`.
    pub(crate) activations: ActivationBuffer,
    /// The largest logits, where they are not on the host.
    top: Option<Top>,
    /// The logits on the host: all of them, or one row.
    host: Vec<f32>,
    vocab_size: usize,
}

/// The largest logits of each row, and their copies on the host.
#[derive(Debug)]
struct Top {
    found: TopLogits,
    /// How many of a row.
    count: usize,
    values: Vec<f32>,
    ids: Vec<u32>,
    sums: Vec<f32>,
    /// One for each row.
    temperatures: Vec<f32>,
}

impl HeadWorkspace {
    /// Allocates, or counts, buffers for up to `rows` rows.
    ///
    /// # Errors
    /// The device cannot allocate.
    pub(crate) fn new(
        rows: usize,
        hidden_size: usize,
        vocab_size: usize,
        allocator: &mut Allocator<'_>,
    ) -> Result<Self, Error> {
        let top = match gpu::is_gpu(allocator.device()) {
            true => Some(Top::new(rows, vocab_size, allocator)?),
            false => None,
        };
        let host = if top.is_some() { vocab_size } else { rows * vocab_size };
        Ok(Self {
            hidden: allocator.tensor(rows, hidden_size)?,
            normed: allocator.tensor(rows, hidden_size)?,
            logits: allocator.tensor(rows, vocab_size)?,
            activations: allocator.activations(Part::Head, rows, hidden_size)?,
            top,
            host: allocator.host(host),
            vocab_size,
        })
    }

    /// Finds the largest logits of the leading `rows` rows, where only they will be read.
    ///
    /// # Errors
    /// An operator refused.
    pub(crate) fn find_top(&mut self, rows: usize, temperatures: &[f32]) -> Result<(), Error> {
        let Some(top) = &mut self.top else { return Ok(()) };
        top.temperatures.clear();
        top.temperatures.extend(temperatures.iter().take(rows));
        top.temperatures.resize(rows, 1.0);
        Ok(top.found.find(&self.logits, &top.temperatures)?)
    }

    /// The leading `rows` rows of logits.
    ///
    /// # Errors
    /// The device cannot be read.
    pub(crate) fn read(&mut self, rows: usize) -> Result<Logits<'_>, Error> {
        let Some(top) = &mut self.top else {
            let host = &mut self.host[..rows * self.vocab_size];
            read_rows(&self.logits, host)?;
            return Ok(Logits::on_host(host, self.vocab_size));
        };
        let top = top.read(rows)?;
        let held = DeviceLogits { logits: &self.logits, row: &mut self.host, top };
        Ok(Logits::on_device(held, self.vocab_size))
    }
}

impl Top {
    fn new(rows: usize, vocab: usize, allocator: &mut Allocator<'_>) -> Result<Self, Error> {
        let count = TOP_MAX.min(vocab);
        allocator.count(TopLogits::bytes_for(rows, vocab, count, allocator.device()));
        // Beside the largest, their tokens and the sums, a temperature for each row.
        allocator.count(rows as u64 * (2 * count as u64 + 3) * 4);
        let rows = if allocator.makes() { rows } else { 0 };
        Ok(Self {
            found: TopLogits::new(rows, vocab, count, allocator.device())?,
            count,
            values: vec![0.0; rows * count],
            ids: vec![0; rows * count],
            sums: vec![0.0; rows * 2],
            temperatures: Vec::with_capacity(rows),
        })
    }

    /// Copies the leading rows to the host.
    fn read(&mut self, rows: usize) -> Result<Vec<TopRow<'_>>, Error> {
        let count = self.count;
        read_rows(&self.found.values, &mut self.values[..rows * count])?;
        read_words(&self.found.ids, &mut self.ids[..rows * count])?;
        read_rows(&self.found.sums, &mut self.sums[..rows * 2])?;
        let row = |row: usize| TopRow {
            values: &self.values[row * count..][..count],
            ids: &self.ids[row * count..][..count],
            sums: [self.sums[row * 2], self.sums[row * 2 + 1]],
        };
        Ok((0..rows).map(row).collect())
    }
}
