//! The byte alphabet of GPT-2: every byte has a printable character, so that a vocabulary of
//! byte strings can be written as text. Bytes that are printable in Latin-1 stand for
//! themselves, the other 68 are moved to U+0100 and up, in order.

/// True for the bytes that stand for themselves.
fn is_itself(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff)
}

/// The byte that `c` stands for, if it stands for one.
pub(crate) fn char_to_byte(c: char) -> Option<u8> {
    let code = u32::from(c);
    if let Ok(byte) = u8::try_from(code) {
        return is_itself(byte).then_some(byte);
    }
    // Above Latin-1 lie the moved bytes, in byte order.
    (0x100..0x144).contains(&code).then(|| match code - 0x100 {
        n @ 0..=0x20 => n as u8,
        n @ 0x21..=0x42 => (n - 0x21 + 0x7f) as u8,
        _ => 0xad,
    })
}

/// The bytes of a vocabulary entry, or `None` if it has a character outside of the alphabet.
pub(crate) fn token_to_bytes(token: &str) -> Option<Vec<u8>> {
    token.chars().map(char_to_byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_one_character() {
        let mut moved = 0x100..;
        for byte in 0..=255_u8 {
            let code = if is_itself(byte) { u32::from(byte) } else { moved.next().unwrap() };
            let c = char::from_u32(code).unwrap();
            assert_eq!(char_to_byte(c), Some(byte), "byte {byte:#x} as {c:?}");
        }
        assert_eq!(moved.start, 0x144);
        assert_eq!(token_to_bytes("\u{120}a\u{10a}"), Some(b" a\n".to_vec()));
    }

    #[test]
    fn characters_outside_of_the_alphabet_stand_for_no_byte() {
        for c in [' ', '\n', '\u{ad}', '\u{144}', '\u{ff5c}', '\u{1f600}'] {
            assert_eq!(char_to_byte(c), None, "{c:?}");
        }
        assert_eq!(token_to_bytes("<\u{ff5c}>"), None);
    }
}
