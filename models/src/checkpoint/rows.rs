//! Weights as the sources that matrices are packed from: rows of codes, or of numbers.
//!
//! The order of rows in the file is undone here, by reading each row from where it lies.

use sconce_kernels::{
    AffineFormat, AffineRows, CodedFormat, CodedRows, DenseRows, DenseType, MatrixFormat,
};

use super::dtype::Dtype;
use super::fp8::Fp8Weight;
use super::gguf::blocks;
use super::mlx::{MlxFormat, MlxWeight};
use super::selection::SelectedRows;
use super::tensor::TensorView;
use crate::error::Error;

/// The rows of a matrix, in the form its packing has.
#[derive(Debug, Clone)]
pub enum MatrixRows<'a> {
    /// Groups of codes with scales and biases.
    Affine(AffineWeight<'a>),
    /// Groups of coded numbers with scales.
    Coded(CodedWeight<'a>),
    /// Plain numbers.
    Dense(DenseWeight<'a>),
}

/// Rows of small unsigned codes, `[rows, cols]`.
#[derive(Debug, Clone)]
pub struct AffineWeight<'a> {
    source: AffineSource<'a>,
    format: AffineFormat,
    rows: SelectedRows,
}

/// Rows of coded numbers, `[rows, cols]`.
#[derive(Debug, Clone)]
pub struct CodedWeight<'a> {
    source: CodedSource<'a>,
    format: CodedFormat,
    rows: SelectedRows,
}

/// Rows of plain numbers, `[rows, cols]`.
#[derive(Debug, Clone)]
pub struct DenseWeight<'a> {
    source: DenseSource<'a>,
    format: DenseType,
    rows: SelectedRows,
}

