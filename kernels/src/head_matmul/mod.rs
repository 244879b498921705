//! A linear layer of its own for each head, as the two halves of an absorbed key and value
//! projection: queries into the space of latents, sums of latents into values.

mod cpu;
mod gpu;
pub mod reference;

use candle_core::Tensor;

use crate::access::{View, check, check_dim, distinct, rows_of, write};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::matmul::Matrix;

/// `out[r, h, o] = sum over i of x[r, h, i] * weights[h][o, i]` for the leading `rows`, in f32.
///
/// `out` is `[capacity, heads * outputs]` and `x` is `[capacity, heads * inputs]`; `weights` has one
/// `[outputs, inputs]` for each head, in any format; on a GPU a stack of them
/// ([`Matrix::stack`](crate::Matrix::stack)) is one launch. A row has the bits that `matmul` gives it
/// with exact activations, head by head.
///
/// # Errors
/// Weights that differ in shape, or none; shapes that do not fit, tensors that are not f32 and
/// contiguous, a device without an implementation, `x` in the same storage as `out`.
pub fn head_matmul(out: &Tensor, x: &Tensor, weights: &[Matrix], rows: usize) -> Result<()> {
    const OP: &str = "head_matmul";
    let (outputs, inputs) = weights.first().map_or((0, 0), |first| (first.rows(), first.cols()));
    let odd = weights.iter().find(|weight| (weight.rows(), weight.cols()) != (outputs, inputs));
    check(OP, "weights", !weights.is_empty() && odd.is_none(), || {
        let expected = format!("at least one, all [{outputs}, {inputs}]");
        let found = odd.map(|odd| format!("[{}, {}]", odd.rows(), odd.cols()));
        (expected, found.unwrap_or_else(|| "none".to_owned()))
    })?;
    check_dim(OP, "out", rows_of(OP, "out", out, rows)?.1, weights.len() * outputs)?;
    let (_, width) = rows_of(OP, "x", x, rows)?;
    check_dim(OP, "x", width, weights.len() * inputs)?;
    distinct(OP, out, &[("x", x)])?;
    let gpu = Gpu::of(out);
    weights.iter().try_for_each(|weight| weight.check_place(OP, "weights", gpu))?;
    if let Some(gpu) = gpu {
        return gpu::head_matmul(gpu, out, x, weights, rows);
    }
    let x = View::new(OP, "x", x)?;
    let x = &x.slice()?[..rows * width];
    write(OP, out, |out| {
        cpu::head_matmul(&mut out[..rows * weights.len() * outputs], x, weights, rows);
        Ok(())
    })
}
