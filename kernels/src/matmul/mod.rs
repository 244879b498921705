//! The linear layer: rows of activations times a packed weight, `out = x * weight^T`.
//!
//! Every output element has one accumulator and one order over the columns, whatever the number of
//! rows, their place in the call and the number of threads: a row computed alone has the same bits
//! as in a batch.

mod activations;
mod codes;
mod cpu;
mod format;
mod layout;
mod matrix;
mod pack;
mod quantize;
pub mod reference;
mod tile;

use candle_core::Tensor;

pub use self::activations::{ActivationBuffer, ActivationType, Activations};
pub(crate) use self::activations::{GROUP, Quantized};
pub(crate) use self::cpu::{Task, exact_panels};
pub use self::format::{
    AffineFormat, AffineRows, Code, CodedFormat, CodedRows, DenseRows, DenseType, MatrixFormat,
    ScaleType,
};
pub use self::matrix::Matrix;
pub(crate) use self::matrix::{DensePanels, GroupPanels, PANEL, Packed};
pub(crate) use self::tile::Source;

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
/// `weight.cols()` columns. A weight whose codes are integers (affine, E2M1, IQ4_NL) reads the
/// quantized rows where `x` has them; every other combination computes in f32.
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
