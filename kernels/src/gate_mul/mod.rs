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

/// A product of [`gate_muls`].
#[derive(Debug, Clone, Copy)]
pub struct GateProduct<'a> {
    /// `[capacity, dim]`, as the next two.
    pub out: &'a Tensor,
    /// What is activated.
    pub gate: &'a Tensor,
    /// What is gated.
    pub x: &'a Tensor,
    /// Leading rows that are computed.
    pub rows: usize,
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
    let product = GateProduct { out, gate, x, rows };
    let len = product.check(&[])?;
    match Gpu::of(out) {
        Some(gpu) => gpu::gate_mul(gpu, &[(product, len)], activation),
        None => product.on_cpu(len, activation),
    }
}

/// Two products with one activation, in one launch on a GPU, as of the experts that a row chose and of
/// the one that all rows pass. Each has the bits that [`gate_mul`] gives.
///
/// # Errors
/// As for [`gate_mul`]; outputs that share storage with each other or with what the other reads.
pub fn gate_muls(products: [GateProduct<'_>; 2], activation: Activation) -> Result<()> {
    let [first, second] = products;
    let lens = [first.check(&[second])?, second.check(&[first])?];
    match Gpu::of(first.out) {
        Some(gpu) => gpu::gate_mul(gpu, &[(first, lens[0]), (second, lens[1])], activation),
        None => {
            first.on_cpu(lens[0], activation)?;
            second.on_cpu(lens[1], activation)
        }
    }
}

impl GateProduct<'_> {
    /// Elements that are computed.
    fn check(&self, others: &[Self]) -> Result<usize> {
        const OP: &str = "gate_mul";
        let Self { out, gate, x, rows } = *self;
        let (_, dim) = rows_of(OP, "out", out, rows)?;
        check_dim(OP, "gate", rows_of(OP, "gate", gate, rows)?.1, dim)?;
        check_dim(OP, "x", rows_of(OP, "x", x, rows)?.1, dim)?;
        distinct(OP, out, &[("gate", gate), ("x", x)])?;
        for other in others {
            distinct(OP, out, &[("out", other.out), ("gate", other.gate), ("x", other.x)])?;
        }
        Ok(rows * dim)
    }

    fn on_cpu(&self, len: usize, activation: Activation) -> Result<()> {
        const OP: &str = "gate_mul";
        let (gate, x) = (View::new(OP, "gate", self.gate)?, View::new(OP, "x", self.x)?);
        let (gate, x) = (&gate.slice()?[..len], &x.slice()?[..len]);
        write(OP, self.out, |out| {
            cpu::gate_mul(&mut out[..len], gate, x, activation);
            Ok(())
        })
    }
}
