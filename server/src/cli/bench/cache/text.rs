//! Prose without end: the sentences of the built-in page in an order that a seed decides, as tokens
//! of the model that is measured.

use sconce_server::models::ModelText;

use crate::cli::error::CliError;

/// Where the sentences come from.
const PAGE: &str = include_str!("../page.txt");
/// Characters that are written for each token that is wanted; a word is rarely cut that small.
const CHARACTERS_PER_TOKEN: usize = 8;

/// A writer of prose that is the same for the same seed.
pub(super) struct Prose<'a> {
    text: &'a ModelText,
    sentences: Vec<String>,
    draw: Draw,
}

impl<'a> Prose<'a> {
    /// A writer for the model of `text`.
    pub(super) fn new(text: &'a ModelText, seed: u64) -> Self {
        let words: Vec<&str> = PAGE.split_whitespace().collect();
        let sentences =
            words.join(" ").split_inclusive(". ").map(|found| found.trim().to_owned()).collect();
        Self { text, sentences, draw: Draw(seed) }
    }

    /// Exactly `count` tokens, which begin with a number that no other text is likely to begin with.
    ///
    /// # Errors
    /// A checkpoint without a tokenizer.
    pub(super) fn write(&mut self, count: usize) -> Result<Vec<u32>, CliError> {
        let mut written = format!("{:08}.", self.draw.below(100_000_000));
        loop {
            while written.len() < count.saturating_mul(CHARACTERS_PER_TOKEN) {
                written.push(' ');
                written += &self.sentences[self.draw.below(self.sentences.len())];
            }
            let tokens = self.text.encode(&written, false, "text");
            let mut tokens = tokens.map_err(|error| CliError::Usage(error.to_string()))?;
            if tokens.len() >= count {
                tokens.truncate(count);
                return Ok(tokens);
            }
            // A sentence or more in a token is what no tokenizer does, so this ends.
            written += &self.sentences.join(" ");
        }
    }
}

/// `tokens` with the one at `index` replaced by another that the text has too.
pub(super) fn with_one_changed(tokens: &[u32], index: usize) -> Vec<u32> {
    let mut changed = tokens.to_vec();
    if let Some(&other) = tokens.iter().find(|&&other| other != tokens[index]) {
        changed[index] = other;
    }
    changed
}

/// Numbers that look random: SplitMix64 (Steele, Lea, Flood 2014).
struct Draw(u64);

impl Draw {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_decides_the_text_and_the_count_its_length() {
        let text = ModelText::open("sim:").expect("the simulated model has a text");
        let write = |seed, count| Prose::new(&text, seed).write(count).expect("has a tokenizer");
        assert_eq!(write(1, 500).len(), 500);
        assert_eq!(write(1, 500), write(1, 500));
        let (one, two) = (write(1, 500), write(2, 500));
        let common = one.iter().zip(&two).take_while(|(a, b)| a == b).count();
        assert!(common < 8, "{common} tokens in common");
    }

    #[test]
    fn one_token_is_changed_and_no_other() {
        assert_eq!(with_one_changed(&[5, 6, 7], 2), [5, 6, 5]);
        assert_eq!(with_one_changed(&[5, 6, 7], 0), [6, 6, 7]);
    }
}
