//! Experts on GPUs: the lists of a routing, products with the experts of pairs, their combination.

mod experts;
mod lists;

use candle_core::Tensor;

pub(super) use self::experts::{Pairs, expert_matmuls};
pub(super) use self::lists::GpuLists;
use crate::error::Result;
use crate::gpu::{Call, Gpu, Grid, in_fours, threads_for};

/// Threads of a block of `combine_experts`: small blocks, so that one row has several.
const COMBINE_THREADS: u32 = 128;

/// Adds the weighted results of the experts of `rows` rows of `choices` choices each.
pub(super) fn combine(
    gpu: Gpu,
    out: &Tensor,
    y: &Tensor,
    lists: &GpuLists,
    (rows, choices): (usize, usize),
) -> Result<()> {
    let dim = y.dims().last().copied().unwrap_or(0);
    let (kernel, width) = match in_fours(dim, &[out, y]) {
        true => ("combine_experts_vectors", 4),
        false => ("combine_experts", 1),
    };
    let items = dim / width;
    let threads = threads_for(items, COMBINE_THREADS);
    let mut call = Call::new("combine_experts", gpu);
    call.write::<f32>("out", out)?.read::<f32>("y", y)?;
    call.read::<u32>("pairs", &lists.pairs)?.read::<f32>("weights", &lists.weights)?;
    call.size("choices", choices)?.size("dim", items)?;
    let grid = Grid::of([rows, items.div_ceil(threads as usize), 1], threads);
    // SAFETY: the parameters of the kernel; the pairs of all choices of `rows` rows lie in `y`.
    unsafe { call.launch(kernel, grid) }
}
