//! `scale` on GPUs.

use candle_core::Tensor;

use crate::error::Result;
use crate::gpu::{Call, Gpu, Grid, in_fours};

/// Threads of a block.
const THREADS: u32 = 256;

/// Scales the leading `len` elements.
pub(super) fn scale(gpu: Gpu, out: &Tensor, factor: f32, len: usize) -> Result<()> {
    let mut call = Call::new("scale", gpu);
    call.write::<f32>("out", out)?.real(factor);
    call.size("out", len)?.flag(in_fours(len, &[out]));
    // SAFETY: the parameters of the kernel; `out` has `len` elements.
    unsafe { call.launch("scale", Grid::fours(len, THREADS)) }
}
