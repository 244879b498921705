//! Root mean square normalization times a gate, as on the output of a gated delta layer (Yang et
//! al., "Gated Delta Networks", 2024).

pub(crate) mod cpu;
mod gpu;
pub mod reference;

use candle_core::Tensor;

use crate::access::{View, check, check_dim, distinct, rows_of, vector_of, write};
use crate::error::Result;
use crate::gpu::Gpu;

/// `out = x / sqrt(mean(x^2) + eps) * weight * silu(gate)`, over runs of `weight.len()` elements,
/// with `silu(y) = y / (1 + exp(-y))`.
///
/// `out`, `x` and `gate` are `[capacity, n * dim]`, of which the leading `rows` are computed;
/// `weight` is `[dim]`: each of the `n` heads of a row is normalized on its own.
///
/// # Errors
/// Shapes that do not fit, tensors that are not f32 and contiguous, a device without an
/// implementation, an input in the same storage as `out`.
pub fn rms_norm_gated(
    out: &Tensor,
    x: &Tensor,
    gate: &Tensor,
    weight: &Tensor,
    eps: f32,
    rows: usize,
) -> Result<()> {
    const OP: &str = "rms_norm_gated";
    let (_, width) = rows_of(OP, "out", out, rows)?;
    check_dim(OP, "x", rows_of(OP, "x", x, rows)?.1, width)?;
    check_dim(OP, "gate", rows_of(OP, "gate", gate, rows)?.1, width)?;
    let dim = vector_of(OP, "weight", weight)?;
    check(OP, "weight", dim > 0 && width.is_multiple_of(dim), || {
        (format!("[a divisor of {width}]"), format!("[{dim}]"))
    })?;
    distinct(OP, out, &[("x", x), ("gate", gate), ("weight", weight)])?;
    if let Some(gpu) = Gpu::of(out) {
        return gpu::rms_norm_gated(gpu, out, [x, gate], weight, eps, rows * width / dim);
    }
    let (x, gate) = (View::new(OP, "x", x)?, View::new(OP, "gate", gate)?);
    let weight = View::new(OP, "weight", weight)?;
    let live = rows * width;
    let inputs = Inputs {
        x: &x.slice()?[..live],
        gate: &gate.slice()?[..live],
        weight: weight.slice()?,
        eps,
    };
    write(OP, out, |out| {
        cpu::rms_norm_gated(&mut out[..live], inputs);
        Ok(())
    })
}

/// What a gated normalization reads.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// Runs of `weight.len()` elements.
    pub x: &'a [f32],
    /// As long as `x`.
    pub gate: &'a [f32],
    /// `[dim]`.
    pub weight: &'a [f32],
    /// Added to the mean of the squares.
    pub eps: f32,
}
