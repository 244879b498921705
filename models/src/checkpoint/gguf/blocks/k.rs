//! Blocks of 256 elements with small scales under one large scale: Q2_K to Q6_K.
//!
//! Four-bit parts come in four runs of 32 bytes, each holding two groups of 32 elements: the first
//! in the low halves, the second in the high halves. Two-bit parts come in two runs of 32 bytes,
//! each holding four times 32 elements, the first in the lowest bits.

use super::f16_at;

/// Nibbles of scales and minima of 16 elements each, bit pairs, scale, scale of minima.
pub(super) fn q2_k(block: &[u8], codes: &mut [u8], scales: &mut [f32], biases: &mut [f32]) {
    let (scale, minimum) = (f16_at(block, 80), f16_at(block, 82));
    for ((out, bias), byte) in scales.iter_mut().zip(biases).zip(&block[..16]) {
        *out = scale * f32::from(byte & 0x0f);
        *bias = -(minimum * f32::from(byte >> 4));
    }
    bit_pairs(&block[16..80], codes);
}

/// Third bits, bit pairs, 6-bit scales of 16 elements each, scale; value = scale * (code - 4).
///
/// Bit `i` of byte `j` of the third bits belongs to element `32 * i + j`. Scales are stored with 32
/// added: scale `g` has its low four bits in half `g / 8` of byte `g % 8`, and its high two in pair
/// `g / 4` of byte `8 + g % 4`.
pub(super) fn q3_k(block: &[u8], codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
    let scale = f16_at(block, 108);
    let packed = &block[96..108];
    for (group, out) in scales.iter_mut().enumerate() {
        let low = packed[group % 8] >> (4 * (group / 8)) & 0x0f;
        let high = packed[8 + group % 4] >> (2 * (group / 4)) & 3;
        *out = scale * (f32::from(low | high << 4) - 32.0);
    }
    bit_pairs(&block[32..96], codes);
    for (bit, codes) in codes.chunks_exact_mut(32).enumerate() {
        for (code, bits) in codes.iter_mut().zip(&block[..32]) {
            *code |= (bits >> bit & 1) << 2;
        }
    }
}

/// Scale, scale of minima, 6-bit scales and minima, nibbles.
pub(super) fn q4_k(block: &[u8], codes: &mut [u8], scales: &mut [f32], biases: &mut [f32]) {
    scales_and_minima(block, scales, biases);
    nibbles(&block[16..144], codes);
}

/// As Q4_K with 32 bytes of fifth bits before the nibbles: bit `g` of byte `i` belongs to element
/// `i` of group `g`.
pub(super) fn q5_k(block: &[u8], codes: &mut [u8], scales: &mut [f32], biases: &mut [f32]) {
    scales_and_minima(block, scales, biases);
    nibbles(&block[48..176], codes);
    let fifth = &block[16..48];
    for (group, codes) in codes.chunks_exact_mut(32).enumerate() {
        for (code, bits) in codes.iter_mut().zip(fifth) {
            *code |= (bits >> group & 1) << 4;
        }
    }
}

/// Nibbles, upper bit pairs, signed 8-bit scales of 16 elements each, scale.
///
/// Each half of 128 elements has 64 bytes of nibbles and 32 of bit pairs. Its quarter `q` takes
/// its nibbles from the low (q < 2) or high halves of bytes 0..32 (q even) or 32..64 (q odd), and
/// its bit pairs from bits `2q` and `2q + 1`.
pub(super) fn q6_k(block: &[u8], codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
    let scale = f16_at(block, 208);
    for (out, byte) in scales.iter_mut().zip(&block[192..208]) {
        *out = scale * f32::from(*byte as i8);
    }
    for (half, codes) in codes.chunks_exact_mut(128).enumerate() {
        let low = &block[64 * half..][..64];
        let high = &block[128 + 32 * half..][..32];
        for (quarter, codes) in codes.chunks_exact_mut(32).enumerate() {
            let low = &low[32 * (quarter % 2)..][..32];
            let shift = 4 * (quarter / 2);
            for ((code, low), high) in codes.iter_mut().zip(low).zip(high) {
                *code = (low >> shift & 0x0f) | (high >> (2 * quarter) & 3) << 4;
            }
        }
    }
}

fn nibbles(packed: &[u8], codes: &mut [u8]) {
    for (packed, codes) in packed.chunks_exact(32).zip(codes.chunks_exact_mut(64)) {
        let (low, high) = codes.split_at_mut(32);
        for ((low, high), byte) in low.iter_mut().zip(high).zip(packed) {
            *low = byte & 0x0f;
            *high = byte >> 4;
        }
    }
}

fn bit_pairs(packed: &[u8], codes: &mut [u8]) {
    for (packed, codes) in packed.chunks_exact(32).zip(codes.chunks_exact_mut(128)) {
        for (quarter, codes) in codes.chunks_exact_mut(32).enumerate() {
            for (code, byte) in codes.iter_mut().zip(packed) {
                *code = byte >> (2 * quarter) & 3;
            }
        }
    }
}

