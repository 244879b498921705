//! The block-packed types of GGML, unpacked: codes with a scale per group, and a bias where codes
//! are unsigned numbers.
//!
//! That form is exact, value for value, so it serves both as the definition of what a block holds
//! and as what a matrix is packed from. Plain floating-point types are read here as well. Layouts:
//! `ggml-common.h` of the ggml project.

mod coded;
mod k;
mod simple;

use half::{bf16, f16};
use sconce_kernels::{AffineFormat, ScaleType};

pub use coded::{coded_format, unpack_coded};

use crate::checkpoint::dtype::Dtype;

/// Most elements of a block.
const BLOCK_ELEMENTS_MAX: usize = 256;

/// Most groups of a block: Q2_K, Q3_K and Q6_K have a scale for every 16 elements.
const BLOCK_GROUPS_MAX: usize = 16;

/// Unpacks one block: its bytes, then codes, scales and biases to fill.
type Unpack = fn(&[u8], &mut [u8], &mut [f32], &mut [f32]);

/// The affine form of a block-packed type whose codes are numbers; `None` for the others.
pub fn affine_format(dtype: Dtype) -> Option<AffineFormat> {
    let format = |bits, group_size, zero_point, scales| {
        Some(AffineFormat { bits, group_size, zero_point, scales })
    };
    match dtype {
        Dtype::Q4_0 => format(4, 32, Some(8), ScaleType::F16),
        Dtype::Q4_1 => format(4, 32, None, ScaleType::F16),
        Dtype::Q5_0 => format(5, 32, Some(16), ScaleType::F16),
        Dtype::Q5_1 => format(5, 32, None, ScaleType::F16),
        Dtype::Q8_0 => format(8, 32, Some(128), ScaleType::F16),
        // Scales of these are products of two numbers, which f16 would round.
        Dtype::Q2_K => format(2, 16, None, ScaleType::F32),
        Dtype::Q3_K => format(3, 16, Some(4), ScaleType::F32),
        Dtype::Q4_K => format(4, 32, None, ScaleType::F32),
        Dtype::Q5_K => format(5, 32, None, ScaleType::F32),
        Dtype::Q6_K => format(6, 16, Some(32), ScaleType::F32),
        _ => None,
    }
}

fn unpacker(dtype: Dtype) -> Option<Unpack> {
    Some(match dtype {
        Dtype::Q4_0 => simple::q4_0,
        Dtype::Q4_1 => simple::q4_1,
        Dtype::Q5_0 => simple::q5_0,
        Dtype::Q5_1 => simple::q5_1,
        Dtype::Q8_0 => simple::q8_0,
        Dtype::Q2_K => k::q2_k,
        Dtype::Q3_K => k::q3_k,
        Dtype::Q4_K => k::q4_k,
        Dtype::Q5_K => k::q5_k,
        Dtype::Q6_K => k::q6_k,
        _ => return None,
    })
}

/// Unpacks a run of whole blocks of a type that has an [`affine_format`]: a code for each element,
/// a scale for each group, and, where the format has no zero point, a bias for each group; `biases`
/// is empty otherwise.
///
/// # Panics
/// If `dtype` has no affine format, or the lengths do not fit each other.
pub fn unpack(
    dtype: Dtype,
    bytes: &[u8],
    codes: &mut [u8],
    scales: &mut [f32],
    biases: &mut [f32],
) {
    let unpack = unpacker(dtype).expect("the caller checked that the type is block-packed");
    let format = affine_format(dtype).expect("every type with an unpacker has a format");
    let groups = dtype.block_elements() / format.group_size;
    assert_eq!(Some(bytes.len()), dtype.bytes(codes.len()), "bytes of {dtype} blocks");
    let blocks = bytes.chunks_exact(dtype.block_bytes());
    let codes = codes.chunks_exact_mut(dtype.block_elements());
    for (index, (block, codes)) in blocks.zip(codes).enumerate() {
        let range = index * groups..(index + 1) * groups;
        let biases = match format.zero_point {
            Some(_) => &mut [][..],
            None => &mut biases[range.clone()],
        };
        unpack(block, codes, &mut scales[range], biases);
    }
}

