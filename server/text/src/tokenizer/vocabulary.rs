//! What each token id stands for: its bytes and whether it is special. Shared by the tokenizer
//! and every running detokenizer. How text becomes ids is not here.

use std::collections::HashMap;

use crate::tokenizer::byte_level;

/// Bytes and kind of every token id, and how a text of them begins.
#[derive(Debug, Default)]
pub(crate) struct Vocabulary {
    /// The bytes of all tokens, one after another.
    bytes: Vec<u8>,
    /// `bytes[ends[id - 1]..ends[id]]` are the bytes of `id`.
    ends: Vec<usize>,
    /// Control and unknown tokens: left out of the text that users see.
    special: Vec<bool>,
    /// Ids that no token has (a hole in the numbering).
    holes: usize,
    ids: HashMap<Box<str>, u32>,
    /// SentencePiece writes a space before the first word; the text does not have it.
    strip_leading_space: bool,
}

/// How the vocabulary's entries are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spelling {
    /// GPT-2's byte alphabet.
    ByteLevel,
    /// UTF-8 with U+2581 for a space, and `<0xNN>` for single bytes if `byte_tokens`.
    SentencePiece {
        /// Entries spelled `<0xNN>` are bytes.
        byte_tokens: bool,
    },
}

/// The value of a byte token's spelling `<0xNN>`.
pub(crate) fn byte_token_value(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() != 2 {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}

impl Spelling {
    /// The bytes that `token` puts into the text.
    pub(crate) fn bytes(self, token: &str) -> Vec<u8> {
        match self {
            // An entry with other characters was added as plain text.
            Self::ByteLevel => {
                byte_level::token_to_bytes(token).unwrap_or_else(|| token.as_bytes().to_vec())
            }
            Self::SentencePiece { byte_tokens } => match byte_token_value(token) {
                Some(byte) if byte_tokens => vec![byte],
                _ => token.replace('\u{2581}', " ").into_bytes(),
            },
        }
    }
}

impl Vocabulary {
    /// An empty vocabulary.
    pub(crate) fn new(strip_leading_space: bool) -> Self {
        Self { strip_leading_space, ..Self::default() }
    }

    /// Appends the token with the next id. `token` is its name in the vocabulary file.
    pub(crate) fn push(&mut self, token: &str, bytes: &[u8], special: bool) {
        let id = self.ends.len() as u32;
        self.ids.entry(token.into()).or_insert(id);
        self.bytes.extend_from_slice(bytes);
        self.ends.push(self.bytes.len());
        self.special.push(special);
    }

    /// Appends an id that no token has.
    pub(crate) fn push_hole(&mut self) {
        self.holes += 1;
        self.ends.push(self.bytes.len());
        self.special.push(false);
    }

    /// One more than the largest id.
    pub(crate) fn size(&self) -> usize {
        self.ends.len()
    }

    /// How many ids below [`size`](Self::size) no token has.
    pub(crate) fn holes(&self) -> usize {
        self.holes
    }

    /// The bytes of a token, `None` outside of the vocabulary, empty for a hole.
    pub(crate) fn piece(&self, id: u32) -> Option<&[u8]> {
        let index = id as usize;
        let end = *self.ends.get(index)?;
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        Some(&self.bytes[start..end])
    }

    pub(crate) fn strips_leading_space(&self) -> bool {
        self.strip_leading_space
    }

    pub(crate) fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    pub(crate) fn id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_two_hex_digits_spell_a_byte_token() {
        assert_eq!(byte_token_value("<0x0A>"), Some(10));
        assert_eq!(byte_token_value("<0xff>"), Some(255));
        for other in ["<0x0>", "<0x0AA>", "<0xG0>", "0x0A", "<0x+1>x", ""] {
            assert_eq!(byte_token_value(other), None, "{other}");
        }
    }

    #[test]
    fn holes_are_in_range_and_empty() {
        let mut vocabulary = Vocabulary::new(false);
        vocabulary.push("a", b"a", false);
        vocabulary.push_hole();
        vocabulary.push("<s>", b"<s>", true);
        assert_eq!(vocabulary.size(), 3);
        assert_eq!(vocabulary.holes(), 1);
        assert_eq!(vocabulary.piece(1), Some(&b""[..]));
        assert_eq!(vocabulary.piece(2), Some(&b"<s>"[..]));
        assert_eq!(vocabulary.piece(3), None);
        assert!(vocabulary.is_special(2) && !vocabulary.is_special(9));
    }
}
