//! What a weight looks like on its way into a [`Matrix`](super::Matrix): groups of small unsigned
//! codes, groups of coded numbers, or plain numbers, handed over one row at a time. How it is stored
//! is `matrix.rs`.

use super::codes::Integers;

/// How the scales and biases of a weight in groups are kept in memory. Choose one only where it
/// holds every scale and bias exactly: packing rounds without a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ScaleType {
    /// 4 bytes: as they are.
    F32,
    /// 2 bytes, IEEE 754 binary16, as in GGUF Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and IQ4_NL.
    F16,
    /// 2 bytes, upper half of an f32, as the affine scales and biases of MLX are stored; also every
    /// E4M3 scale of NVFP4 is one.
    Bf16,
    /// 1 byte, the exponent of a power of two from 2^-127 to 2^127, or NaN: the E8M0 of the OCP
    /// Microscaling formats. Everything else loses its sign and its fraction.
    E8m0,
}

impl ScaleType {
    /// Bytes of a number.
    pub(super) fn width(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::E8m0 => 1,
        }
    }
}

/// Groups of unsigned codes: `value = scale * code + bias`, one scale and one bias for each group
/// of consecutive columns of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AffineFormat {
    /// Bits of a code, 1 to 8: codes are below `1 << bits`. Up to 4 are stored as nibbles, more as
    /// bytes.
    pub bits: u8,
    /// Columns that share a scale: 16, 32, 64 or 128.
    pub group_size: usize,
    /// Set where the bias is the same multiple of the scale throughout: `value = scale * (code -
    /// zero_point)`. Such a weight has no biases.
    pub zero_point: Option<u8>,
    /// Storage of the scales and biases.
    pub scales: ScaleType,
}

/// A source of affine rows, read once when a matrix is packed; several threads read at a time.
pub trait AffineRows: Sync {
    /// Number of rows: the outputs of the linear layer.
    fn rows(&self) -> usize;

    /// Number of columns: the inputs of the linear layer, a multiple of the group size.
    fn cols(&self) -> usize;

    /// How the numbers of [`read_row`](Self::read_row) make values.
    fn format(&self) -> AffineFormat;

    /// Reads row `row < rows()`.
    ///
    /// `codes` has `cols()` elements, `scales` has `cols() / group_size`, and `biases` as many as
    /// `scales`, or none where the format has a `zero_point`. All of them must be written.
    fn read_row(&self, row: usize, codes: &mut [u8], scales: &mut [f32], biases: &mut [f32]);
}

/// Small floating-point numbers and tables: what a code of a coded weight stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// 4 bits, FP4 of the OCP Microscaling formats: magnitudes 0, 0.5, 1, 1.5, 2, 3, 4, 6 by the low
    /// three bits, negative if bit 3 is set.
    E2m1,
    /// 8 bits, FP8 in its finite form (OFP8 E4M3): no infinities, 0x7f and 0xff are NaN. A NaN makes
    /// its whole group NaN, as it does every product with it.
    E4m3,
    /// 4 bits, an index into the 16 signed integers of GGUF IQ4_NL and IQ4_XS.
    Iq4Nl,
}

impl Code {
    /// Bits of a code.
    pub(super) fn bits(self) -> u8 {
        match self {
            Self::E2m1 | Self::Iq4Nl => 4,
            Self::E4m3 => 8,
        }
    }

    /// Whether `code` is not a number.
    pub(super) fn is_nan(self, code: u8) -> bool {
        self == Self::E4m3 && code & 0x7f == 0x7f
    }
}

/// Groups of coded numbers: `value = scale * decode(code)`, one scale for each group of consecutive
/// columns of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CodedFormat {
    /// What a code stands for. Codes of 4 bits are stored as nibbles, codes of 8 bits as bytes.
    pub code: Code,
    /// Columns that share a scale: 16, 32, 64 or 128.
    pub group_size: usize,
    /// Storage of the scales.
    pub scales: ScaleType,
}

/// A source of coded rows, read once when a matrix is packed; several threads read at a time.
pub trait CodedRows: Sync {
    /// Number of rows: the outputs of the linear layer.
    fn rows(&self) -> usize;

    /// Number of columns: the inputs of the linear layer, a multiple of the group size.
    fn cols(&self) -> usize;

    /// How the numbers of [`read_row`](Self::read_row) make values.
    fn format(&self) -> CodedFormat;

    /// Reads row `row < rows()`: `codes` has `cols()` elements, one code to a byte, `scales` has
    /// `cols() / group_size`. All of them must be written.
    fn read_row(&self, row: usize, codes: &mut [u8], scales: &mut [f32]);
}

/// How the elements of a dense weight are kept in memory; they are widened to f32 in registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DenseType {
    /// 4 bytes each.
    F32,
    /// 2 bytes each, upper half of an f32.
    Bf16,
    /// 2 bytes each, IEEE 754 binary16.
    F16,
}

impl DenseType {
    /// Bytes of an element.
    pub(super) fn width(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }
}

/// A source of dense rows, read once when a matrix is packed; several threads read at a time.
pub trait DenseRows: Sync {
    /// Number of rows: the outputs of the linear layer.
    fn rows(&self) -> usize;

    /// Number of columns: the inputs of the linear layer.
    fn cols(&self) -> usize;

    /// The type the elements have in the source, and keep in the matrix.
    fn format(&self) -> DenseType;

    /// Reads row `row < rows()` into `values`, `cols()` elements, all of which must be written.
    fn read_row(&self, row: usize, values: &mut [f32]);
}

/// What a [`Matrix`](super::Matrix) holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MatrixFormat {
    /// Plain numbers.
    Dense(DenseType),
    /// Groups of small unsigned integers.
    Affine(AffineFormat),
    /// Groups of coded numbers.
    Coded(CodedFormat),
}

impl MatrixFormat {
    /// Whether its codes are integers, so that it can be multiplied with quantized activations.
    pub fn has_integer_codes(self) -> bool {
        match self {
            Self::Dense(_) => false,
            Self::Affine(_) => true,
            Self::Coded(format) => Integers::of(format.code).is_some(),
        }
    }
}
