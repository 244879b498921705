//! `add`, `add_bias` and `add_gated` on GPUs.

use candle_core::Tensor;

use crate::error::Result;
use crate::gpu::{Call, Gpu, Grid, in_fours};

/// Threads of a block.
const THREADS: u32 = 256;

/// Adds the leading `len` elements of `x`.
pub(super) fn add(gpu: Gpu, out: &Tensor, x: &Tensor, len: usize) -> Result<()> {
    let mut call = Call::new("add", gpu);
    call.write::<f32>("out", out)?.read::<f32>("x", x)?;
    call.size("out", len)?.flag(in_fours(len, &[out, x]));
    // SAFETY: the parameters of the kernel; both have `len` elements.
    unsafe { call.launch("add", Grid::fours(len, THREADS)) }
}

/// Adds `bias` to the leading `rows`.
pub(super) fn add_bias(gpu: Gpu, out: &Tensor, bias: &Tensor, rows: usize) -> Result<()> {
    let dim = bias.elem_count();
    let mut call = Call::new("add_bias", gpu);
    call.write::<f32>("out", out)?.read::<f32>("bias", bias)?;
    call.size("bias", dim)?.flag(in_fours(dim, &[out, bias]));
    // SAFETY: the parameters of the kernel; `out` has `rows` rows as long as `bias`.
    unsafe { call.launch("add_bias", Grid::rows_of_fours(rows, dim, THREADS)) }
}

/// Adds the leading `rows` of `x`, `dim` elements each, weighted by their gates.
pub(super) fn add_gated(
    gpu: Gpu,
    out: &Tensor,
    x: &Tensor,
    gate: &Tensor,
    [rows, dim]: [usize; 2],
) -> Result<()> {
    let mut call = Call::new("add_gated", gpu);
    call.write::<f32>("out", out)?.read::<f32>("x", x)?.read::<f32>("gate", gate)?;
    call.size("out", dim)?.flag(in_fours(dim, &[out, x]));
    // SAFETY: the parameters of the kernel; `out` and `x` have `rows` rows of `dim`, `gate` has
    // `rows` elements.
    unsafe { call.launch("add_gated", Grid::rows_of_fours(rows, dim, THREADS)) }
}
