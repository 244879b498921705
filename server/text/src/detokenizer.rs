//! Ids to text as they are generated: only complete UTF-8 leaves, nothing is decoded twice and
//! no byte is lost. What ends the text (stop strings) is not decided here.

use std::sync::Arc;

use crate::tokenizer::vocabulary::Vocabulary;

/// How a stream of ids becomes text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DetokenizeOptions {
    /// Leave out special tokens (BOS, end of turn and the like).
    pub skip_special: bool,
    /// The first id begins a text, so a space that SentencePiece put before the first word is
    /// taken off. False for a completion, which continues its prompt.
    pub start_of_text: bool,
}

impl Default for DetokenizeOptions {
    fn default() -> Self {
        Self { skip_special: true, start_of_text: false }
    }
}

/// The state of one stream: at most the three bytes of a character that is not complete.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    vocabulary: Arc<Vocabulary>,
    skip_special: bool,
    strip_next_space: bool,
    held: Vec<u8>,
}

impl Detokenizer {
    pub(crate) fn new(vocabulary: Arc<Vocabulary>, options: DetokenizeOptions) -> Self {
        let strip_next_space = options.start_of_text && vocabulary.strips_leading_space();
        Self { vocabulary, skip_special: options.skip_special, strip_next_space, held: Vec::new() }
    }

    /// The text that `id` completes: empty while a character is not complete. Invalid UTF-8
    /// becomes U+FFFD as soon as no further byte can mend it. An id outside of the vocabulary
    /// (a model's logits may be wider) stands for nothing.
    pub fn push(&mut self, id: u32) -> String {
        if self.skip_special && self.vocabulary.is_special(id) {
            return String::new();
        }
        let mut piece = self.vocabulary.piece(id).unwrap_or_default();
        if self.strip_next_space && !piece.is_empty() {
            self.strip_next_space = false;
            piece = piece.strip_prefix(b" ").unwrap_or(piece);
        }
        self.held.extend_from_slice(piece);
        let (text, consumed) = complete_text(&self.held);
        self.held.drain(..consumed);
        text
    }

    /// The rest: the bytes of an incomplete character as U+FFFD. Nothing is held afterwards.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.held).into_owned();
        self.held.clear();
        text
    }

    /// How many bytes are held back for a character that is not complete.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.held.len()
    }
}

/// The text of `bytes` up to an incomplete character at the end, and how many bytes it took.
fn complete_text(bytes: &[u8]) -> (String, usize) {
    let mut text = String::with_capacity(bytes.len());
    let mut done = 0;
    while done < bytes.len() {
        match std::str::from_utf8(&bytes[done..]) {
            Ok(valid) => {
                text.push_str(valid);
                return (text, bytes.len());
            }
            Err(error) => {
                let valid = done + error.valid_up_to();
                text.push_str(&String::from_utf8_lossy(&bytes[done..valid]));
                match error.error_len() {
                    None => return (text, valid),
                    Some(length) => {
                        text.push(char::REPLACEMENT_CHARACTER);
                        done = valid + length;
                    }
                }
            }
        }
    }
    (text, done)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn vocabulary(pieces: &[&[u8]], strip_leading_space: bool) -> Arc<Vocabulary> {
        let mut vocabulary = Vocabulary::new(strip_leading_space);
        for (index, piece) in pieces.iter().enumerate() {
            vocabulary.push(&index.to_string(), piece, *piece == b"<s>");
        }
        Arc::new(vocabulary)
    }

    fn all_bytes_and_words() -> Arc<Vocabulary> {
        let singles: Vec<[u8; 1]> = (0..=255).map(|b| [b]).collect();
        let mut pieces: Vec<&[u8]> = singles.iter().map(|b| &b[..]).collect();
        pieces.extend([&b" the"[..], "\u{1f600}".as_bytes(), b"\xf0\x9f", b"\x98\x80x", b"<s>"]);
        vocabulary(&pieces, true)
    }

    proptest! {
        #[test]
        fn the_stream_equals_the_lossy_text_of_all_bytes(
            ids in prop::collection::vec(prop_oneof![0_u32..265, 0xc0_u32..0x100, 256_u32..261], 0..60),
            skip_special: bool,
        ) {
            let vocabulary = all_bytes_and_words();
            let options = DetokenizeOptions { skip_special, start_of_text: false };
            let mut detokenizer = Detokenizer::new(Arc::clone(&vocabulary), options);
            let mut text = String::new();
            let mut bytes = Vec::new();
            for &id in &ids {
                text.push_str(&detokenizer.push(id));
                prop_assert!(detokenizer.held_bytes() <= 3);
                if !(skip_special && vocabulary.is_special(id)) {
                    bytes.extend_from_slice(vocabulary.piece(id).unwrap_or_default());
                }
            }
            text.push_str(&detokenizer.finish());
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }
    }

    #[test]
    fn a_character_leaves_when_its_last_byte_comes() {
        let mut detokenizer = all_bytes_and_words_stream();
        assert_eq!(detokenizer.push(258), "");
        assert_eq!(detokenizer.push(259), "\u{1f600}x");
        assert_eq!(detokenizer.finish(), "");
    }

    fn all_bytes_and_words_stream() -> Detokenizer {
        Detokenizer::new(all_bytes_and_words(), DetokenizeOptions::default())
    }

    #[test]
    fn an_incomplete_character_is_replaced_at_the_end_and_when_it_cannot_be_mended() {
        let mut detokenizer = all_bytes_and_words_stream();
        assert_eq!(detokenizer.push(258), "");
        assert_eq!(detokenizer.push(u32::from(b'a')), "\u{fffd}a");
        assert_eq!(detokenizer.push(0xe4), "");
        assert_eq!(detokenizer.finish(), "\u{fffd}");
    }

    #[test]
    fn the_leading_space_goes_only_at_the_start_of_a_text() {
        let words = vocabulary(&[b"<s>", b" the", b" "], true);
        let text = |options: DetokenizeOptions, ids: &[u32]| {
            let mut detokenizer = Detokenizer::new(Arc::clone(&words), options);
            ids.iter().map(|&id| detokenizer.push(id)).collect::<String>()
        };
        let start = DetokenizeOptions { skip_special: true, start_of_text: true };
        assert_eq!(text(start, &[0, 1, 1]), "the the");
        assert_eq!(text(start, &[2, 1]), " the");
        assert_eq!(text(DetokenizeOptions::default(), &[0, 1, 1]), " the the");
        let shown = DetokenizeOptions { skip_special: false, start_of_text: true };
        assert_eq!(text(shown, &[0, 1]), "<s> the");
    }
}
