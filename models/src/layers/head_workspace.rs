//! Buffers of the head, for the few rows whose logits were asked for, and how these are read: on the
//! CPU all of them; from a GPU the token that it has drawn of each row, the largest logits where these
//! are asked for, and a whole row where they are not enough.

use candle_core::Tensor;
use sconce_kernels::draw_tokens::{Draw, Drawn, DrawnTokens};
use sconce_kernels::top_logits::{TOP_MAX, Wanted};
use sconce_kernels::{ActivationBuffer, TopLogits, gpu, read_rows, read_words};

use super::workspace::{Allocator, Part};
use crate::error::Error;
use crate::logits::{DeviceLogits, Logits, TopCopy};
use crate::model::RowUse;

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
    /// What is done where the logits are not on the host.
    device: Option<OnDevice>,
    /// The logits on the host: all of them, or one row.
    host: Vec<f32>,
    vocab_size: usize,
}

/// The largest logits of each row and the token drawn from them. Of what is a list, one for each row of
/// the step.
#[derive(Debug)]
struct OnDevice {
    found: TopLogits,
    tokens: DrawnTokens,
    /// Most of a row.
    held: usize,
    wanted: Vec<Wanted>,
    /// How many of each row; the same as in `wanted`.
    counts: Vec<u32>,
    draws: Vec<Option<Draw>>,
    words: Vec<u32>,
    drawn: Vec<Drawn>,
    copy: TopCopy,
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
        let device = match gpu::is_gpu(allocator.device()) {
            true => Some(OnDevice::new(rows, vocab_size, allocator)?),
            false => None,
        };
        let host = if device.is_some() { vocab_size } else { rows * vocab_size };
        Ok(Self {
            hidden: allocator.tensor(rows, hidden_size)?,
            normed: allocator.tensor(rows, hidden_size)?,
            logits: allocator.tensor(rows, vocab_size)?,
            activations: allocator.activations(Part::Head, rows, hidden_size)?,
            device,
            host: allocator.host(host),
            vocab_size,
        })
    }

    /// Finds the largest logits of the leading `rows` rows and draws tokens from them, where the host
    /// does not see them all.
    ///
    /// # Errors
    /// An operator refused.
    pub(crate) fn draw(&mut self, rows: usize, uses: &[RowUse]) -> Result<(), Error> {
        match &mut self.device {
            Some(device) => device.draw(&self.logits, rows, uses),
            None => Ok(()),
        }
    }

    /// The leading `rows` rows of logits, and the tokens drawn from them.
    ///
    /// # Errors
    /// The device cannot be read.
    pub(crate) fn read(&mut self, rows: usize) -> Result<Logits<'_>, Error> {
        let Some(device) = &mut self.device else {
            let host = &mut self.host[..rows * self.vocab_size];
            read_rows(&self.logits, host)?;
            return Ok(Logits::on_host(host, self.vocab_size));
        };
        device.read(rows)?;
        let OnDevice { found, counts, copy, drawn, .. } = device;
        let counts = &counts[..rows];
        let held = DeviceLogits { logits: &self.logits, row: &mut self.host, found, counts, copy };
        Ok(Logits::on_device(held, self.vocab_size).with_drawn(drawn))
    }
}

impl OnDevice {
    fn new(rows: usize, vocab: usize, allocator: &mut Allocator<'_>) -> Result<Self, Error> {
        let held = TOP_MAX.min(vocab);
        allocator.count(TopLogits::bytes_for(rows, vocab, held, allocator.device()));
        allocator.count(DrawnTokens::bytes_for(rows) + TopCopy::bytes_for(rows, held));
        let lists = size_of::<(Wanted, u32, Option<Draw>, u32, Drawn)>();
        allocator.count(rows as u64 * lists as u64);
        let rows = if allocator.makes() { rows } else { 0 };
        Ok(Self {
            found: TopLogits::new(rows, vocab, held, allocator.device())?,
            tokens: DrawnTokens::new(rows, allocator.device())?,
            held,
            wanted: Vec::with_capacity(rows),
            counts: Vec::with_capacity(rows),
            draws: Vec::with_capacity(rows),
            words: vec![0; rows],
            drawn: Vec::with_capacity(rows),
            copy: TopCopy::new(rows, held),
        })
    }

    fn draw(&mut self, logits: &Tensor, rows: usize, uses: &[RowUse]) -> Result<(), Error> {
        self.wanted.clear();
        self.counts.clear();
        self.draws.clear();
        for row in 0..rows {
            let RowUse { draw, largest } = uses.get(row).copied().unwrap_or_default();
            let looked_at = draw.map_or(1, |draw| draw.looks_at(self.held));
            let count = looked_at.max(largest.min(self.held)) as u32;
            let temperature = draw.map_or(1.0, |draw| draw.temperature);
            self.wanted.push(Wanted { count, temperature });
            self.counts.push(count);
            self.draws.push(draw);
        }
        self.found.find(logits, &self.wanted)?;
        Ok(self.tokens.draw(&self.found, &self.draws, &self.counts)?)
    }

    /// Copies the tokens of the leading rows to the host, and nothing else.
    fn read(&mut self, rows: usize) -> Result<(), Error> {
        let words = &mut self.words[..rows];
        read_words(&self.tokens.words, words)?;
        self.drawn.clear();
        self.drawn.extend(words.iter().map(|word| Drawn::of(*word)));
        self.copy.expire();
        Ok(())
    }
}
