//! Formats of weights and of activations by name, and weights that cost nothing to make.

use std::str::FromStr;

use candle_core::Device;
use sconce_kernels::{
    ActivationType, AffineFormat, AffineRows, Code, CodedFormat, CodedRows, DenseRows, DenseType,
    Matrix, MatrixFormat, ScaleType,
};

use crate::error::Error;

/// Most bytes of weights that are read together.
pub(crate) const WEIGHT_BYTES_MAX: u64 = 4 << 30;

/// Something that has a name on a command line.
pub(crate) fn by_name<T: Copy>(
    all: &[T],
    name: impl Fn(T) -> &'static str,
    text: &str,
) -> Result<T, String> {
    all.iter().copied().find(|item| name(*item) == text).ok_or_else(|| {
        let names: Vec<&str> = all.iter().map(|item| name(*item)).collect();
        format!("expected one of {}", names.join(", "))
    })
}

/// How a weight is packed, by the name that checkpoints have for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// Plain numbers of 4 bytes.
    F32,
    /// Plain numbers of 2 bytes, as bfloat16.
    Bf16,
    /// Plain numbers of 2 bytes, as IEEE 754 binary16.
    F16,
    /// GGUF: 4 bits, groups of 32, one zero point.
    Q4_0,
    /// GGUF: 4 bits, groups of 32, a bias for each.
    Q4_1,
    /// GGUF: 5 bits, groups of 32, a bias for each.
    Q5_1,
    /// GGUF: 8 bits, groups of 32.
    Q8_0,
    /// MLX: 4 bits, groups of 64, a bias for each.
    Mlx4Bit,
    /// GGUF: indices into a table, groups of 32.
    Iq4Nl,
    /// OCP: FP4, groups of 32.
    Mxfp4,
    /// NVIDIA: FP4, groups of 16.
    Nvfp4,
    /// OCP: FP8, groups of 32.
    Mxfp8,
}

impl WeightFormat {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::F32,
        Self::Bf16,
        Self::F16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_1,
        Self::Q8_0,
        Self::Mlx4Bit,
        Self::Iq4Nl,
        Self::Mxfp4,
        Self::Nvfp4,
        Self::Mxfp8,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
            Self::Q5_1 => "q5_1",
            Self::Q8_0 => "q8_0",
            Self::Mlx4Bit => "mlx-4bit",
            Self::Iq4Nl => "iq4_nl",
            Self::Mxfp4 => "mxfp4",
            Self::Nvfp4 => "nvfp4",
            Self::Mxfp8 => "mxfp8",
        }
    }

    /// Whether weights of the format can be multiplied as integers.
    pub(crate) fn has_integer_codes(self) -> bool {
        self.packed().has_integer_codes()
    }

    fn packed(self) -> MatrixFormat {
        let affine = |bits, group_size, zero_point, scales| {
            MatrixFormat::Affine(AffineFormat { bits, group_size, zero_point, scales })
        };
        let coded = |code, group_size, scales| {
            MatrixFormat::Coded(CodedFormat { code, group_size, scales })
        };
        match self {
            Self::F32 => MatrixFormat::Dense(DenseType::F32),
            Self::Bf16 => MatrixFormat::Dense(DenseType::Bf16),
            Self::F16 => MatrixFormat::Dense(DenseType::F16),
            Self::Q4_0 => affine(4, 32, Some(8), ScaleType::F16),
            Self::Q4_1 => affine(4, 32, None, ScaleType::F16),
            Self::Q5_1 => affine(5, 32, None, ScaleType::F16),
            Self::Q8_0 => affine(8, 32, Some(128), ScaleType::F16),
            Self::Mlx4Bit => affine(4, 64, None, ScaleType::Bf16),
            Self::Iq4Nl => coded(Code::Iq4Nl, 32, ScaleType::F16),
            Self::Mxfp4 => coded(Code::E2m1, 32, ScaleType::E8m0),
            Self::Nvfp4 => coded(Code::E2m1, 16, ScaleType::Bf16),
            Self::Mxfp8 => coded(Code::E4m3, 32, ScaleType::E8m0),
        }
    }

    /// Bytes of `count` weights `[rows, cols]`, which are read together.
    ///
    /// # Errors
    /// A size that leaves no room for anything else.
    pub(crate) fn bytes(self, count: usize, (rows, cols): (usize, usize)) -> Result<usize, Error> {
        let one = Matrix::bytes_for(self.packed(), rows, cols);
        let found = one.saturating_mul(count as u64);
        match usize::try_from(found) {
            Ok(bytes) if found <= WEIGHT_BYTES_MAX => Ok(bytes),
            _ => {
                let what = format!("{count} weights {rows}x{cols} in {}", self.name());
                Err(Error::TooLarge { what, limit: WEIGHT_BYTES_MAX, found })
            }
        }
    }

    /// `count` weights `[rows, cols]` that are read together.
    ///
    /// # Errors
    /// A size that leaves no room for anything else.
    pub(crate) fn pack_all(
        self,
        count: usize,
        (rows, cols): (usize, usize),
    ) -> Result<Vec<Matrix>, Error> {
        self.bytes(count, (rows, cols))?;
        (0..count).map(|_| self.pack(rows, cols)).collect()
    }

    /// A weight `[rows, cols]` of some numbers.
    ///
    /// # Errors
    /// A size that leaves no room for anything else.
    pub(crate) fn pack(self, rows: usize, cols: usize) -> Result<Matrix, Error> {
        self.bytes(1, (rows, cols))?;
        let device = &Device::Cpu;
        Ok(match self.packed() {
            MatrixFormat::Dense(format) => {
                Matrix::pack_dense(&Source { rows, cols, format }, device)?
            }
            MatrixFormat::Affine(format) => {
                Matrix::pack_affine(&Source { rows, cols, format }, device)?
            }
            MatrixFormat::Coded(format) => {
                Matrix::pack_coded(&Source { rows, cols, format }, device)?
            }
        })
    }
}

