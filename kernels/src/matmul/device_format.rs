//! What kernels are told of a weight's format: one word, as `weights.cuh` and `gpu/weights.metal`
//! read it.

use super::format::{Code, DenseType, MatrixFormat, ScaleType};
use super::layout::GroupLayout;

/// How a kernel decodes a weight, in the order of their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Nibbles,
    Bytes,
    E2m1,
    Iq4Nl,
    E4m3,
    Bf16,
    F16,
    F32,
}

impl Kind {
    /// The kind of a format.
    pub(crate) fn of(format: MatrixFormat) -> Self {
        match format {
            MatrixFormat::Affine(format) if format.bits <= 4 => Self::Nibbles,
            MatrixFormat::Affine(_) => Self::Bytes,
            MatrixFormat::Coded(format) => match format.code {
                Code::E2m1 => Self::E2m1,
                Code::Iq4Nl => Self::Iq4Nl,
                Code::E4m3 => Self::E4m3,
            },
            MatrixFormat::Dense(DenseType::Bf16) => Self::Bf16,
            MatrixFormat::Dense(DenseType::F16) => Self::F16,
            MatrixFormat::Dense(DenseType::F32) => Self::F32,
        }
    }

    /// Columns of a unit: what four lanes load of a row at a time.
    pub(crate) fn unit(self) -> usize {
        match self {
            Self::Nibbles | Self::E2m1 | Self::Iq4Nl => 128,
            Self::Bytes | Self::E4m3 => 64,
            Self::Bf16 | Self::F16 | Self::F32 => 32,
        }
    }
}

/// The word: log2 of a group's columns in its lowest byte, then 2 bits for the type of its scales
/// and one for biases; the zero point in the third byte, the kind in the highest.
pub(crate) fn format_word(format: MatrixFormat) -> u32 {
    let kind = (Kind::of(format) as u32) << 24;
    let (layout, zero) = match format {
        MatrixFormat::Dense(_) => return kind,
        MatrixFormat::Affine(format) => (GroupLayout::from(format), format.zero_point),
        MatrixFormat::Coded(format) => (GroupLayout::from(format), None),
    };
    let scales = match layout.scales {
        ScaleType::F32 => 0,
        ScaleType::F16 => 1,
        ScaleType::Bf16 => 2,
        ScaleType::E8m0 => 3,
    };
    let zero = u32::from(zero.unwrap_or(0)) << 16;
    kind | zero | u32::from(layout.biased) << 10 | scales << 8 | layout.group_size.ilog2()
}
