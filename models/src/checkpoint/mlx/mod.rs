//! Weights that MLX quantized: which modes there are, and which tensors make a weight.
//!
//! A module has `.weight`, codes packed into u32 words from the low bits up, `.scales`, one for each
//! group of columns, and, if affine, `.biases`. Layouts: `mlx.core.quantize` of MLX.

mod codes;
mod shape;

use std::fmt;

use sconce_kernels::{AffineFormat, Code, CodedFormat, ScaleType};

use super::dtype::Dtype;
use super::float8;
use super::gguf::blocks;
use super::tensor::TensorView;
use crate::error::Error;

/// How values are made of codes and scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// `scale * code + bias`.
    Affine,
    /// E2M1 codes, E8M0 scales.
    Mxfp4,
    /// E4M3 codes, E8M0 scales.
    Mxfp8,
    /// E2M1 codes, E4M3 scales, perhaps a scale of the whole tensor.
    Nvfp4,
}

impl Mode {
    /// All names, for messages.
    pub(super) const NAMES: &'static str = "affine, mxfp4, mxfp8 or nvfp4";

    const ALL: [Mode; 4] = [Mode::Affine, Mode::Mxfp4, Mode::Mxfp8, Mode::Nvfp4];

    /// The mode that `config.json` calls `name`.
    pub(super) fn from_name(name: &str) -> Option<Mode> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }

    /// Bits of a code that the mode can have.
    pub(super) fn bits(self) -> &'static [usize] {
        match self {
            Mode::Affine => &[2, 3, 4, 5, 6, 8],
            Mode::Mxfp4 | Mode::Nvfp4 => &[4],
            Mode::Mxfp8 => &[8],
        }
    }

    /// Columns of a group that the mode can have.
    pub(super) fn group_sizes(self) -> &'static [usize] {
        match self {
            Mode::Affine => &[32, 64, 128],
            Mode::Mxfp4 | Mode::Mxfp8 => &[32],
            Mode::Nvfp4 => &[16],
        }
    }

    /// Bits and group size where nothing else is said.
    pub(super) fn default_sizes(self) -> (usize, usize) {
        match self {
            Mode::Affine => (4, 64),
            Mode::Mxfp4 => (4, 32),
            Mode::Mxfp8 => (8, 32),
            Mode::Nvfp4 => (4, 16),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Mode::Affine => "affine",
            Mode::Mxfp4 => "mxfp4",
            Mode::Mxfp8 => "mxfp8",
            Mode::Nvfp4 => "nvfp4",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a module is quantized; the sizes are among those of the mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) mode: Mode,
    pub(super) bits: usize,
    pub(super) group_size: usize,
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mode {
            Mode::Affine => write!(f, "affine {}-bit g{}", self.bits, self.group_size),
            mode => f.write_str(mode.name()),
        }
    }
}

/// The tensors of a quantized module.
#[derive(Debug, Clone, Copy)]
pub(super) struct MlxTensors<'a> {
    /// Codes, `[.., rows, cols * bits / 32]`.
    pub(super) weight: TensorView<'a>,
    /// `[.., rows, cols / group_size]`.
    pub(super) scales: TensorView<'a>,
    /// As the scales; affine only.
    pub(super) biases: Option<TensorView<'a>>,
    /// A number for each matrix of the stack; NVFP4 only.
    pub(super) global_scale: Option<TensorView<'a>>,
}

/// The form in which a matrix takes the rows of a quantized weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MlxFormat {
    Affine(AffineFormat),
    Coded(CodedFormat),
}

/// A quantized weight whose tensors fit each other.
#[derive(Debug, Clone, Copy)]
pub(super) struct MlxWeight<'a> {
    tensors: MlxTensors<'a>,
    settings: Settings,
    cols: usize,
    /// Rows of one matrix of the stack.
    matrix_rows: usize,
}

impl<'a> MlxWeight<'a> {
    /// Puts a weight together.
    ///
    /// # Errors
    /// [`Error::UnsupportedDtype`] for tensors of a wrong type, [`Error::Format`] for shapes that
    /// do not fit each other, [`Error::Quantization`] for shapes that fit other settings.
    pub(super) fn new(tensors: MlxTensors<'a>, settings: Settings) -> Result<Self, Error> {
        shape::check_types(&tensors, settings)?;
        let cols = shape::cols(&tensors, settings)?;
        let [.., matrix_rows, _] = *tensors.weight.shape else { unreachable!("it is a matrix") };
        Ok(Self { tensors, settings, cols, matrix_rows })
    }

    /// `[.., rows, cols]`.
    pub(super) fn shape(&self) -> Vec<usize> {
        let (_, leading) = self.tensors.weight.shape.split_last().expect("it is a matrix");
        leading.iter().copied().chain([self.cols]).collect()
    }

    /// Rows of the whole stack.
    pub(super) fn rows(&self) -> usize {
        self.tensors.weight.rows()
    }

