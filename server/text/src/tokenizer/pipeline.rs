//! Text to ids with the parts of the `tokenizers` library: added tokens, normalizer,
//! pre-tokenizer, model. Owns the parts, so that special tokens in the text can be parsed or not
//! per call without a second copy of the model.

use tokenizers::{
    AddedVocabulary, Encoding, Model as _, ModelWrapper, NormalizerWrapper, OffsetType,
    PostProcessor as _, PostProcessorWrapper, PreTokenizedString, Token,
};

use crate::error::TextError;
use crate::tokenizer::marks::Tokens;
use crate::tokenizer::pre_tokenizer::PreTokenizer;
use crate::tokenizer::words::Words;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

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
