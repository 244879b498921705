//! `random_words` on GPUs.

use candle_core::Tensor;

use crate::error::Result;
use crate::gpu::{Call, Gpu, Grid};

/// Threads of a block, one word each.
const THREADS: u32 = 256;

/// Fills `out`, whose elements 32 bits can count.
pub(super) fn random_words(gpu: Gpu, out: &Tensor, seed: u64) -> Result<()> {
    let len = out.elem_count();
    let mut call = Call::new("random_words", gpu);
    call.write::<u32>("out", out)?.word(seed as u32).word((seed >> 32) as u32);
    call.size("out", len)?;
    // SAFETY: the parameters of the kernel; `out` has `len` elements.
    unsafe { call.launch("random_words", Grid::row(len.div_ceil(THREADS as usize), THREADS)) }
}
