//! `gate_mul` on GPUs: a kernel for each activation.

use candle_core::Tensor;

use super::Activation;
use crate::error::Result;
use crate::gpu::{Call, Gpu, Grid, in_fours};

/// Threads of a block.
const THREADS: u32 = 256;

/// Computes the leading `len` elements.
pub(super) fn gate_mul(
    gpu: Gpu,
    out: &Tensor,
    gate: &Tensor,
    x: &Tensor,
    activation: Activation,
    len: usize,
) -> Result<()> {
    let kernel = match activation {
        Activation::Silu => "gate_mul_silu",
        Activation::GeluTanh => "gate_mul_gelu_tanh",
        Activation::Sigmoid => "gate_mul_sigmoid",
    };
    let mut call = Call::new("gate_mul", gpu);
    call.write::<f32>("out", out)?.read::<f32>("gate", gate)?.read::<f32>("x", x)?;
    call.size("out", len)?.flag(in_fours(len, &[out, gate, x]));
    // SAFETY: the parameters of the kernels; all three have `len` elements.
    unsafe { call.launch(kernel, Grid::fours(len, THREADS)) }
}