    pub(super) fn cols(&self) -> usize {
        self.cols
    }

    pub(super) fn settings(&self) -> Settings {
        self.settings
    }

    /// The tensors that are there, the codes first.
    pub(super) fn parts(&self) -> Vec<TensorView<'a>> {
        let MlxTensors { weight, scales, biases, global_scale } = self.tensors;
        [weight, scales].into_iter().chain(biases).chain(global_scale).collect()
    }

    /// Settings with which the tensors would have `cols` columns.
    pub(super) fn settings_for(&self, cols: usize) -> Option<Settings> {
        shape::settings_for(&self.tensors, self.settings.mode, cols)
    }

    /// How codes and scales make values.
    pub(super) fn format(&self) -> MlxFormat {
        let Settings { mode, bits, group_size } = self.settings;
        let coded = |code, scales| MlxFormat::Coded(CodedFormat { code, group_size, scales });
        match mode {
            Mode::Affine => {
                let scales = self.affine_scales();
                let (bits, zero_point) = (bits as u8, None);
                MlxFormat::Affine(AffineFormat { bits, group_size, zero_point, scales })
            }
            Mode::Mxfp4 => coded(Code::E2m1, ScaleType::E8m0),
            Mode::Mxfp8 => coded(Code::E4m3, ScaleType::E8m0),
            Mode::Nvfp4 if self.tensors.global_scale.is_some() => coded(Code::E2m1, ScaleType::F32),
            // An E4M3 number has three bits of fraction, and bf16 seven.
            Mode::Nvfp4 => coded(Code::E2m1, ScaleType::Bf16),
        }
    }

    /// The type that holds scales and biases alike.
    fn affine_scales(&self) -> ScaleType {
        let biases = self.tensors.biases.map(|biases| biases.dtype);
        match (self.tensors.scales.dtype, biases) {
            (Dtype::F16, Some(Dtype::F16)) => ScaleType::F16,
            (Dtype::BF16, Some(Dtype::BF16)) => ScaleType::Bf16,
            _ => ScaleType::F32,
        }
    }

    /// Unpacks row `row < rows()` of an affine weight.
    pub(super) fn read_affine(
        &self,
        row: usize,
        codes: &mut [u8],
        scales: &mut [f32],
        biases: &mut [f32],
    ) {
        let MlxTensors { weight, scales: from, biases: biases_from, .. } = &self.tensors;
        codes::unpack(self.settings.bits, weight.row(row), codes);
        blocks::dequantize(from.dtype, from.row(row), scales);
        let biases_from = biases_from.expect("an affine weight has biases");
        blocks::dequantize(biases_from.dtype, biases_from.row(row), biases);
    }

    /// Unpacks row `row < rows()` of a weight that is not affine.
    pub(super) fn read_coded(&self, row: usize, codes: &mut [u8], scales: &mut [f32]) {
        codes::unpack(self.settings.bits, self.tensors.weight.row(row), codes);
        let decode = match self.settings.mode {
            Mode::Nvfp4 => float8::e4m3,
            _ => float8::e8m0,
        };
        let global = self.global_scale(row);
        for (scale, byte) in scales.iter_mut().zip(self.tensors.scales.row(row)) {
            *scale = decode(*byte) * global;
        }
    }

    /// Reads the values of row `row < rows()`.
    pub(super) fn read_values(&self, row: usize, values: &mut [f32]) {
        let groups = self.cols / self.settings.group_size;
        let (mut codes, mut scales) = (vec![0; self.cols], vec![0.0; groups]);
        let mut biases = vec![0.0; groups];
        let decode: fn(u8) -> f32 = match self.settings.mode {
            Mode::Affine => f32::from,
            Mode::Mxfp8 => float8::e4m3,
            Mode::Mxfp4 | Mode::Nvfp4 => float8::e2m1,
        };
        match self.settings.mode {
            Mode::Affine => self.read_affine(row, &mut codes, &mut scales, &mut biases),
            _ => self.read_coded(row, &mut codes, &mut scales),
        }
        for (col, (value, code)) in values.iter_mut().zip(&codes).enumerate() {
            let group = col / self.settings.group_size;
            *value = scales[group] * decode(*code) + biases[group];
        }
    }

    /// What the scales of row `row` are to be multiplied by.
    fn global_scale(&self, row: usize) -> f32 {
        /// Largest product of an E4M3 scale and an E2M1 code: the tensor's scale is the largest
        /// magnitude in it, and stands for that product.
        const LARGEST: f32 = 448.0 * 6.0;
        let Some(tensor) = self.tensors.global_scale else { return 1.0 };
        let matrix = row / self.matrix_rows;
        let mut value = [0.0];
        blocks::dequantize(Dtype::F32, &tensor.bytes[matrix * size_of::<f32>()..][..4], &mut value);
        value[0] / LARGEST
    }
}
