//! The tokens of words that were cut before, for most words come again.
//!
//! The `tokenizers` library has such a memory for each thread and model, and never frees that of a model
//! that is gone: a server that loads and unloads would grow for ever. This one goes with its model, and
//! what it takes is bounded whatever the words are: some 4 MB.

use std::collections::HashMap;
use std::sync::Mutex;

use tokenizers::Token;

/// Most words of a generation.
const WORDS_MAX: usize = 5_000;
/// Most tokens of all words of a generation.
const TOKENS_MAX: usize = 50_000;
/// Longest word that is remembered, in bytes.
const WORD_BYTES_MAX: usize = 256;

/// A token of a word: its id, and the bytes of the word that it is.
type Piece = (u32, u32, u32);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Words(Mutex<Generations>);

/// What was asked for lately, and what was before: when the young generation is full it becomes the old
/// one, and words of that which nobody has asked for again are forgotten.
#[derive(Debug, Default)]
struct Generations {
    young: HashMap<Box<str>, Box<[Piece]>>,
    old: HashMap<Box<str>, Box<[Piece]>>,
    /// Of the young generation.
    tokens: usize,
}

impl Words {
    /// The tokens of `word`, from memory or from `cut`; those from memory have no text. Nobody waits: who
    /// finds the memory in use cuts the word again.
    pub(crate) fn tokens<E>(
        &self,
        word: &str,
        cut: impl FnOnce(&str) -> Result<Vec<Token>, E>,
    ) -> Result<Vec<Token>, E> {
        if word.len() > WORD_BYTES_MAX {
            return cut(word);
        }
        if let Ok(mut generations) = self.0.try_lock()
            && let Some(pieces) = generations.get(word)
        {
            return Ok(pieces.iter().map(token).collect());
        }
        let tokens = cut(word)?;
        if let Ok(mut generations) = self.0.try_lock() {
            generations.insert(word.into(), tokens.iter().map(piece).collect());
        }
        Ok(tokens)
    }
}

impl Generations {
    fn get(&mut self, word: &str) -> Option<&[Piece]> {
        if !self.young.contains_key(word) {
            let (word, pieces) = self.old.remove_entry(word)?;
            self.insert(word, pieces);
        }
        self.young.get(word).map(|pieces| &**pieces)
    }

    fn insert(&mut self, word: Box<str>, pieces: Box<[Piece]>) {
        if self.young.len() >= WORDS_MAX || self.tokens + pieces.len() > TOKENS_MAX {
            self.old = std::mem::take(&mut self.young);
            self.tokens = 0;
        }
        self.tokens += pieces.len();
        // Another thread may have cut the same word meanwhile.
        let before = self.young.insert(word, pieces);
        self.tokens -= before.map_or(0, |before| before.len());
    }
}

fn piece(token: &Token) -> Piece {
    // A word is short.
    (token.id, token.offsets.0 as u32, token.offsets.1 as u32)
}

fn token(&(id, from, to): &Piece) -> Token {
    Token::new(id, String::new(), (from as usize, to as usize))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// A token for each byte.
    fn cut(word: &str) -> Result<Vec<Token>, Infallible> {
        let token = |(at, byte): (usize, u8)| Token::new(byte.into(), String::new(), (at, at + 1));
        Ok(word.bytes().enumerate().map(token).collect())
    }

    fn never(_: &str) -> Result<Vec<Token>, Infallible> {
        panic!("cut twice")
    }

    fn sizes(words: &Words) -> [(usize, usize); 2] {
        let generations = words.0.lock().unwrap();
        [&generations.young, &generations.old]
            .map(|words| (words.len(), words.values().map(|pieces| pieces.len()).sum()))
    }

    #[test]
    fn a_word_is_cut_once() {
        let words = Words::default();
        let found = words.tokens("word", cut).unwrap();
        assert_eq!(words.tokens("word", never).unwrap(), found);
    }

    #[test]
    fn words_that_come_again_are_kept_and_the_others_go() {
        let words = Words::default();
        words.tokens("word", cut).unwrap();
        for number in 0..3 * WORDS_MAX {
            words.tokens(&number.to_string(), cut).unwrap();
            words.tokens("word", never).unwrap();
        }
        assert_eq!(words.tokens("0", |_| Err("again")), Err("again"));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let words = Words::default();
        for number in 0..2 * WORDS_MAX + 10 {
            words.tokens(&number.to_string(), cut).unwrap();
        }
        let [(young, _), (old, _)] = sizes(&words);
        assert_eq!((young, old), (10, WORDS_MAX));

        let words = Words::default();
        for number in 0..1000 {
            words.tokens(&format!("{number:0>width$}", width = WORD_BYTES_MAX), cut).unwrap();
        }
        let [(_, young), (_, old)] = sizes(&words);
        assert!(young <= TOKENS_MAX && old <= TOKENS_MAX && young + old > TOKENS_MAX);
        let before = sizes(&words);
        words.tokens(&"long".repeat(WORD_BYTES_MAX), cut).unwrap();
        assert_eq!(sizes(&words), before, "too long to be remembered");
    }

    #[test]
    fn a_memory_in_use_makes_nobody_wait() {
        let words = Words::default();
        let held = words.0.lock().unwrap();
        assert_eq!(words.tokens("word", cut).unwrap(), cut("word").unwrap());
        drop(held);
        assert_eq!(sizes(&words), [(0, 0); 2]);
    }
}