/// Values of a run of elements of a readable type, in f32.
///
/// # Panics
/// If `dtype` is not [readable](Dtype::is_readable), or the lengths do not fit each other.
pub fn dequantize(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(Some(bytes.len()), dtype.bytes(out.len()), "bytes of {dtype} elements");
    match dtype {
        Dtype::F32 => numbers(bytes, out, f32::from_le_bytes),
        Dtype::F16 => numbers(bytes, out, |bytes| f16::from_le_bytes(bytes).to_f32()),
        Dtype::BF16 => numbers(bytes, out, |bytes| bf16::from_le_bytes(bytes).to_f32()),
        _ => {
            let blocks = bytes.chunks_exact(dtype.block_bytes());
            for (block, out) in blocks.zip(out.chunks_exact_mut(dtype.block_elements())) {
                dequantize_block(dtype, block, out);
            }
        }
    }
}

fn numbers<const N: usize>(bytes: &[u8], out: &mut [f32], read: impl Fn([u8; N]) -> f32) {
    let (chunks, _) = bytes.as_chunks::<N>();
    for (out, chunk) in out.iter_mut().zip(chunks) {
        *out = read(*chunk);
    }
}

fn dequantize_block(dtype: Dtype, block: &[u8], out: &mut [f32]) {
    if let Some(format) = coded_format(dtype) {
        return coded::dequantize_block(dtype, format, block, out);
    }
    let format = affine_format(dtype).expect("the caller checked that the type is readable");
    let mut codes = [0; BLOCK_ELEMENTS_MAX];
    let mut scales = [0.0; BLOCK_GROUPS_MAX];
    let mut biases = [0.0; BLOCK_GROUPS_MAX];
    let groups = out.len() / format.group_size;
    let codes = &mut codes[..out.len()];
    unpack(dtype, block, codes, &mut scales[..groups], &mut biases[..groups]);
    for (group, out) in out.chunks_exact_mut(format.group_size).enumerate() {
        let codes = &codes[group * format.group_size..];
        for (out, code) in out.iter_mut().zip(codes) {
            *out = match format.zero_point {
                Some(zero) => scales[group] * (f32::from(*code) - f32::from(zero)),
                None => scales[group] * f32::from(*code) + biases[group],
            };
        }
    }
}

/// The f16 at `offset` of a block, in f32.
fn f16_at(block: &[u8], offset: usize) -> f32 {
    f16::from_le_bytes([block[offset], block[offset + 1]]).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_numbers_are_read_as_they_are() {
        let mut out = [0.0; 2];
        dequantize(Dtype::BF16, &[0x80, 0x3f, 0x00, 0xc0], &mut out);
        assert_eq!(out, [1.0, -2.0]);
        dequantize(Dtype::F16, &[0x00, 0x3c, 0x00, 0xc0], &mut out);
        assert_eq!(out, [1.0, -2.0]);
        dequantize(Dtype::F32, &[0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0], &mut out);
        assert_eq!(out, [1.0, -2.0]);
    }

    #[test]
    fn every_block_packed_type_that_is_readable_has_one_form() {
        use Dtype::*;
        let affine = [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K];
        for dtype in affine {
            let format = affine_format(dtype).unwrap();
            assert!(dtype.is_readable() && unpacker(dtype).is_some());
            assert_eq!(dtype.block_elements() % format.group_size, 0);
        }
        for dtype in [IQ4_NL, IQ4_XS, MXFP4] {
            let format = coded_format(dtype).unwrap();
            assert!(dtype.is_readable() && affine_format(dtype).is_none());
            assert_eq!(dtype.block_elements() % format.group_size, 0);
        }
        for dtype in affine.into_iter().chain([F32, IQ2_XS]) {
            assert!(coded_format(dtype).is_none());
        }
        assert!(affine_format(IQ2_XS).is_none() && !IQ2_XS.is_readable());
    }
}
