//! The linear layer: rows of activations times a packed weight, `out = x * weight^T`.
//!
//! Every output element has one accumulator and one order over the columns, whatever the number of
//! rows, their place in the call and the number of threads: a row computed alone has the same bits
//! as in a batch.

mod activations;
mod cpu;
mod format;
mod matrix;
mod pack;
mod quantize;
pub mod reference;
mod tile;

use candle_core::Tensor;

pub(crate) use self::activations::Quantized;
pub use self::activations::{ActivationBuffer, ActivationType, Activations};
pub use self::format::{AffineFormat, AffineRows, DenseRows, DenseType, MatrixFormat, ScaleType};
pub use self::matrix::Matrix;
pub(crate) use self::matrix::{AffinePanels, DensePanels, PANEL, Packed};

use crate::access::{View, check_dim, distinct, rows_of, write};
use crate::error::Result;

/// What becomes of what was in the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// It is overwritten.
    Store,
    /// The product is added to it, as to a residual stream.
    Add,
}

/// `out[r, o] (+)= sum over i of x[r, i] * weight[o, i]` for the rows that `x` was prepared with.
///
/// `out` is `[capacity, weight.rows()]`; `x` comes from [`ActivationBuffer::prepare`] and has
/// `weight.cols()` columns. An affine weight reads the quantized rows where `x` has them; every
/// other combination computes in f32.
///
/// # Errors
/// Shapes that do not fit, an output that is not f32 and contiguous, a device without an
/// implementation, activations in the same storage as `out`.
pub fn matmul(out: &Tensor, x: &Activations<'_>, weight: &Matrix, mode: Mode) -> Result<()> {
    const OP: &str = "matmul";
    let rows = x.rows;
    check_dim(OP, "out", rows_of(OP, "out", out, rows)?.1, weight.rows())?;
    let (_, cols) = rows_of(OP, "x", x.tensor, rows)?;
    check_dim(OP, "x", cols, weight.cols())?;
    distinct(OP, out, &[("x", x.tensor)])?;
    let view = View::new(OP, "x", x.tensor)?;
    let dense = &view.slice()?[..rows * cols];
    let call = cpu::Call { x: dense, quantized: x.quantized, rows, weight, mode };
    write(OP, out, |out| {
        cpu::matmul(&mut out[..rows * weight.rows()], &call);
        Ok(())
    })
}
