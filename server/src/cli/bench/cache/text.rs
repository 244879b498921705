//! Prose without end: the sentences of the built-in page in an order that a seed decides, as tokens
//! of the model that is measured.

use sconce_server::models::ModelText;

use crate::cli::bench::prose::{PAGE, Sentences};
use crate::cli::error::CliError;

/// Characters that are written for each token that is wanted; a word is rarely cut that small.
const CHARACTERS_PER_TOKEN: usize = 8;

/// A writer of prose that is the same for the same seed.
pub(super) struct Prose<'a> {
    text: &'a ModelText,
    sentences: Sentences,
}

impl<'a> Prose<'a> {
    /// A writer for the model of `text`.
    pub(super) fn new(text: &'a ModelText, seed: u64) -> Self {
        Self { text, sentences: Sentences::new(seed) }
    }

    /// Exactly `count` tokens, which begin with a number that no other text is likely to begin with.
    ///
    /// # Errors
    /// A checkpoint without a tokenizer.
    pub(super) fn write(&mut self, count: usize) -> Result<Vec<u32>, CliError> {
        let mut written = self.sentences.opening();
        loop {
            self.sentences.extend(&mut written, count.saturating_mul(CHARACTERS_PER_TOKEN));
            let tokens = self.text.encode(&written, false, "text");
            let mut tokens = tokens.map_err(|error| CliError::Usage(error.to_string()))?;
            if tokens.len() >= count {
                tokens.truncate(count);
                return Ok(tokens);
            }
            // A page or more in a token is what no tokenizer does, so this ends.
            written += PAGE;
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
