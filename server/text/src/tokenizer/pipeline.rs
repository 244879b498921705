//! Text to ids with the parts of the `tokenizers` library: added tokens, normalizer,
//! pre-tokenizer, model. Owns the parts, so that special tokens in the text can be parsed or not
//! per call without a second copy of the model.

use std::collections::HashMap;
use std::sync::Mutex;

use tokenizers::{
    AddedVocabulary, Encoding, Model as _, ModelWrapper, NormalizerWrapper, OffsetType,
    PostProcessor as _, PostProcessorWrapper, PreTokenizedString, Token,
};

use crate::error::TextError;
use crate::tokenizer::marks::Tokens;
use crate::tokenizer::pre_tokenizer::PreTokenizer;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Most words whose tokens are remembered.
const WORDS_MAX: usize = 10_000;
/// Longest word of which they are, in bytes.
const WORD_BYTES_MAX: usize = 256;

/// The parts of a `tokenizer.json`-like tokenizer.
#[derive(Debug)]
pub(crate) struct Pipeline {
    /// Finds added tokens in the text, special ones too.
    parsing: AddedVocabulary,
    /// The same with special tokens left as plain text.
    plain: AddedVocabulary,
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: PreTokenizer,
    model: ModelWrapper,
    words: Words,
}

impl Pipeline {
    pub(crate) fn new(
        added: AddedVocabulary,
        normalizer: Option<NormalizerWrapper>,
        pre_tokenizer: PreTokenizer,
        mut model: ModelWrapper,
    ) -> Self {
        if let ModelWrapper::BPE(model) = &mut model {
            model.resize_cache(0);
        }
        let mut parsing = added;
        parsing.set_encode_special_tokens(false);
        let mut plain = parsing.clone();
        plain.set_encode_special_tokens(true);
        Self { parsing, plain, normalizer, pre_tokenizer, model, words: Words::default() }
    }

    /// The ids of `text`, without the tokens that frame a prompt (BOS, EOS).
    pub(crate) fn encode(&self, text: &str, parse_special: bool) -> Result<Vec<u32>, TextError> {
        let parts = self.cut(text, parse_special).map_err(failed)?;
        let splits = parts.get_splits(tokenizers::OffsetReferential::Normalized, OffsetType::Byte);
        let tokens = splits.iter().filter_map(|(_, _, tokens)| tokens.as_ref()).flatten();
        Ok(tokens.map(|t| t.id).collect())
    }

    /// The same ids with the bytes of `text` that they end at, before any normalization.
    pub(crate) fn encode_with_ends(
        &self,
        text: &str,
        parse_special: bool,
    ) -> Result<Tokens, TextError> {
        let parts = self.cut(text, parse_special).map_err(failed)?;
        let encoding = parts.into_encoding(None, 0, OffsetType::Byte).map_err(failed)?;
        let ends = encoding.get_offsets().iter().map(|&(_, end)| end).collect();
        Ok(Tokens { ids: encoding.get_ids().to_vec(), ends })
    }

    fn cut(&self, text: &str, parse_special: bool) -> Result<PreTokenizedString, BoxError> {
        let added = if parse_special { &self.parsing } else { &self.plain };
        let mut parts = added.extract_and_normalize(self.normalizer.as_ref(), text);
        self.pre_tokenizer.apply(&mut parts)?;
        parts.tokenize(|part| self.words.tokens(part.get(), |word| self.model.tokenize(word)))?;
        Ok(parts)
    }
}

/// The tokens of words that were cut before, for most words come again. The library has such a memory
/// for each thread and model, and never frees that of a model that is gone: a server that loads and
/// unloads would grow for ever. This one goes with its model.
#[derive(Debug, Default)]
struct Words(Mutex<HashMap<String, Vec<Token>>>);

impl Words {
    /// The tokens of `word`, from memory or from `cut`. Nobody waits: who finds the memory in use
    /// cuts the word again.
    fn tokens<E>(
        &self,
        word: &str,
        cut: impl FnOnce(&str) -> Result<Vec<Token>, E>,
    ) -> Result<Vec<Token>, E> {
        if let Ok(known) = self.0.try_lock()
            && let Some(tokens) = known.get(word)
        {
            return Ok(tokens.clone());
        }
        let tokens = cut(word)?;
        if word.len() <= WORD_BYTES_MAX
            && let Ok(mut known) = self.0.try_lock()
            && known.len() < WORDS_MAX
        {
            known.insert(word.to_owned(), tokens.clone());
        }
        Ok(tokens)
    }
}

fn failed(error: BoxError) -> TextError {
    TextError::Encode(error.to_string())
}

/// The ids that a post-processor puts before and after a prompt.
pub(crate) fn frame_of(
    post_processor: &PostProcessorWrapper,
) -> Result<(Vec<u32>, Vec<u32>), TextError> {
    // Only the place of the prompt matters, so one stand-in token is enough to see the frame.
    const STAND_IN: u32 = u32::MAX;
    let prompt = Encoding::from_tokens(vec![Token::new(STAND_IN, String::new(), (0, 0))], 0);
    let broken = |reason: String| TextError::File { file: "tokenizer.json", reason };
    let framed = post_processor
        .process(prompt, None, true)
        .map_err(|e| broken(format!("the post-processor fails: {e}")))?;
    let ids = framed.get_ids();
    let place = ids.iter().position(|&id| id == STAND_IN).ok_or_else(|| {
        broken("the post-processor drops the prompt, expected it to frame the prompt".to_owned())
    })?;
    if ids[place + 1..].contains(&STAND_IN) {
        return Err(broken("the post-processor repeats the prompt".to_owned()));
    }
    Ok((ids[..place].to_vec(), ids[place + 1..].to_vec()))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn cut(word: &str) -> Result<Vec<Token>, Infallible> {
        Ok(vec![Token::new(word.len() as u32, word.to_owned(), (0, word.len()))])
    }

    #[test]
    fn a_word_is_cut_once_and_no_more_are_remembered_than_the_bound() {
        let words = Words::default();
        let found = words.tokens("word", cut).unwrap();
        let again = words.tokens("word", |_| -> Result<_, Infallible> { panic!("cut twice") });
        assert_eq!(found, again.unwrap());
        for number in 0..2 * WORDS_MAX {
            words.tokens(&number.to_string(), cut).unwrap();
        }
        words.tokens(&"long".repeat(WORD_BYTES_MAX), cut).unwrap();
        assert_eq!(words.0.lock().unwrap().len(), WORDS_MAX);
    }

    #[test]
    fn a_memory_in_use_makes_nobody_wait() {
        let words = Words::default();
        let held = words.0.lock().unwrap();
        assert_eq!(words.tokens("word", cut).unwrap(), cut("word").unwrap());
        drop(held);
        assert!(words.0.lock().unwrap().is_empty());
    }
}
