//! Blocks of 32 elements with one scale: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.
//!
//! Nibbles hold element `i` in the low half of byte `i` and element `i + 16` in the high half.

use super::f16_at;

/// Scale, nibbles; value = scale * (code - 8).
pub(super) fn q4_0(block: &[u8], codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
    scales[0] = f16_at(block, 0);
    nibbles(&block[2..], codes);
}

/// Scale, minimum, nibbles.
pub(super) fn q4_1(block: &[u8], codes: &mut [u8], scales: &mut [f32], biases: &mut [f32]) {
    scales[0] = f16_at(block, 0);
    biases[0] = f16_at(block, 2);
    nibbles(&block[4..], codes);
}

/// Scale, fifth bits, nibbles; value = scale * (code - 16).
pub(super) fn q5_0(block: &[u8], codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
    scales[0] = f16_at(block, 0);
    nibbles(&block[6..], codes);
    fifth_bits(&block[2..6], codes);
}

/// Scale, minimum, fifth bits, nibbles.
pub(super) fn q5_1(block: &[u8], codes: &mut [u8], scales: &mut [f32], biases: &mut [f32]) {
    scales[0] = f16_at(block, 0);
    biases[0] = f16_at(block, 2);
    nibbles(&block[8..], codes);
    fifth_bits(&block[4..8], codes);
}

/// Scale, signed bytes; codes are those plus 128.
pub(super) fn q8_0(block: &[u8], codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
    scales[0] = f16_at(block, 0);
    for (code, byte) in codes.iter_mut().zip(&block[2..]) {
        *code = byte ^ 0x80;
    }
}

fn nibbles(packed: &[u8], codes: &mut [u8]) {
    let (low, high) = codes.split_at_mut(16);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(packed) {
        *low = byte & 0x0f;
        *high = byte >> 4;
    }
}

/// Bit `i` of the four bytes is bit 4 of code `i`.
fn fifth_bits(bits: &[u8], codes: &mut [u8]) {
    for (index, code) in codes.iter_mut().enumerate() {
        *code |= (bits[index / 8] >> (index % 8) & 1) << 4;
    }
}

#[cfg(test)]
mod tests {
    use super::super::dequantize;
    use crate::checkpoint::dtype::Dtype;

    /// 1.5 and -0.5 as little-endian f16.
    const SCALE: [u8; 2] = [0x00, 0x3e];
    const MINIMUM: [u8; 2] = [0x00, 0xb8];

    fn values(dtype: Dtype, parts: &[&[u8]]) -> [f32; 32] {
        let mut out = [0.0; 32];
        dequantize(dtype, &parts.concat(), &mut out);
        out
    }

    #[test]
    fn nibbles_are_split_between_the_halves_of_a_block() {
        let mut packed = [0x88; 16];
        packed[3] = 0x9f; // element 3: 15, element 19: 9
        let out = values(Dtype::Q4_0, &[&SCALE, &packed]);
        assert_eq!((out[0], out[3], out[19]), (0.0, 10.5, 1.5));
        let out = values(Dtype::Q4_1, &[&SCALE, &MINIMUM, &packed]);
        assert_eq!((out[0], out[3], out[19]), (11.5, 22.0, 13.0));
    }

    #[test]
    fn fifth_bits_come_in_order_of_elements() {
        let bits = (1u32 << 1 | 1 << 31).to_le_bytes();
        let out = values(Dtype::Q5_0, &[&SCALE, &bits, &[0; 16]]);
        assert_eq!((out[0], out[1], out[31]), (-24.0, 0.0, 0.0));
        let out = values(Dtype::Q5_1, &[&SCALE, &MINIMUM, &bits, &[0; 16]]);
        assert_eq!((out[0], out[1], out[31]), (-0.5, 23.5, 23.5));
    }

    #[test]
    fn bytes_are_signed() {
        let mut bytes = [0; 32];
        (bytes[0], bytes[31]) = (0x80, 0x7f);
        let out = values(Dtype::Q8_0, &[&SCALE, &bytes]);
        assert_eq!((out[0], out[1], out[31]), (-192.0, 0.0, 190.5));
    }
}
