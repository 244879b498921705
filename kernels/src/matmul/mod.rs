//! The linear layer: rows of activations times a packed weight, `out = x * weight^T`.
//!
//! On the CPU every output element has one accumulator and one order over the columns, whatever the
//! number of rows, their place in the call and the number of threads: a row computed alone has the
//! same bits as in a batch. On a GPU so it is among few rows, and among many (`gpu.rs`).

mod activations;
mod codes;
mod cpu;
mod device;
mod device_format;
mod device_pack;
mod format;
pub(crate) mod gpu;
mod layout;
mod matrix;
mod pack;
mod quantize;
mod random;
pub mod reference;
mod tile;

use candle_core::Tensor;

pub use self::activations::{ActivationBuffer, ActivationType, Activations};
pub(crate) use self::activations::{GROUP, Quantized, Rounded};
pub(crate) use self::cpu::{Task, exact_panels};
pub(crate) use self::device::DeviceWeight;
pub(crate) use self::device_format::{Kind, format_word};
pub use self::format::{
    AffineFormat, AffineRows, Code, CodedFormat, CodedRows, DenseRows, DenseType, MatrixFormat,
    ScaleType,
};
pub(crate) use self::gpu::{columns_bytes, sharing_warps, wgmma_bytes, wgmma_store};
pub use self::matrix::Matrix;
pub(crate) use self::matrix::{DensePanels, GroupPanels, PANEL, Packed};
pub use self::random::RandomRows;
pub(crate) use self::tile::Source;

use crate::access::{View, check, check_dim, distinct, rows_of, write};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::pool::Parts;

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
/// Shapes that do not fit, an output that is not f32 and contiguous, a weight packed for another
/// device, a device without an implementation, activations in the same storage as `out`.
pub fn matmul(out: &Tensor, x: &Activations<'_>, weight: &Matrix, mode: Mode) -> Result<()> {
    matmuls(&[Product { out, weight }], x, mode)
}

/// Most products of one [`matmuls`].
pub const PRODUCTS_MAX: usize = 4;

/// A weight, and where its product goes.
#[derive(Debug, Clone, Copy)]
pub struct Product<'a> {
    /// `[capacity, weight.rows()]`.
    pub out: &'a Tensor,
    /// `[outputs, inputs]`.
    pub weight: &'a Matrix,
}

/// Several products of the same activations, each with the bits that [`matmul`] gives: the cores are
/// called together once for all, as for queries, keys and values.
///
/// # Errors
/// As for [`matmul`]; more than [`PRODUCTS_MAX`] products, outputs that share storage.
pub fn matmuls(products: &[Product<'_>], x: &Activations<'_>, mode: Mode) -> Result<()> {
    const OP: &str = "matmul";
    check(OP, "products", products.len() <= PRODUCTS_MAX, || {
        (format!("at most {PRODUCTS_MAX}"), products.len().to_string())
    })?;
    let (_, cols) = rows_of(OP, "x", x.tensor, x.rows)?;
    let gpu = Gpu::of(x.tensor);
    for (index, Product { out, weight }) in products.iter().enumerate() {
        check_dim(OP, "out", rows_of(OP, "out", out, x.rows)?.1, weight.rows())?;
        check_dim(OP, "x", cols, weight.cols())?;
        weight.check_place(OP, "weight", gpu)?;
        distinct(OP, out, &[("x", x.tensor)])?;
        products[..index]
            .iter()
            .try_for_each(|before| distinct(OP, out, &[("out", before.out)]))?;
    }
    if let Some(gpu) = gpu {
        return gpu::matmuls(gpu, products, x, mode);
    }
    let view = View::new(OP, "x", x.tensor)?;
    let dense = &view.slice()?[..x.rows * cols];
    let call = cpu::Call { x: dense, quantized: x.quantized, rows: x.rows, mode };
    with_outputs(products, &call, None)
}

/// Locks the output of the first product, then of the others, and computes all.
fn with_outputs(
    rest: &[Product<'_>],
    call: &cpu::Call<'_>,
    locked: Option<&cpu::Output<'_>>,
) -> Result<()> {
    let Some((Product { out, weight }, rest)) = rest.split_first() else {
        cpu::matmuls(call, locked);
        return Ok(());
    };
    write("matmul", out, |out| {
        let out = Parts::new(&mut out[..call.rows * weight.rows()]);
        with_outputs(rest, call, Some(&cpu::Output { out, weight, before: locked }))
    })
}
