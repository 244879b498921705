//! `rms_norm` on GPUs: a block for each run.

use candle_core::Tensor;

use crate::error::Result;
use crate::gpu::{Call, Gpu, Grid, threads_for};

/// Threads of a block: two blocks fill a multiprocessor.
const THREADS_MAX: u32 = 1024;

/// Normalizes `runs` runs of as many elements as `weight` has.
pub(super) fn rms_norm(
    gpu: Gpu,
    out: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    eps: f32,
    runs: usize,
) -> Result<()> {
    let dim = weight.elem_count();
    let mut call = Call::new("rms_norm", gpu);
    call.write::<f32>("out", out)?.read::<f32>("x", x)?.read::<f32>("weight", weight)?;
    call.real(eps).size("weight", dim)?;
    // SAFETY: the parameters of the kernel; `runs * dim` elements of `out` and `x` exist.
    unsafe { call.launch("rms_norm", Grid::row(runs, threads_for(dim, THREADS_MAX))) }
}
