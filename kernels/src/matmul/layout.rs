//! Where codes and scales lie inside a panel, and how many lines a panel takes: what packing, the
//! kernels and the forecast of memory agree on. No weights here.

use super::format::{AffineFormat, CodedFormat, DenseType, MatrixFormat, ScaleType};
use super::matrix::{LINE, PANEL};

/// The layout of a weight in groups, affine or coded.
///
/// Codes come in blocks of one line, in which byte `4 * lane + j` belongs to row `lane` of the
/// panel. With nibbles a block covers 8 columns: column `j` in the low and column `4 + j` in the high
/// half of the byte. With bytes it covers 4 columns. Beside the codes, for each group the 16 scales
/// of the panel's rows, then the 16 biases if there are any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GroupLayout {
    /// Whether two codes share a byte.
    pub(crate) nibbles: bool,
    /// Columns that share a scale.
    pub(crate) group_size: usize,
    /// Storage of scales and biases.
    pub(crate) scales: ScaleType,
    /// Whether groups have biases.
    pub(crate) biased: bool,
}

impl From<AffineFormat> for GroupLayout {
    fn from(format: AffineFormat) -> Self {
        Self {
            nibbles: format.bits <= 4,
            group_size: format.group_size,
            scales: format.scales,
            biased: format.zero_point.is_none(),
        }
    }
}

impl From<CodedFormat> for GroupLayout {
    fn from(format: CodedFormat) -> Self {
        Self {
            nibbles: format.code.bits() <= 4,
            group_size: format.group_size,
            scales: format.scales,
            biased: false,
        }
    }
}

impl GroupLayout {
    /// Columns that a line of codes covers.
    pub(crate) fn block(self) -> usize {
        if self.nibbles { 8 } else { 4 }
    }

    /// Numbers that a group has in a panel: scales, and biases if there are any.
    pub(crate) fn numbers(self) -> usize {
        if self.biased { 2 * PANEL } else { PANEL }
    }

    /// Lines of codes and lines of scales of one panel; none if they overflow.
    pub(super) fn strides(self, cols: usize) -> Option<(usize, usize)> {
        let numbers = cols.checked_div(self.group_size)?.checked_mul(self.numbers())?;
        let scales = numbers.checked_mul(self.scales.width())?.div_ceil(LINE);
        Some((cols / self.block(), scales))
    }
}

/// Lines of one panel of a dense weight; none if they overflow.
pub(super) fn dense_stride(dense_type: DenseType, cols: usize) -> Option<usize> {
    Some(cols.checked_mul(PANEL)?.checked_mul(dense_type.width())?.div_ceil(LINE))
}

/// Bytes of a packed weight, [`u64::MAX`] if they overflow.
pub(super) fn bytes_for(format: MatrixFormat, rows: usize, cols: usize) -> u64 {
    let groups = |layout: GroupLayout| match layout.strides(cols) {
        Some((codes, scales)) => codes.checked_add(scales),
        None => None,
    };
    let lines = match format {
        MatrixFormat::Dense(dense_type) => dense_stride(dense_type, cols),
        MatrixFormat::Affine(format) => groups(format.into()),
        MatrixFormat::Coded(format) => groups(format.into()),
    };
    let panels = rows.div_ceil(PANEL) as u64;
    lines.map_or(u64::MAX, |lines| (lines as u64).saturating_mul(LINE as u64 * panels))
}
