//! FP8 weights of Hugging Face directories: E4M3 numbers, and a scale for each block of rows and
//! columns in a second tensor whose name ends in `_scale_inv`.
//!
//! The scale is what a number is to be multiplied by, its name notwithstanding. Layout: the
//! `finegrained_fp8` integration of `transformers`.

use sconce_kernels::{Code, CodedFormat, ScaleType};

use super::dtype::Dtype;
use super::float8;
use super::gguf::blocks;
use super::tensor::TensorView;
use crate::error::Error;

/// What the name of the tensor of scales has after that of the weight.
pub(super) const SCALE_SUFFIX: &str = "_scale_inv";

/// Group sizes of coded matrices, the one that takes least room first.
const GROUP_SIZES: [usize; 4] = [128, 64, 32, 16];

/// An FP8 weight whose scales fit it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fp8Weight<'a> {
    weight: TensorView<'a>,
    scales: TensorView<'a>,
    /// Rows and columns of a matrix of the stack.
    matrix: [usize; 2],
    /// Rows and columns that share a scale.
    block: [usize; 2],
}

impl<'a> Fp8Weight<'a> {
    /// Puts a weight together; without `block`, each matrix of the stack has one scale.
    ///
    /// # Errors
    /// [`Error::UnsupportedDtype`] for scales of a wrong type, [`Error::Format`] for shapes that do
    /// not fit each other.
    pub(super) fn new(
        weight: TensorView<'a>,
        scales: TensorView<'a>,
        block: Option<[usize; 2]>,
    ) -> Result<Self, Error> {
        if !matches!(scales.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F8_E8M0) {
            return Err(Error::UnsupportedDtype {
                file: scales.file.display().to_string(),
                tensor: scales.name.to_string(),
                found: scales.dtype.name(),
                supported: "F32, F16, BF16, F8_E8M0",
            });
        }
        let (stack, matrix) = match *weight.shape {
            [ref stack @ .., rows, cols] if weight.elements() > 0 => (stack, [rows, cols]),
            ref shape => {
                let expected = "a matrix or a stack of them, none of them empty";
                return Err(wrong_shape(&weight, expected, shape));
            }
        };
        let fits = match block {
            Some([rows, cols]) => {
                let blocks = [matrix[0].div_ceil(rows), matrix[1].div_ceil(cols)];
                scales.shape.strip_prefix(stack) == Some(&blocks)
            }
            None => scales.elements() == stack.iter().product::<usize>(),
        };
        if !fits {
            let expected = match block {
                Some([rows, cols]) => format!("a scale for each block of {rows} x {cols}"),
                None => "a scale for each matrix".to_string(),
            };
            let expected = format!("{expected} of {} {:?}", weight.name, weight.shape);
            return Err(wrong_shape(&scales, expected, scales.shape));
        }
        Ok(Self { weight, scales, matrix, block: block.unwrap_or(matrix) })
    }

    /// `[.., rows, cols]`.
    pub(super) fn shape(&self) -> Vec<usize> {
        self.weight.shape.to_vec()
    }

    /// Rows of the whole stack.
    pub(super) fn rows(&self) -> usize {
        self.weight.rows()
    }

    pub(super) fn cols(&self) -> usize {
        self.matrix[1]
    }

    /// Rows and columns that share a scale.
    pub(super) fn block(&self) -> [usize; 2] {
        self.block
    }

    /// The tensors, the numbers first.
    pub(super) fn parts(&self) -> Vec<TensorView<'a>> {
        vec![self.weight, self.scales]
    }

    /// The form in which groups of columns share a scale; `None` where no group fits both blocks
    /// and rows.
    pub(super) fn coded_format(&self) -> Option<CodedFormat> {
        let [_, block_cols] = self.block;
        let fits = |size: &usize| {
            let whole = block_cols >= self.cols() || block_cols.is_multiple_of(*size);
            whole && self.cols().is_multiple_of(*size)
        };
        let group_size = GROUP_SIZES.into_iter().find(fits)?;
        let scales = match self.scales.dtype {
            Dtype::F16 => ScaleType::F16,
            Dtype::BF16 => ScaleType::Bf16,
            Dtype::F8_E8M0 => ScaleType::E8m0,
            _ => ScaleType::F32,
        };
        Some(CodedFormat { code: Code::E4m3, group_size, scales })
    }

    /// Reads the numbers of row `row < rows()` as they are, and a scale for each group.
    pub(super) fn read_coded(&self, row: usize, codes: &mut [u8], scales: &mut [f32]) {
        codes.copy_from_slice(self.weight.row(row));
        let group_size = codes.len() / scales.len();
        let of_blocks = self.scales_of(row);
        for (group, scale) in scales.iter_mut().enumerate() {
            *scale = of_blocks[group * group_size / self.block[1]];
        }
    }

    /// Reads the values of row `row < rows()`.
    pub(super) fn read_values(&self, row: usize, values: &mut [f32]) {
        let of_blocks = self.scales_of(row);
        let row = self.weight.row(row);
        let blocks = row.chunks(self.block[1]).zip(values.chunks_mut(self.block[1]));
        for ((codes, values), scale) in blocks.zip(of_blocks) {
            for (code, value) in codes.iter().zip(values) {
                *value = scale * float8::e4m3(*code);
            }
        }
    }

    /// Scales of the blocks that row `row` goes through.
    fn scales_of(&self, row: usize) -> Vec<f32> {
        let [rows, cols] = self.matrix;
        let (blocks_down, blocks) = (rows.div_ceil(self.block[0]), cols.div_ceil(self.block[1]));
        let line = row / rows * blocks_down + row % rows / self.block[0];
        let width = self.scales.dtype.block_bytes();
        let bytes = &self.scales.bytes[line * blocks * width..][..blocks * width];
        match self.scales.dtype {
            Dtype::F8_E8M0 => bytes.iter().map(|byte| float8::e8m0(*byte)).collect(),
            dtype => {
                let mut scales = vec![0.0; blocks];
                blocks::dequantize(dtype, bytes, &mut scales);
                scales
            }
        }
    }
}

fn wrong_shape(tensor: &TensorView<'_>, expected: impl ToString, shape: &[usize]) -> Error {
    let (file, place) = (tensor.file.display(), format!("tensor {}", tensor.name));
    Error::format(file, place, expected, format!("shape {shape:?}"))
}
