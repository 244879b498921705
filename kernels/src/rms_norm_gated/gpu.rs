//! `rms_norm_gated` on GPUs, in the geometry of `rms_norm`.

use candle_core::Tensor;

use crate::error::Result;
use crate::gpu::{Call, Gpu, in_fours};
use crate::rms_norm::gpu::{Team, teams};

/// Normalizes and gates `runs` runs of as many elements as `weight` has.
pub(super) fn rms_norm_gated(
    gpu: Gpu,
    out: &Tensor,
    [x, gate]: [&Tensor; 2],
    weight: &Tensor,
    eps: f32,
    runs: usize,
) -> Result<()> {
    let dim = weight.elem_count();
    let (team, grid) = teams(dim, runs);
    let kernel = match team {
        Team::Warp => "rms_norm_gated_warps",
        Team::Block => "rms_norm_gated",
    };
    let mut call = Call::new("rms_norm_gated", gpu);
    call.write::<f32>("out", out)?.read::<f32>("x", x)?.read::<f32>("gate", gate)?;
    call.read::<f32>("weight", weight)?.real(eps).size("weight", dim)?.size("rows", runs)?;
    call.flag(in_fours(dim, &[out, x, gate, weight]));
    // SAFETY: the parameters of the kernels; `runs * dim` elements of `out`, `x` and `gate` exist.
    unsafe { call.launch(kernel, grid) }
}