/// Products of the large scales with the eight 6-bit scales and minima that 12 bytes hold.
///
/// Bytes 0..4 and 4..8 have the scales and minima of groups 0..4 in their low six bits; bytes 8..12
/// have the low four bits of those of groups 4..8, whose top two bits are the spare ones above.
fn scales_and_minima(block: &[u8], scales: &mut [f32], biases: &mut [f32]) {
    let (scale, minimum) = (f16_at(block, 0), f16_at(block, 2));
    let packed = &block[4..16];
    for group in 0..8 {
        let (small_scale, small_minimum) = match group {
            0..4 => (packed[group] & 63, packed[group + 4] & 63),
            _ => (
                packed[group + 4] & 0x0f | packed[group - 4] >> 6 << 4,
                packed[group + 4] >> 4 | packed[group] >> 6 << 4,
            ),
        };
        scales[group] = scale * f32::from(small_scale);
        biases[group] = -(minimum * f32::from(small_minimum));
    }
}

#[cfg(test)]
mod tests {
    use super::super::dequantize;
    use crate::checkpoint::dtype::Dtype;

    /// 1.0 and 0.5 as little-endian f16.
    const ONE: [u8; 2] = [0x00, 0x3c];
    const HALF: [u8; 2] = [0x00, 0x38];

    #[test]
    fn two_bits_have_a_scale_and_a_minimum_in_one_byte() {
        let mut small = [0; 16];
        small[9] = 5 | 3 << 4; // elements 144..160
        let mut pairs = [0; 64];
        pairs[32 + 17] = 0b01_00; // second half, second quarter: element 128 + 32 + 17
        pairs[32 + 16] = 0b10; // second half, first quarter: element 128 + 16
        let block = [&small[..], &pairs, &ONE, &HALF].concat();
        let mut out = [0.0; 256];
        dequantize(Dtype::Q2_K, &block, &mut out);
        assert_eq!((out[144], out[145], out[177]), (10.0 - 1.5, -1.5, 0.0));
    }

    #[test]
    fn three_bits_are_signed_and_so_are_their_scales() {
        let mut third = [0; 32];
        third[3] = 1 << 2; // element 64 + 3
        let mut pairs = [0; 64];
        pairs[3] = 0b11 << 4; // first half, third quarter: element 64 + 3
        let mut packed = [0; 12];
        packed[4] = 0x0e; // group 4: low bits
        packed[8] = 0b10 << 2; // group 4: high bits, 46 - 32
        let block = [&third[..], &pairs, &packed, &HALF].concat();
        let mut out = [0.0; 256];
        dequantize(Dtype::Q3_K, &block, &mut out);
        assert_eq!((out[67], out[66], out[0]), (7.0 * 3.0, 7.0 * -4.0, -16.0 * -4.0));
    }

    #[test]
    fn scales_of_the_upper_groups_are_put_together_from_two_places() {
        let mut packed = [0; 12];
        packed[0] = 3 | 2 << 6; // group 0: scale 3; top bits of the scale of group 4
        packed[4] = 5 | 1 << 6; // group 0: minimum 5; top bits of the minimum of group 4
        packed[8] = 7 | 9 << 4; // low bits of group 4: scale 7, minimum 9
        let mut nibbles = [0; 128];
        nibbles[0] = 4; // group 0, element 0
        nibbles[64 + 1] = 6; // group 4, element 1
        let block = [&ONE[..], &HALF, &packed, &nibbles].concat();
        let mut out = [0.0; 256];
        dequantize(Dtype::Q4_K, &block, &mut out);
        assert_eq!((out[0], out[1]), (12.0 - 2.5, -2.5));
        assert_eq!((out[129], out[128]), (39.0 * 6.0 - 12.5, -12.5));
    }

    #[test]
    fn fifth_bits_belong_to_groups_by_bit() {
        let mut packed = [0; 12];
        packed[1] = 2; // group 1: scale 2
        let mut fifth = [0; 32];
        fifth[7] = 1 << 1; // group 1, element 7
        let block = [&ONE[..], &HALF, &packed, &fifth, &[0; 128]].concat();
        let mut out = [0.0; 256];
        dequantize(Dtype::Q5_K, &block, &mut out);
        assert_eq!((out[32 + 7], out[32 + 6], out[7]), (32.0, 0.0, 0.0));
    }

    #[test]
    fn six_bits_come_from_nibbles_and_pairs() {
        let mut low = [0; 128];
        low[64 + 32] = 0xa0; // second half, quarter 3, element 0
        let mut high = [0; 64];
        high[32] = 0b11_00_00_00;
        let mut scales = [0; 16];
        scales[14] = -2i8 as u8;
        let block = [&low[..], &high, &scales, &ONE].concat();
        let mut out = [0.0; 256];
        dequantize(Dtype::Q6_K, &block, &mut out);
        // Code 0x3a = 58, minus 32, times -2.
        assert_eq!((out[224], out[225]), (-52.0, 64.0));
        assert_eq!(out[0], 0.0);
    }
}
