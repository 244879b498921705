//! The gate of a gated MLP: `silu(gate) * up`, Shazeer, "GLU Variants Improve Transformer", 2020.

mod cpu;
pub mod reference;

use candle_core::Tensor;

use crate::access::{View, check_dim, distinct, rows_of, write};
use crate::error::Result;

/// `out[r, i] = silu(gate[r, i]) * up[r, i]` with `silu(x) = x / (1 + exp(-x))`, for the leading
/// `rows`; all three are `[capacity, dim]`.
///
/// # Errors
/// Shapes that do not fit, tensors that are not f32 and contiguous, a device without an
/// implementation, an input in the same storage as `out`.
pub fn silu_mul(out: &Tensor, gate: &Tensor, up: &Tensor, rows: usize) -> Result<()> {
    const OP: &str = "silu_mul";
    let (_, dim) = rows_of(OP, "out", out, rows)?;
    check_dim(OP, "gate", rows_of(OP, "gate", gate, rows)?.1, dim)?;
    check_dim(OP, "up", rows_of(OP, "up", up, rows)?.1, dim)?;
    distinct(OP, out, &[("gate", gate), ("up", up)])?;
    let (gate, up) = (View::new(OP, "gate", gate)?, View::new(OP, "up", up)?);
    let (gate, up) = (&gate.slice()?[..rows * dim], &up.slice()?[..rows * dim]);
    write(OP, out, |out| {
        cpu::silu_mul(&mut out[..rows * dim], gate, up);
        Ok(())
    })
}
