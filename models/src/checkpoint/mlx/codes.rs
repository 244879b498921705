//! Codes of 2 to 8 bits, packed without gaps from the low bits of little-endian words up: a code
//! may begin in one word and end in the next.

/// Unpacks the codes of a row. `bits` is 2, 3, 4, 5, 6 or 8, the number of codes a multiple of 8,
/// and `bytes` as long as they are together.
pub(super) fn unpack(bits: usize, bytes: &[u8], codes: &mut [u8]) {
    assert_eq!(bytes.len() * 8, codes.len() * bits, "bytes of {bits}-bit codes");
    match bits {
        2 => unpack_bits::<2>(bytes, codes),
        3 => unpack_bits::<3>(bytes, codes),
        4 => unpack_bits::<4>(bytes, codes),
        5 => unpack_bits::<5>(bytes, codes),
        6 => unpack_bits::<6>(bytes, codes),
        8 => codes.copy_from_slice(bytes),
        _ => unreachable!("settings have no other number of bits"),
    }
}

/// Eight codes fill `BITS` whole bytes, which fit a u64.
fn unpack_bits<const BITS: usize>(bytes: &[u8], codes: &mut [u8]) {
    let mask = (1 << BITS) - 1;
    for (bytes, codes) in bytes.chunks_exact(BITS).zip(codes.chunks_exact_mut(8)) {
        let mut word = [0; 8];
        word[..BITS].copy_from_slice(bytes);
        let mut word = u64::from_le_bytes(word);
        for code in codes {
            *code = (word & mask) as u8;
            word >>= BITS;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_every_width_come_back() {
        for bits in [2, 3, 4, 5, 6, 8] {
            let expected: Vec<u8> = (0..64_u32).map(|i| (i * 37 % (1 << bits)) as u8).collect();
            let mut bytes = vec![0_u8; 64 * bits / 8];
            for (index, code) in expected.iter().enumerate() {
                for bit in (0..bits).filter(|bit| code >> bit & 1 == 1) {
                    let at = index * bits + bit;
                    bytes[at / 8] |= 1 << (at % 8);
                }
            }
            let mut codes = vec![0xff; 64];
            unpack(bits, &bytes, &mut codes);
            assert_eq!(codes, expected, "{bits} bits");
        }
    }
}