impl FromStr for WeightFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        by_name(Self::ALL, Self::name, text)
    }
}

/// How activations are read by weights whose codes are integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activations {
    /// As they are.
    F32,
    /// In 8 bits.
    Int8,
    /// In 16 bits, as two 8-bit halves.
    Int16,
}

impl Activations {
    /// All of them.
    pub const ALL: &[Self] = &[Self::F32, Self::Int8, Self::Int16];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Int8 => "int8",
            Self::Int16 => "int16",
        }
    }

    /// The form that kernels know.
    pub(crate) fn kind(self) -> ActivationType {
        match self {
            Self::F32 => ActivationType::F32,
            Self::Int8 => ActivationType::Int8,
            Self::Int16 => ActivationType::Int16,
        }
    }
}

impl FromStr for Activations {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        by_name(Self::ALL, Self::name, text)
    }
}

/// Numbers that depend on their place, and scales that do not.
struct Source<F> {
    rows: usize,
    cols: usize,
    format: F,
}

/// A number below 16.
fn code(row: usize, col: usize) -> u8 {
    ((row * 31 + col * 7) % 16) as u8
}

fn fill(row: usize, codes: &mut [u8]) {
    codes.iter_mut().enumerate().for_each(|(col, value)| *value = code(row, col));
}

impl DenseRows for Source<DenseType> {
    fn rows(&self) -> usize {
        self.rows
    }
    fn cols(&self) -> usize {
        self.cols
    }
    fn format(&self) -> DenseType {
        self.format
    }
    fn read_row(&self, row: usize, values: &mut [f32]) {
        for (col, value) in values.iter_mut().enumerate() {
            *value = (f32::from(code(row, col)) - 8.0) / 8.0;
        }
    }
}

impl AffineRows for Source<AffineFormat> {
    fn rows(&self) -> usize {
        self.rows
    }
    fn cols(&self) -> usize {
        self.cols
    }
    fn format(&self) -> AffineFormat {
        self.format
    }
    fn read_row(&self, row: usize, codes: &mut [u8], scales: &mut [f32], biases: &mut [f32]) {
        fill(row, codes);
        scales.fill(0.125);
        biases.fill(-1.0);
    }
}

impl CodedRows for Source<CodedFormat> {
    fn rows(&self) -> usize {
        self.rows
    }
    fn cols(&self) -> usize {
        self.cols
    }
    fn format(&self) -> CodedFormat {
        self.format
    }
    fn read_row(&self, row: usize, codes: &mut [u8], scales: &mut [f32]) {
        fill(row, codes);
        scales.fill(0.125);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_has_a_name_of_its_own_and_can_be_packed() {
        for &format in WeightFormat::ALL {
            assert_eq!(format.name().parse(), Ok(format));
            let weight = format.pack(32, 64).unwrap();
            assert_eq!((weight.rows(), weight.cols()), (32, 64));
            let bytes = format.bytes(3, (32, 64)).unwrap();
            assert_eq!(3 * weight.bytes(), bytes, "{}", format.name());
            assert_eq!(format.pack_all(3, (32, 64)).unwrap().len(), 3);
        }
        for &form in Activations::ALL {
            assert_eq!(form.name().parse(), Ok(form));
        }
    }

    #[test]
    fn names_that_are_unknown_get_those_that_are_known() {
        let error = "q9".parse::<WeightFormat>().unwrap_err();
        assert!(error.contains("q4_0, q4_1"), "{error}");
        assert!("int4".parse::<Activations>().is_err());
    }

    #[test]
    fn weights_that_fill_the_memory_are_refused_before_any_is_packed() {
        let one = WeightFormat::F32.pack(1 << 20, 1 << 20);
        let many = WeightFormat::Q4_0.pack_all(1 << 20, (512, 192));
        for error in [one.unwrap_err().to_string(), many.unwrap_err().to_string()] {
            assert!(error.contains("at most 4294967296 bytes"), "{error}");
        }
    }
}
