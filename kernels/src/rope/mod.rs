//! Rotary position embedding, Su et al., "RoFormer", 2021. The angles are the caller's: scalings of
//! the frequencies live with the models.

pub(crate) mod cpu;
mod gpu;
pub mod reference;

use candle_core::Tensor;

use crate::access::{View, check, check_dim, distinct, rows_of, write};
use crate::error::Result;
use crate::gpu::Gpu;

/// Which two elements of a head are turned together; `half = rotary_dim / 2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RopeLayout {
    /// Elements `i` and `i + half`: GPT-NeoX, and every checkpoint in the layout of transformers.
    Half,
    /// Elements `2 i` and `2 i + 1`: GPT-J, and llama checkpoints converted to GGUF.
    Interleaved,
}

/// Turns the first `rotary_dim` elements of every head in place; the rest of a head stays.
///
/// `x` is `[capacity, heads * head_dim]`; `cos` and `sin` are `[capacity, rotary_dim / 2]`, row `r`
/// for the position of row `r`. A pair `(a, b)` becomes `(a cos - b sin, b cos + a sin)`.
///
/// # Errors
/// Shapes that do not fit, tensors that are not f32 and contiguous, a device without an
/// implementation, angles in the same storage as `x`.
pub fn rope(
    x: &Tensor,
    cos: &Tensor,
    sin: &Tensor,
    head_dim: usize,
    layout: RopeLayout,
    rows: usize,
) -> Result<()> {
    const OP: &str = "rope";
    let (_, width) = rows_of(OP, "x", x, rows)?;
    let (_, half) = rows_of(OP, "cos", cos, rows)?;
    check_dim(OP, "sin", rows_of(OP, "sin", sin, rows)?.1, half)?;
    check(OP, "x", head_dim > 0 && width.is_multiple_of(head_dim), || {
        (format!("[rows, a multiple of {head_dim}]"), format!("[rows, {width}]"))
    })?;
    check(OP, "cos", 2 * half <= head_dim, || {
        (format!("[rows, at most {}]", head_dim / 2), format!("[rows, {half}]"))
    })?;
    distinct(OP, x, &[("cos", cos), ("sin", sin)])?;
    if let Some(gpu) = Gpu::of(x) {
        return gpu::rope(gpu, x, [cos, sin], head_dim, layout, rows);
    }
    let (cos, sin) = (View::new(OP, "cos", cos)?, View::new(OP, "sin", sin)?);
    let angles =
        Angles { cos: &cos.slice()?[..rows * half], sin: &sin.slice()?[..rows * half], half };
    write(OP, x, |x| {
        cpu::rope(&mut x[..rows * width], angles, head_dim, layout);
        Ok(())
    })
}

/// Cosines and sines of a step, `[rows, half]` each.
#[derive(Debug, Clone, Copy)]
pub struct Angles<'a> {
    /// Cosines.
    pub cos: &'a [f32],
    /// Sines.
    pub sin: &'a [f32],
    /// Angles of a row: half of the rotary dimension.
    pub half: usize,
}
