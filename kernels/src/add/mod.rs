//! Adding to rows: the residual connection, plain or weighted by a gate, and a bias broadcast over
//! rows.

mod cpu;
mod gpu;
pub mod reference;

use candle_core::Tensor;

use crate::access::{View, check_dim, distinct, rows_of, vector_of, write};
use crate::error::Result;
use crate::gpu::Gpu;

/// `out[r, i] += x[r, i]` for the leading `rows`; both are `[capacity, dim]`.
///
/// # Errors
/// Shapes that do not fit, tensors that are not f32 and contiguous, a device without an
/// implementation, `x` in the same storage as `out`.
pub fn add(out: &Tensor, x: &Tensor, rows: usize) -> Result<()> {
    const OP: &str = "add";
    let (_, dim) = rows_of(OP, "out", out, rows)?;
    check_dim(OP, "x", rows_of(OP, "x", x, rows)?.1, dim)?;
    distinct(OP, out, &[("x", x)])?;
    if let Some(gpu) = Gpu::of(out) {
        return gpu::add(gpu, out, x, rows * dim);
    }
    let x = View::new(OP, "x", x)?;
    let x = &x.slice()?[..rows * dim];
    write(OP, out, |out| {
        cpu::add(&mut out[..rows * dim], x);
        Ok(())
    })
}

/// `out[r, i] += bias[i]` for the leading `rows` of `out`, `[capacity, dim]`; `bias` is `[dim]`.
///
/// # Errors
/// As for [`add`].
pub fn add_bias(out: &Tensor, bias: &Tensor, rows: usize) -> Result<()> {
    const OP: &str = "add_bias";
    let (_, dim) = rows_of(OP, "out", out, rows)?;
    check_dim(OP, "bias", vector_of(OP, "bias", bias)?, dim)?;
    distinct(OP, out, &[("bias", bias)])?;
    if let Some(gpu) = Gpu::of(out) {
        return gpu::add_bias(gpu, out, bias, rows);
    }
    let bias = View::new(OP, "bias", bias)?;
    let bias = bias.slice()?;
    write(OP, out, |out| {
        cpu::add_bias(&mut out[..rows * dim], bias);
        Ok(())
    })
}

/// `out[r, i] += sigmoid(gate[r]) * x[r, i]` for the leading `rows`: a branch that each row takes as
/// far as its gate says, as a shared expert. `out` and `x` are `[capacity, dim]`, `gate` is
/// `[capacity, 1]`.
///
/// # Errors
/// As for [`add`].
pub fn add_gated(out: &Tensor, x: &Tensor, gate: &Tensor, rows: usize) -> Result<()> {
    const OP: &str = "add_gated";
    let (_, dim) = rows_of(OP, "out", out, rows)?;
    check_dim(OP, "x", rows_of(OP, "x", x, rows)?.1, dim)?;
    check_dim(OP, "gate", rows_of(OP, "gate", gate, rows)?.1, 1)?;
    distinct(OP, out, &[("x", x), ("gate", gate)])?;
    if let Some(gpu) = Gpu::of(out) {
        return gpu::add_gated(gpu, out, x, gate, [rows, dim]);
    }
    let (x, gate) = (View::new(OP, "x", x)?, View::new(OP, "gate", gate)?);
    let (x, gate) = (&x.slice()?[..rows * dim], &gate.slice()?[..rows]);
    write(OP, out, |out| {
        cpu::add_gated(&mut out[..rows * dim], x, gate);
        Ok(())
    })
}
