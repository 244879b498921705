//! One weight of a model, whatever it is packed in: its logical shape, its rows, its values.
//!
//! Which tensors make a weight is decided in `weights.rs`, how rows are decoded in `rows.rs`.

use std::path::Path;

use super::fp8::Fp8Weight;
use super::mlx::MlxWeight;
use super::rows::MatrixRows;
use super::selection::RowSelection;
use super::tensor::TensorView;
use crate::error::Error;

/// A weight `[.., rows, cols]`, or a vector, as a model sees it.
#[derive(Debug, Clone)]
pub struct Weight<'a> {
    tensor: TensorView<'a>,
    shape: Vec<usize>,
    packing: Packing<'a>,
}

/// The tensors that a weight consists of.
#[derive(Debug, Clone)]
pub(super) enum Packing<'a> {
    /// One tensor of plain numbers or of blocks.
    Tensor(TensorView<'a>),
    /// Codes and scales of MLX.
    Mlx(Box<MlxWeight<'a>>),
    /// FP8 numbers and scales of blocks.
    Fp8(Fp8Weight<'a>),
}

impl<'a> Weight<'a> {
    /// The weight whose main tensor is `tensor`.
    pub(super) fn new(tensor: TensorView<'a>, packing: Packing<'a>) -> Weight<'a> {
        let shape = match &packing {
            Packing::Tensor(tensor) => tensor.shape.to_vec(),
            Packing::Mlx(weight) => weight.shape(),
            Packing::Fp8(weight) => weight.shape(),
        };
        Weight { tensor, shape, packing }
    }

    /// A tensor by itself.
    pub(super) fn of_tensor(tensor: TensorView<'a>) -> Weight<'a> {
        Weight::new(tensor, Packing::Tensor(tensor))
    }

    /// Canonical name.
    pub fn name(&self) -> &'a str {
        self.tensor.name
    }

    /// Name in the file; that of its codes, where it consists of several tensors.
    pub fn name_in_file(&self) -> &'a str {
        self.tensor.name_in_file
    }

    /// The file that holds it, or its codes.
    pub fn file(&self) -> &'a Path {
        self.tensor.file
    }

    /// Shape as the model sees it, rows first, with columns unpacked.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Canonical names of all tensors that it consists of, its own name first.
    pub fn parts(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.tensors().into_iter().map(|tensor| tensor.name)
    }

    /// Bytes of all those tensors in the file.
    pub fn bytes_in_file(&self) -> u64 {
        self.tensors().iter().map(|tensor| tensor.bytes.len() as u64).sum()
    }

    /// What it is packed in, for people: `BF16`, `Q4_K`, `affine 4-bit g64`, `mxfp4`, `fp8
    /// 128x128`.
    pub fn format_name(&self) -> String {
        match &self.packing {
            Packing::Tensor(tensor) => tensor.dtype.name().to_string(),
            Packing::Mlx(weight) => weight.settings().to_string(),
            Packing::Fp8(weight) => {
                let [rows, cols] = weight.block();
                format!("fp8 {rows}x{cols}")
            }
        }
    }

    /// Checks the shape.
    ///
    /// # Errors
    /// [`Error::Shape`] with both shapes; [`Error::Quantization`] if it would have the right one
    /// with other bits and another group size than `config.json` tells.
    pub fn expect_shape(&self, expected: &[usize]) -> Result<(), Error> {
        if self.shape == expected {
            return Ok(());
        }
        let (file, tensor) = (self.file().display().to_string(), self.name().to_string());
        if let Packing::Mlx(weight) = &self.packing
            && let ([rest @ .., cols], [same @ .., _]) = (expected, &self.shape[..])
            && rest == same
            && let Some(fitting) = weight.settings_for(*cols)
        {
            let expected = format!("{} as config.json says", weight.settings());
            let found = format!("codes and scales that make {cols} columns as {fitting}");
            return Err(Error::Quantization { file, tensor, expected, found });
        }
        let (expected, found) = (expected.to_vec(), self.shape.clone());
        Err(Error::Shape { file, tensor, expected, found })
    }

    /// Checks that the values can be decoded.
    ///
    /// # Errors
    /// [`Error::UnsupportedDtype`] naming tensor and type.
    pub fn expect_readable(&self) -> Result<(), Error> {
        match &self.packing {
            Packing::Tensor(tensor) => tensor.expect_readable(),
            // Their types were checked when they were put together.
            Packing::Mlx(_) | Packing::Fp8(_) => Ok(()),
        }
    }

    /// The selected rows as the source of a matrix, in the order of the selection.
    ///
    /// # Errors
    /// [`Error::UnsupportedDtype`] if its values cannot be read; [`Error::Format`] if a row is
    /// selected that is not there.
    pub fn matrix_rows(&self, selection: RowSelection) -> Result<MatrixRows<'a>, Error> {
        let available = match &self.packing {
            Packing::Tensor(tensor) => tensor.rows(),
            Packing::Mlx(weight) => weight.rows(),
            Packing::Fp8(weight) => weight.rows(),
        };
        let rows = selection.resolve(available).map_err(|range| {
            let place = format!("tensor {}", self.name());
            let expected = format!("rows {} to {}", range.start, range.end);
            Error::format(self.file().display(), place, expected, format!("{available} rows"))
        })?;
        match &self.packing {
            Packing::Tensor(tensor) => MatrixRows::of_tensor(*tensor, rows),
            Packing::Mlx(weight) => Ok(MatrixRows::of_mlx(weight.clone(), rows)),
            Packing::Fp8(weight) => Ok(MatrixRows::of_fp8(*weight, rows)),
        }
    }

    /// All values in f32, row after row: the definition of what the weight holds.
    ///
    /// # Errors
    /// [`Error::UnsupportedDtype`].
    pub fn to_f32(&self) -> Result<Vec<f32>, Error> {
        let by_row = |read: &dyn Fn(usize, &mut [f32])| {
            let mut values = vec![0.0; self.elements()];
            let cols = self.shape.last().copied().unwrap_or(1).max(1);
            values.chunks_exact_mut(cols).enumerate().for_each(|(row, out)| read(row, out));
            values
        };
        match &self.packing {
            Packing::Tensor(tensor) => tensor.to_f32(),
            Packing::Mlx(weight) => Ok(by_row(&|row, out| weight.read_values(row, out))),
            Packing::Fp8(weight) => Ok(by_row(&|row, out| weight.read_values(row, out))),
        }
    }

    fn tensors(&self) -> Vec<TensorView<'a>> {
        match &self.packing {
            Packing::Tensor(tensor) => vec![*tensor],
            Packing::Mlx(weight) => weight.parts(),
            Packing::Fp8(weight) => weight.parts(),
        }
    }
}
