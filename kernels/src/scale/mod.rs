//! A factor on rows, as models that scale their embeddings by the root of the width have.

mod cpu;
pub mod reference;

use candle_core::Tensor;

use crate::access::{rows_of, write};
use crate::error::Result;

/// `out[r, i] *= factor` for the leading `rows` of `out`, `[capacity, dim]`.
///
/// # Errors
/// A shape that does not fit, a tensor that is not f32 and contiguous, a device without an
/// implementation.
pub fn scale(out: &Tensor, factor: f32, rows: usize) -> Result<()> {
    const OP: &str = "scale";
    let (_, dim) = rows_of(OP, "out", out, rows)?;
    write(OP, out, |out| {
        cpu::scale(&mut out[..rows * dim], factor);
        Ok(())
    })
}
