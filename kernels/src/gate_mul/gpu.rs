//! `gate_mul` on GPUs: a kernel for each activation, for one product or two.

use super::{Activation, GateProduct};
use crate::error::Result;
use crate::gpu::{Call, Gpu, Grid, in_fours};

/// Threads of a block, four elements each.
const THREADS: u32 = 256;

/// Computes the leading elements of each product, as many as stand beside it; there is one or two.
pub(super) fn gate_mul(
    gpu: Gpu,
    products: &[(GateProduct<'_>, usize)],
    activation: Activation,
) -> Result<()> {
    let kernel = match activation {
        Activation::Silu => "gate_mul_silu",
        Activation::GeluTanh => "gate_mul_gelu_tanh",
        Activation::Sigmoid => "gate_mul_sigmoid",
    };
    let mut call = Call::new("gate_mul", gpu);
    let mut blocks = 0;
    for (GateProduct { out, gate, x, .. }, len) in products {
        call.write::<f32>("out", out)?.read::<f32>("gate", gate)?.read::<f32>("x", x)?;
        call.size("out", *len)?.flag(in_fours(*len, &[out, gate, x]));
        blocks += len.div_ceil(4 * THREADS as usize);
    }
    if let [(GateProduct { gate, x, .. }, _)] = products {
        // Something to point to; without elements nothing is read or written there.
        call.read::<f32>("x", x)?.read::<f32>("gate", gate)?.read::<f32>("x", x)?;
        call.word(0).flag(false);
    }
    // SAFETY: the parameters of the kernels; all three tensors of a product have its elements.
    unsafe { call.launch(kernel, Grid::row(blocks, THREADS)) }
}
