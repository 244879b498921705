//! Tensors as the sources that matrices are packed from: rows of codes, or of numbers.
//!
//! The order of rows in the file is undone here, by reading row `r` from where it lies.

use sconce_kernels::{AffineFormat, AffineRows, DenseRows, DenseType};

use super::dtype::Dtype;
use super::gguf::blocks;
use super::tensor::TensorView;
use crate::error::Error;

/// The rows of a matrix, in the form its packing has.
#[derive(Debug, Clone, Copy)]
pub enum MatrixRows<'a> {
    /// Groups of codes with scales.
    Affine(AffineTensor<'a>),
    /// Plain numbers.
    Dense(DenseTensor<'a>),
}

/// A block-packed tensor, `[rows, cols]`.
#[derive(Debug, Clone, Copy)]
pub struct AffineTensor<'a> {
    tensor: TensorView<'a>,
    format: AffineFormat,
}

/// A tensor of plain numbers, `[rows, cols]`.
#[derive(Debug, Clone, Copy)]
pub struct DenseTensor<'a> {
    tensor: TensorView<'a>,
    format: DenseType,
}

impl<'a> TensorView<'a> {
    /// The tensor as the source of a matrix.
    ///
    /// # Errors
    /// [`Error::UnsupportedDtype`] if its values cannot be read.
    pub fn matrix_rows(&self) -> Result<MatrixRows<'a>, Error> {
        self.expect_readable()?;
        let tensor = *self;
        if let Some(format) = blocks::affine_format(self.dtype) {
            return Ok(MatrixRows::Affine(AffineTensor { tensor, format }));
        }
        let format = match self.dtype {
            Dtype::BF16 => DenseType::Bf16,
            Dtype::F16 => DenseType::F16,
            _ => DenseType::F32,
        };
        Ok(MatrixRows::Dense(DenseTensor { tensor, format }))
    }
}

impl AffineRows for AffineTensor<'_> {
    fn rows(&self) -> usize {
        self.tensor.rows()
    }

    fn cols(&self) -> usize {
        self.tensor.row_elements()
    }

    fn format(&self) -> AffineFormat {
        self.format
    }

    fn read_row(&self, row: usize, codes: &mut [u8], scales: &mut [f32], biases: &mut [f32]) {
        blocks::unpack(self.tensor.dtype, self.tensor.row(row), codes, scales, biases);
    }
}

impl DenseRows for DenseTensor<'_> {
    fn rows(&self) -> usize {
        self.tensor.rows()
    }

    fn cols(&self) -> usize {
        self.tensor.row_elements()
    }

    fn format(&self) -> DenseType {
        self.format
    }

    fn read_row(&self, row: usize, values: &mut [f32]) {
        blocks::dequantize(self.tensor.dtype, self.tensor.row(row), values);
    }
}
