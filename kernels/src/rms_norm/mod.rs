//! Root mean square layer normalization, Zhang and Sennrich, 2019.

pub(crate) mod cpu;
pub(crate) mod gpu;
pub mod reference;

use candle_core::Tensor;

use crate::access::{View, check, check_dim, distinct, rows_of, vector_of, write};
use crate::error::Result;
use crate::gpu::Gpu;

/// `out = x / sqrt(mean(x^2) + eps) * weight`, over runs of `weight.len()` elements.
///
/// `out` and `x` are `[capacity, n * dim]`, of which the leading `rows` are normalized; `weight` is
/// `[dim]`. With `n` above one each head of a row is normalized on its own, as for the query and key
/// norms of some models. A `1 + weight` form is made at load.
///
/// # Errors
/// Shapes that do not fit, tensors that are not f32 and contiguous, a device without an
/// implementation, an input in the same storage as `out`.
pub fn rms_norm(out: &Tensor, x: &Tensor, weight: &Tensor, eps: f32, rows: usize) -> Result<()> {
    const OP: &str = "rms_norm";
    let (_, width) = rows_of(OP, "out", out, rows)?;
    check_dim(OP, "x", rows_of(OP, "x", x, rows)?.1, width)?;
    let dim = vector_of(OP, "weight", weight)?;
    check(OP, "weight", dim > 0 && width.is_multiple_of(dim), || {
        (format!("[a divisor of {width}]"), format!("[{dim}]"))
    })?;
    distinct(OP, out, &[("x", x), ("weight", weight)])?;
    if let Some(gpu) = Gpu::of(out) {
        return gpu::rms_norm(gpu, out, x, weight, eps, rows * width / dim);
    }
    let (x, weight) = (View::new(OP, "x", x)?, View::new(OP, "weight", weight)?);
    let (x, weight) = (&x.slice()?[..rows * width], weight.slice()?);
    write(OP, out, |out| {
        cpu::rms_norm(&mut out[..rows * width], x, weight, eps);
        Ok(())
    })
}
