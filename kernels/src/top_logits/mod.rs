//! The largest logits of each row, and the sums that make probabilities of them: what a sampler
//! reads of a row of hundreds of thousands, so that only this much leaves the device.

mod cpu;
mod gpu;
pub mod reference;

use candle_core::{DType, Device, Tensor};

use crate::access::{View, check, check_dim, distinct, rows_of, write};
use crate::error::Result;
use crate::gpu::Gpu;

/// Most logits that are kept of a row.
pub const TOP_MAX: usize = 64;
/// Logits that a block of a GPU looks at.
const SLICE: usize = 4096;
/// Most logits of a row: the kept ones of all its slices are a slice again.
pub const VOCAB_MAX: usize = SLICE / TOP_MAX * SLICE;

/// What is looked for in a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Wanted {
    /// How many of the largest, 1 to as many as there is room for.
    pub count: u32,
    /// Of the second sum; 0 leaves it as if it were 1.
    pub temperature: f32,
}

/// The largest logits of the rows of a step, allocated once.
#[derive(Debug)]
pub struct TopLogits {
    /// `[rows_max, top]`: the largest first, of equal ones the lower id first; a NaN before all
    /// numbers. A zero may have lost its sign. What is past a row's count is unspecified.
    pub values: Tensor,
    /// `[rows_max, top]`, u32: where they are in their row.
    pub ids: Tensor,
    /// `[rows_max, 2]`: sums over the whole row of `exp(logit - largest)`, and of
    /// `exp((logit - largest) / temperature)`. NaN if a logit of the row is not finite.
    pub sums: Tensor,
    /// `[rows_max, slices, 2 * top + 3]`: what blocks of a GPU find in parts of a row.
    parts: Tensor,
    vocab: usize,
}

impl TopLogits {
    /// Room for the `top` largest of `vocab` logits of at most `rows_max` rows.
    ///
    /// # Errors
    /// A `top` outside of 1 to [`TOP_MAX`] or above `vocab`, a `vocab` above [`VOCAB_MAX`], a device
    /// that cannot allocate.
    pub fn new(rows_max: usize, vocab: usize, top: usize, device: &Device) -> Result<Self> {
        const OP: &str = "top_logits";
        check(OP, "top", (1..=TOP_MAX.min(vocab)).contains(&top), || {
            (format!("1 to {}", TOP_MAX.min(vocab)), top.to_string())
        })?;
        check(OP, "vocab", vocab <= VOCAB_MAX, || {
            (format!("at most {VOCAB_MAX}"), vocab.to_string())
        })?;
        let slices = slices(vocab, device);
        Ok(Self {
            values: Tensor::zeros((rows_max, top), DType::F32, device)?,
            ids: Tensor::zeros((rows_max, top), DType::U32, device)?,
            sums: Tensor::zeros((rows_max, 2), DType::F32, device)?,
            parts: Tensor::zeros((rows_max, slices, 2 * top + 3), DType::F32, device)?,
            vocab,
        })
    }

    /// Bytes that as much room takes on a device.
    pub fn bytes_for(rows_max: usize, vocab: usize, top: usize, device: &Device) -> u64 {
        let parts = slices(vocab, device) * (2 * top + 3);
        rows_max as u64 * (2 * top + 2 + parts) as u64 * 4
    }

    /// Logits of a row.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// Finds them in a row of `logits`, `[capacity, vocab]`, for each of `wanted`.
    ///
    /// # Errors
    /// More rows, or more of a row, than there is room for, shapes that do not fit, tensors that are not
    /// f32 and contiguous, a device without an implementation.
    pub fn find(&mut self, logits: &Tensor, wanted: &[Wanted]) -> Result<()> {
        const OP: &str = "top_logits";
        let rows = wanted.len();
        check_dim(OP, "logits", rows_of(OP, "logits", logits, rows)?.1, self.vocab)?;
        let (room, top) = rows_of(OP, "values", &self.values, 0)?;
        check(OP, "wanted", rows <= room, || (format!("at most {room}"), rows.to_string()))?;
        let outside = wanted.iter().find(|row| !(1..=top).contains(&(row.count as usize)));
        if let Some(row) = outside {
            check(OP, "count", false, || (format!("1 to {top}"), row.count.to_string()))?;
        }
        for out in [&self.values, &self.ids, &self.sums] {
            distinct(OP, out, &[("logits", logits)])?;
        }
        if let Some(gpu) = Gpu::of(logits) {
            return gpu::find(gpu, self, logits, wanted);
        }
        let logits = View::new(OP, "logits", logits)?;
        let logits = &logits.slice()?[..rows * self.vocab];
        write(OP, &self.values, |values| {
            write(OP, &self.ids, |ids| {
                write(OP, &self.sums, |sums| {
                    let found = Found { values, ids, sums, top };
                    cpu::find(found, logits, self.vocab, wanted);
                    Ok(())
                })
            })
        })
    }
}

/// Slices of a row that blocks look at.
fn slices(vocab: usize, device: &Device) -> usize {
    Gpu::of_device(device).map_or(0, |_| vocab.div_ceil(SLICE))
}

/// The elements of [`TopLogits`].
#[derive(Debug)]
pub struct Found<'a> {
    /// `[rows, top]`.
    pub values: &'a mut [f32],
    /// `[rows, top]`.
    pub ids: &'a mut [u32],
    /// `[rows, 2]`.
    pub sums: &'a mut [f32],
    /// How many are kept of a row.
    pub top: usize,
}
