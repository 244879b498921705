//! Words that look random and are the same on every device: weights of a shape, for measurements that
//! are not to wait for the weights of a model. Not for secrets, and not for sampling.

mod cpu;
mod gpu;
pub mod reference;

use candle_core::Tensor;

use crate::access::{check, contiguous, write};
use crate::error::Result;
use crate::gpu::Gpu;

/// Writes word `i` of the sequence of `seed` to element `i` of `out`, of any shape.
///
/// # Errors
/// A tensor that is not u32 and contiguous, one of more than 2^32 elements, a device without an
/// implementation.
pub fn random_words(out: &Tensor, seed: u64) -> Result<()> {
    const OP: &str = "random_words";
    contiguous(OP, "out", out)?;
    let len = out.elem_count();
    check(OP, "out", u32::try_from(len).is_ok(), || {
        (format!("at most {} elements", u32::MAX), len.to_string())
    })?;
    if let Some(gpu) = Gpu::of(out) {
        return gpu::random_words(gpu, out, seed);
    }
    write(OP, out, |out| {
        cpu::random_words(out, seed);
        Ok(())
    })
}