/// What has codes, scales and biases.
#[derive(Debug, Clone)]
enum AffineSource<'a> {
    Blocks(TensorView<'a>),
    Mlx(Box<MlxWeight<'a>>),
}

/// What has coded numbers and scales.
#[derive(Debug, Clone)]
enum CodedSource<'a> {
    Blocks(TensorView<'a>),
    Mlx(Box<MlxWeight<'a>>),
    Fp8(Fp8Weight<'a>),
}

/// What has plain numbers, or is read as if it had.
#[derive(Debug, Clone)]
enum DenseSource<'a> {
    Plain(TensorView<'a>),
    Fp8(Fp8Weight<'a>),
}

impl<'a> MatrixRows<'a> {
    /// The selected rows of a tensor of plain numbers or of blocks.
    ///
    /// # Errors
    /// [`Error::UnsupportedDtype`] if its values cannot be read.
    pub(super) fn of_tensor(
        tensor: TensorView<'a>,
        rows: SelectedRows,
    ) -> Result<MatrixRows<'a>, Error> {
        tensor.expect_readable()?;
        if let Some(format) = blocks::affine_format(tensor.dtype) {
            let source = AffineSource::Blocks(tensor);
            return Ok(MatrixRows::Affine(AffineWeight { source, format, rows }));
        }
        if let Some(format) = blocks::coded_format(tensor.dtype) {
            let source = CodedSource::Blocks(tensor);
            return Ok(MatrixRows::Coded(CodedWeight { source, format, rows }));
        }
        let source = DenseSource::Plain(tensor);
        let format = match tensor.dtype {
            Dtype::BF16 => DenseType::Bf16,
            Dtype::F16 => DenseType::F16,
            _ => DenseType::F32,
        };
        Ok(MatrixRows::Dense(DenseWeight { source, format, rows }))
    }

    /// The selected rows of a weight that MLX quantized.
    pub(super) fn of_mlx(weight: Box<MlxWeight<'a>>, rows: SelectedRows) -> MatrixRows<'a> {
        match weight.format() {
            MlxFormat::Affine(format) => {
                let source = AffineSource::Mlx(weight);
                MatrixRows::Affine(AffineWeight { source, format, rows })
            }
            MlxFormat::Coded(format) => {
                let source = CodedSource::Mlx(weight);
                MatrixRows::Coded(CodedWeight { source, format, rows })
            }
        }
    }

    /// The selected rows of an FP8 weight: as they are where the blocks of its scales are groups of
    /// a matrix, or else their values.
    pub(super) fn of_fp8(weight: Fp8Weight<'a>, rows: SelectedRows) -> MatrixRows<'a> {
        match weight.coded_format() {
            Some(format) => {
                let source = CodedSource::Fp8(weight);
                MatrixRows::Coded(CodedWeight { source, format, rows })
            }
            None => {
                // A product of an E4M3 number and a scale fits no smaller type.
                let (source, format) = (DenseSource::Fp8(weight), DenseType::F32);
                MatrixRows::Dense(DenseWeight { source, format, rows })
            }
        }
    }

    /// Number of selected rows.
    pub fn rows(&self) -> usize {
        match self {
            MatrixRows::Affine(source) => source.rows(),
            MatrixRows::Coded(source) => source.rows(),
            MatrixRows::Dense(source) => source.rows(),
        }
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        match self {
            MatrixRows::Affine(source) => source.cols(),
            MatrixRows::Coded(source) => source.cols(),
            MatrixRows::Dense(source) => source.cols(),
        }
    }

    /// What a matrix packed from these rows holds.
    pub fn format(&self) -> MatrixFormat {
        match self {
            MatrixRows::Affine(source) => MatrixFormat::Affine(source.format()),
            MatrixRows::Coded(source) => MatrixFormat::Coded(source.format()),
            MatrixRows::Dense(source) => MatrixFormat::Dense(source.format()),
        }
    }
}

impl AffineRows for AffineWeight<'_> {
    fn rows(&self) -> usize {
        self.rows.count()
    }

    fn cols(&self) -> usize {
        match &self.source {
            AffineSource::Blocks(tensor) => tensor.row_elements(),
            AffineSource::Mlx(weight) => weight.cols(),
        }
    }

    fn format(&self) -> AffineFormat {
        self.format
    }

    fn read_row(&self, row: usize, codes: &mut [u8], scales: &mut [f32], biases: &mut [f32]) {
        let row = self.rows.row(row);
        match &self.source {
            AffineSource::Blocks(tensor) => {
                blocks::unpack(tensor.dtype, tensor.row(row), codes, scales, biases);
            }
            AffineSource::Mlx(weight) => weight.read_affine(row, codes, scales, biases),
        }
    }
}

impl CodedRows for CodedWeight<'_> {
    fn rows(&self) -> usize {
        self.rows.count()
    }

    fn cols(&self) -> usize {
        match &self.source {
            CodedSource::Blocks(tensor) => tensor.row_elements(),
            CodedSource::Mlx(weight) => weight.cols(),
            CodedSource::Fp8(weight) => weight.cols(),
        }
    }

    fn format(&self) -> CodedFormat {
        self.format
    }

    fn read_row(&self, row: usize, codes: &mut [u8], scales: &mut [f32]) {
        let row = self.rows.row(row);
        match &self.source {
            CodedSource::Blocks(tensor) => {
                blocks::unpack_coded(tensor.dtype, tensor.row(row), codes, scales);
            }
            CodedSource::Mlx(weight) => weight.read_coded(row, codes, scales),
            CodedSource::Fp8(weight) => weight.read_coded(row, codes, scales),
        }
    }
}

impl DenseRows for DenseWeight<'_> {
    fn rows(&self) -> usize {
        self.rows.count()
    }

    fn cols(&self) -> usize {
        match &self.source {
            DenseSource::Plain(tensor) => tensor.row_elements(),
            DenseSource::Fp8(weight) => weight.cols(),
        }
    }

    fn format(&self) -> DenseType {
        self.format
    }

    fn read_row(&self, row: usize, values: &mut [f32]) {
        let row = self.rows.row(row);
        match &self.source {
            DenseSource::Plain(tensor) => {
                blocks::dequantize(tensor.dtype, tensor.row(row), values);
            }
            DenseSource::Fp8(weight) => weight.read_values(row, values),
        }
    }
}
