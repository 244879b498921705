//! Elements of full-precision weights: their widths, their bytes, and rounding to their type.

use half::{bf16, f16};
use sconce_kernels::DenseType;

/// Bytes of an element.
pub(super) fn width(dense_type: DenseType) -> usize {
    match dense_type {
        DenseType::F32 => 4,
        DenseType::Bf16 | DenseType::F16 => 2,
    }
}

/// The nearest value of the type, ties to even.
pub(super) fn round(dense_type: DenseType, value: f32) -> f32 {
    match dense_type {
        DenseType::F32 => value,
        DenseType::Bf16 => bf16::from_f32(value).to_f32(),
        DenseType::F16 => f16::from_f32(value).to_f32(),
    }
}

/// Writes the bytes of the nearest value of the type, little endian, into `bytes`, [`width`] long.
pub(super) fn store(bytes: &mut [u8], dense_type: DenseType, value: f32) {
    match dense_type {
        DenseType::F32 => bytes.copy_from_slice(&value.to_le_bytes()),
        DenseType::Bf16 => bytes.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
        DenseType::F16 => bytes.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
    }
}
