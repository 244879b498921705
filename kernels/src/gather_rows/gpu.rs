//! `gather_rows` on GPUs.

use candle_core::Tensor;

use crate::error::Result;
use crate::gpu::{Call, Gpu, Grid, in_fours};

/// Threads of a block.
const THREADS_MAX: u32 = 256;

/// Picks rows of `dim` elements.
pub(super) fn gather_rows(
    gpu: Gpu,
    out: &Tensor,
    x: &Tensor,
    indices: &[u32],
    dim: usize,
) -> Result<()> {
    let mut call = Call::new("gather_rows", gpu);
    call.write::<f32>("out", out)?.read::<f32>("x", x)?.list(indices)?;
    call.size("out", dim)?.flag(in_fours(dim, &[out, x]));
    // SAFETY: the parameters of the kernel; `out` has a row for each index, `x` one at each.
    unsafe { call.launch("gather_rows", Grid::rows_of_fours(indices.len(), dim, THREADS_MAX)) }
}
