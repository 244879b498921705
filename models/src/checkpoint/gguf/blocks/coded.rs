//! Blocks whose codes stand for numbers of a table: IQ4_NL, IQ4_XS, MXFP4.
//!
//! Nibbles hold element `i` of a group in the low half of byte `i` and element `i + 16` in the high
//! half. MXFP4 is that of the OCP Microscaling formats, in another order of elements.

use sconce_kernels::{Code, CodedFormat, ScaleType};

use super::{BLOCK_ELEMENTS_MAX, BLOCK_GROUPS_MAX, f16_at};
use crate::checkpoint::dtype::Dtype;
use crate::checkpoint::float8;

/// Elements that share a scale, in all of these types.
const GROUP: usize = 32;

/// Bytes of the codes of a group.
const GROUP_BYTES: usize = GROUP / 2;

/// Values of the codes of IQ4_NL and IQ4_XS.
const IQ4_NL: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0,
    89.0, 113.0,
];

/// The coded form of a block-packed type whose codes stand for numbers of a table; `None` for the
/// others.
pub fn coded_format(dtype: Dtype) -> Option<CodedFormat> {
    let (code, scales) = match dtype {
        Dtype::IQ4_NL => (Code::Iq4Nl, ScaleType::F16),
        // Scales of these are products of two numbers, which f16 would round.
        Dtype::IQ4_XS => (Code::Iq4Nl, ScaleType::F32),
        Dtype::MXFP4 => (Code::E2m1, ScaleType::E8m0),
        _ => return None,
    };
    Some(CodedFormat { code, group_size: GROUP, scales })
}

/// Unpacks a run of whole blocks of a type that has a [`coded_format`]: a code for each element and
/// a scale for each group.
///
/// # Panics
/// If `dtype` has no coded format, or the lengths do not fit each other.
pub fn unpack_coded(dtype: Dtype, bytes: &[u8], codes: &mut [u8], scales: &mut [f32]) {
    assert_eq!(Some(bytes.len()), dtype.bytes(codes.len()), "bytes of {dtype} blocks");
    assert_eq!(scales.len(), codes.len() / GROUP, "scales of {dtype} groups");
    let groups = dtype.block_elements() / GROUP;
    let codes = codes.chunks_exact_mut(dtype.block_elements());
    let blocks = bytes.chunks_exact(dtype.block_bytes());
    for ((block, codes), scales) in blocks.zip(codes).zip(scales.chunks_exact_mut(groups)) {
        let packed = match dtype {
            Dtype::IQ4_NL => {
                scales[0] = f16_at(block, 0);
                &block[2..]
            }
            Dtype::IQ4_XS => {
                iq4_xs_scales(block, scales);
                &block[8..]
            }
            Dtype::MXFP4 => {
                scales[0] = float8::e8m0(block[0]);
                &block[1..]
            }
            other => panic!("{other} has no coded format"),
        };
        for (packed, codes) in packed.chunks_exact(GROUP_BYTES).zip(codes.chunks_exact_mut(GROUP)) {
            let (low, high) = codes.split_at_mut(GROUP_BYTES);
            for ((low, high), byte) in low.iter_mut().zip(high).zip(packed) {
                *low = byte & 0x0f;
                *high = byte >> 4;
            }
        }
    }
}

/// Values of one block.
pub(super) fn dequantize_block(dtype: Dtype, format: CodedFormat, block: &[u8], out: &mut [f32]) {
    let mut codes = [0; BLOCK_ELEMENTS_MAX];
    let mut scales = [0.0; BLOCK_GROUPS_MAX];
    let (codes, scales) = (&mut codes[..out.len()], &mut scales[..out.len() / GROUP]);
    unpack_coded(dtype, block, codes, scales);
    for (index, (out, code)) in out.iter_mut().zip(codes).enumerate() {
        let value = match format.code {
            Code::E2m1 => float8::e2m1(*code),
            _ => IQ4_NL[usize::from(*code)],
        };
        *out = scales[index / GROUP] * value;
    }
}

/// Scale, high bit pairs and low nibbles of 6-bit scales, which are stored with 32 added.
fn iq4_xs_scales(block: &[u8], scales: &mut [f32]) {
    let scale = f16_at(block, 0);
    let pairs = u16::from_le_bytes([block[2], block[3]]);
    for (group, out) in scales.iter_mut().enumerate() {
        let low = block[4 + group / 2] >> (4 * (group % 2)) & 0x0f;
        let high = (pairs >> (2 * group) & 3) as u8;
        *out = scale * (f32::from(low | high << 4) - 32.0);
    }
}

#[cfg(test)]
mod tests {
    use super::super::dequantize;
    use super::*;

    #[test]
    fn codes_of_the_two_halves_of_a_group_share_bytes() {
        let mut block = vec![0; 18];
        block[1] = 0x3c; // 1.0
        block[2 + 5] = 0xf8; // element 5: code 8, element 21: code 15
        let mut out = [0.0; 32];
        dequantize(Dtype::IQ4_NL, &block, &mut out);
        assert_eq!((out[5], out[21], out[0]), (1.0, 113.0, -127.0));
    }

    #[test]
    fn scales_of_256_elements_are_put_together_from_two_places() {
        let mut block = vec![0; 136];
        block[1] = 0x38; // 0.5
        block[2..4].copy_from_slice(&(0b10u16 << 10).to_le_bytes()); // group 5: high bits
        block[4 + 2] = 0x70; // group 5: low bits, 39 - 32
        block[8 + 5 * 16] = 0x08; // element 160: code 8
        let mut out = [0.0; 256];
        dequantize(Dtype::IQ4_XS, &block, &mut out);
        assert_eq!((out[160], out[0]), (3.5, -16.0 * -127.0));
    }

    #[test]
    fn scales_of_one_byte_are_powers_of_two() {
        let value = |exponent| {
            let mut block = [0x77; 17];
            block[0] = exponent;
            let mut out = [0.0; 32];
            dequantize(Dtype::MXFP4, &block, &mut out);
            out[31]
        };
        assert_eq!((value(127), value(129), value(126)), (6.0, 24.0, 3.0));
        assert_eq!((value(0), value(1)), (6.0 * 2f32.powi(-127), 6.0 * 2f32.powi(-126)));
        assert!(value(255).is_nan());
    }
}
