//! `rope` on GPUs: a kernel for each layout.

use candle_core::Tensor;

use super::RopeLayout;
use crate::error::Result;
use crate::gpu::{Call, Gpu, Grid, in_fours, threads_for};

/// Threads of a block: a row of 32 heads of 128 fills four.
const THREADS_MAX: u32 = 128;

/// Turns the leading `rows`, `[rows, heads * head_dim]`.
pub(super) fn rope(
    gpu: Gpu,
    x: &Tensor,
    [cos, sin]: [&Tensor; 2],
    head_dim: usize,
    layout: RopeLayout,
    rows: usize,
) -> Result<()> {
    let kernel = match layout {
        RopeLayout::Half => "rope_half",
        RopeLayout::Interleaved => "rope_interleaved",
    };
    let (width, half) = (x.dims()[1], cos.dims()[1]);
    let wide = in_fours(head_dim, &[x]) && in_fours(half, &[cos, sin]);
    let mut call = Call::new("rope", gpu);
    call.write::<f32>("x", x)?.read::<f32>("cos", cos)?.read::<f32>("sin", sin)?;
    call.size("x", width)?.size("head_dim", head_dim)?.size("cos", half)?.flag(wide);
    let items = width / head_dim * half.div_ceil(4);
    let threads = threads_for(items, THREADS_MAX);
    let grid = Grid::of([rows, items.div_ceil(threads as usize), 1], threads);
    // SAFETY: the parameters of the kernels; there are `rows` rows of each tensor, heads fill those
    // of `x`, and pairs fit into a head.
    unsafe { call.launch(kernel, grid) }
}
