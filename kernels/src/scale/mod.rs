//! A factor on rows, as models that scale their embeddings by the root of the width have.

mod cpu;
mod gpu;
pub mod reference;

use candle_core::Tensor;

use crate::access::{rows_of, write};
use crate::error::Result;
use crate::gpu::Gpu;

/// `out[r, i] *= factor` for the leading `rows` of `out`, `[capacity, dim]`.
///
/// # Errors
/// A shape that does not fit, a tensor that is not f32 and contiguous, a device without an
/// implementation.
pub fn scale(out: &Tensor, factor: f32, rows: usize) -> Result<()> {
    const OP: &str = "scale";
    let (_, dim) = rows_of(OP, "out", out, rows)?;
    if let Some(gpu) = Gpu::of(out) {
        return gpu::scale(gpu, out, factor, rows * dim);
    }
    write(OP, out, |out| {
        cpu::scale(&mut out[..rows * dim], factor);
        Ok(())
    })
}
