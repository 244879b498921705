//! `top_logits` on GPUs: blocks look at slices of rows, then one block a row at what they found.

use super::{SLICE, TopLogits, Wanted};
use crate::error::Result;
use crate::gpu::{Call, Gpu, Grid};

/// Threads of a block, each with a sixteenth of a slice in registers: the sources say the same.
const THREADS: u32 = 256;

pub(super) fn find(
    gpu: Gpu,
    found: &TopLogits,
    logits: &candle_core::Tensor,
    wanted: &[Wanted],
) -> Result<()> {
    let (rows, slices) = (wanted.len(), found.vocab.div_ceil(SLICE));
    let top = found.values.dims()[1];
    let wanted: Vec<u32> =
        wanted.iter().flat_map(|row| [row.count, row.temperature.to_bits()]).collect();
    let mut parts = Call::new("top_logits", gpu);
    parts.write::<f32>("parts", &found.parts)?.read::<f32>("logits", logits)?;
    parts.list(&wanted)?.size("vocab", found.vocab)?.size("top", top)?;
    // SAFETY: the parameters of the kernel; `parts` has room for `rows * slices` of them.
    unsafe { parts.launch("top_logits_parts", Grid::of([slices, rows, 1], THREADS))? };
    drop(parts);
    let mut merge = Call::new("top_logits", gpu);
    merge.write::<f32>("values", &found.values)?.write::<u32>("ids", &found.ids)?;
    merge.write::<f32>("sums", &found.sums)?.read::<f32>("parts", &found.parts)?;
    merge.list(&wanted)?.size("slices", slices)?.size("top", top)?;
    // SAFETY: the parameters of the kernel; `slices * top <= SLICE`, as `vocab` is bounded, and no
    // count is above `top`.
    unsafe { merge.launch("top_logits_merge", Grid::row(rows, THREADS)) }
}
