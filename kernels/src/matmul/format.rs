//! What a weight looks like on its way into a [`Matrix`](super::Matrix): groups of small unsigned
//! codes, or plain numbers, handed over one row at a time. How it is stored is `matrix.rs`.

/// How the scales and biases of an affine weight are kept in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ScaleType {
    /// As they are.
    F32,
    /// In half the bytes. Choose it only where every scale and bias is exactly an f16, as in GGUF
    /// Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0: packing rounds to f16 without a word.
    F16,
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
    /// Groups of codes.
    Affine(AffineFormat),
}
