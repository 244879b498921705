//! The gate of a gated MLP or of an attention output: `f(gate) * x`, Shazeer, "GLU Variants Improve
//! Transformer", 2020.

mod cpu;
mod gpu;
pub mod reference;

use candle_core::Tensor;

use crate::access::{View, check_dim, distinct, rows_of, write};
use crate::error::Result;
use crate::gpu::Gpu;

/// The function of a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `g / (1 + exp(-g))`.
    Silu,
    /// `g / 2 * (1 + tanh(sqrt(2 / pi) * (g + 0.044715 g^3)))`, the form of Hendrycks and Gimpel,
    /// 2016, that checkpoints call `gelu_pytorch_tanh`.
    GeluTanh,
    /// `1 / (1 + exp(-g))`.
    Sigmoid,
}

/// `out[r, i] = activation(gate[r, i]) * x[r, i]` for the leading `rows`; all three are
/// `[capacity, dim]`.
///
/// # Errors
/// Shapes that do not fit, tensors that are not f32 and contiguous, a device without an
/// implementation, an input in the same storage as `out`.
pub fn gate_mul(
    out: &Tensor,
    gate: &Tensor,
    x: &Tensor,
    activation: Activation,
    rows: usize,
) -> Result<()> {
    const OP: &str = "gate_mul";
    let (_, dim) = rows_of(OP, "out", out, rows)?;
    check_dim(OP, "gate", rows_of(OP, "gate", gate, rows)?.1, dim)?;
    check_dim(OP, "x", rows_of(OP, "x", x, rows)?.1, dim)?;
    distinct(OP, out, &[("gate", gate), ("x", x)])?;
    if let Some(gpu) = Gpu::of(out) {
        return gpu::gate_mul(gpu, out, gate, x, activation, rows * dim);
    }
    let (gate, x) = (View::new(OP, "gate", gate)?, View::new(OP, "x", x)?);
    let (gate, x) = (&gate.slice()?[..rows * dim], &x.slice()?[..rows * dim]);
    write(OP, out, |out| {
        cpu::gate_mul(&mut out[..rows * dim], gate, x, activation);
        Ok(())
    })
}
