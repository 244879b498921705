//! Picking rows, as of the last token of each segment before the head.

mod cpu;
mod gpu;
pub mod reference;

use candle_core::Tensor;

use crate::access::{View, check_dim, distinct, rows_of, write};
use crate::error::{Error, Result};
use crate::gpu::Gpu;

/// `out[i] = x[indices[i]]`; `out` is `[at least indices.len(), dim]`, `x` is `[capacity, dim]`.
///
/// # Errors
/// An index that is not a row of `x`, shapes that do not fit, tensors that are not f32 and
/// contiguous, a device without an implementation, `x` in the same storage as `out`.
pub fn gather_rows(out: &Tensor, x: &Tensor, indices: &[u32]) -> Result<()> {
    const OP: &str = "gather_rows";
    let (_, dim) = rows_of(OP, "out", out, indices.len())?;
    let (capacity, found) = rows_of(OP, "x", x, 0)?;
    check_dim(OP, "x", found, dim)?;
    check_indices(OP, "indices", indices, capacity)?;
    distinct(OP, out, &[("x", x)])?;
    if let Some(gpu) = Gpu::of(out) {
        return gpu::gather_rows(gpu, out, x, indices, dim);
    }
    let x = View::new(OP, "x", x)?;
    let x = x.slice()?;
    write(OP, out, |out| {
        cpu::gather_rows(out, x, indices, dim);
        Ok(())
    })
}

/// Refuses the first index that is not below `limit`.
pub(crate) fn check_indices(
    op: &'static str,
    operand: &'static str,
    indices: &[u32],
    limit: usize,
) -> Result<()> {
    match indices.iter().position(|index| *index as usize >= limit) {
        Some(position) => {
            Err(Error::Index { op, operand, position, found: indices[position] as usize, limit })
        }
        None => Ok(()),
    }
}
