//! `rms_norm` on GPUs: a warp for each short run, a block for each long one. `rms_norm_gated` has
//! the same geometry.

use candle_core::Tensor;

use crate::error::Result;
use crate::gpu::{Call, Gpu, Grid, WARP, in_fours, threads_for};

/// Fours of elements that a thread keeps in registers, as in the sources.
const HELD: u32 = 4;
/// Longest run of a warp: what it keeps.
const WARP_DIM_MAX: usize = (4 * HELD * WARP) as usize;
/// Warps of a block that has a run for each: a step of few rows spreads over some multiprocessors.
const WARPS: u32 = 4;
/// Threads of a block that works on one run; more would leave too few registers.
const THREADS_MAX: u32 = 512;

/// What works on a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Team {
    Warp,
    Block,
}

/// Who works on runs of `dim`, which does not depend on how many there are, and on which grid.
pub(crate) fn teams(dim: usize, runs: usize) -> (Team, Grid) {
    if dim <= WARP_DIM_MAX {
        return (Team::Warp, Grid::row(runs.div_ceil(WARPS as usize), WARPS * WARP));
    }
    // Two fours for each thread: half as many threads that wait for one another.
    (Team::Block, Grid::row(runs, threads_for(dim.div_ceil(8), THREADS_MAX)))
}

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
    let (team, grid) = teams(dim, runs);
    let kernel = match team {
        Team::Warp => "rms_norm_warps",
        Team::Block => "rms_norm",
    };
    let mut call = Call::new("rms_norm", gpu);
    call.write::<f32>("out", out)?.read::<f32>("x", x)?.read::<f32>("weight", weight)?;
    call.real(eps).size("weight", dim)?.size("rows", runs)?;
    call.flag(in_fours(dim, &[out, x, weight]));
    // SAFETY: the parameters of the kernels; `runs * dim` elements of `out` and `x` exist.
    unsafe { call.launch(kernel, grid) }
}
