//! The tokenizer: text to token ids and ids to the bytes they stand for. Built from a
//! `tokenizer.json` or from a GGUF vocabulary; turning a stream of ids into text is the
//! [`Detokenizer`]'s part.

mod byte_level;
mod config;
mod export;
mod gguf;
mod hugging_face;
mod marks;
mod merges;
mod patterns;
mod pipeline;
mod pre_tokenizer;
mod sentencepiece;
mod splitter;
pub(crate) mod vocabulary;
mod words;

use std::sync::Arc;

pub use config::TokenizerConfig;
pub use gguf::{GgufVocabulary, MAX_GGUF_TOKENS};
pub use marks::MarkedIds;

use crate::detokenizer::{DetokenizeOptions, Detokenizer};
use crate::error::TextError;
use gguf::SentencePieceEncoder;
use pipeline::Pipeline;
use vocabulary::Vocabulary;

/// A checkpoint's tokenizer. Immutable and shared between threads.
#[derive(Debug)]
pub struct Tokenizer {
    vocabulary: Arc<Vocabulary>,
    encoder: Encoder,
    /// Ids before a prompt, as the checkpoint says (BOS).
    prefix: Vec<u32>,
    /// Ids after a prompt, as the checkpoint says (EOS).
    suffix: Vec<u32>,
    bos: Option<u32>,
    eos: Option<u32>,
}

#[derive(Debug)]
pub(crate) enum Encoder {
    Pipeline(Box<Pipeline>),
    SentencePiece(Box<SentencePieceEncoder>),
}

/// What [`Tokenizer::encode`] does beside cutting text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Put the tokens around the text that the checkpoint asks for (mostly BOS). Right for a
    /// plain prompt; wrong for a rendered chat, whose template writes them itself.
    pub add_special_tokens: bool,
    /// The text of a special token becomes that token; otherwise it is plain text.
    pub parse_special_tokens: bool,
}

impl Default for EncodeOptions {
    fn default() -> Self {
        Self { add_special_tokens: true, parse_special_tokens: true }
    }
}

impl EncodeOptions {
    /// For text that a chat template rendered.
    pub const CHAT: Self = Self { add_special_tokens: false, parse_special_tokens: true };
}

impl Tokenizer {
    /// Builds the tokenizer of a Hugging Face checkpoint from the bytes of its `tokenizer.json`
    /// and the facts of its `tokenizer_config.json`.
    ///
    /// # Errors
    /// [`TextError::File`] if the file does not parse, contradicts itself or uses a decoder
    /// that is neither byte-level nor SentencePiece's.
    pub fn from_tokenizer_json(json: &[u8], config: &TokenizerConfig) -> Result<Self, TextError> {
        hugging_face::build(json, config)
    }

    /// Builds the tokenizer of a GGUF checkpoint.
    ///
    /// # Errors
    /// [`TextError::Vocabulary`] if the lists contradict each other (repeated tokens, merges of
    /// absent tokens, ids out of range), [`TextError::UnknownModel`] and
    /// [`TextError::UnknownPreTokenizer`] for names that are not known.
    pub fn from_gguf(vocabulary: &GgufVocabulary) -> Result<Self, TextError> {
        gguf::build(vocabulary)
    }

    pub(crate) fn new(vocabulary: Vocabulary, encoder: Encoder) -> Self {
        Self {
            vocabulary: Arc::new(vocabulary),
            encoder,
            prefix: Vec::new(),
            suffix: Vec::new(),
            bos: None,
            eos: None,
        }
    }

    pub(crate) fn with_frame(self, prefix: Vec<u32>, suffix: Vec<u32>) -> Self {
        Self { prefix, suffix, ..self }
    }

    pub(crate) fn with_ends(self, bos: Option<u32>, eos: Option<u32>) -> Self {
        Self { bos, eos, ..self }
    }

    /// Turns text into token ids. Work and memory are about linear in the text's length, also
    /// for long runs of one character; the caller bounds the length. Bytes that the vocabulary
    /// has neither a token nor an unknown token for are left out, as the reference
    /// implementations do it: SmolLM2's lacks some control characters.
    ///
    /// # Errors
    /// [`TextError::Encode`] if a pre-tokenizer with look-around exhausts its limits.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Result<Vec<u32>, TextError> {
        let ids = match &self.encoder {
            Encoder::Pipeline(pipeline) => pipeline.encode(text, options.parse_special_tokens)?,
            Encoder::SentencePiece(encoder) => {
                encoder.encode(text, options.parse_special_tokens).ids
            }
        };
        if !options.add_special_tokens || (self.prefix.is_empty() && self.suffix.is_empty()) {
            return Ok(ids);
        }
        Ok([&self.prefix[..], &ids, &self.suffix].concat())
    }

    /// The same ids as [`encode`](Self::encode), and for each of `marks`, bytes of `text` in any
    /// order, how many of them stand for text before it. A mark that a token's text goes across
    /// counts as that token's start, since there is no place between tokens where it is; one at
    /// the text's end comes before the tokens that the checkpoint puts there (EOS).
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_marked(
        &self,
        text: &str,
        options: EncodeOptions,
        marks: &[usize],
    ) -> Result<MarkedIds, TextError> {
        if marks.is_empty() {
            return Ok(MarkedIds { ids: self.encode(text, options)?, offsets: Vec::new() });
        }
        let tokens = match &self.encoder {
            Encoder::Pipeline(pipeline) => {
                pipeline.encode_with_ends(text, options.parse_special_tokens)?
            }
            Encoder::SentencePiece(encoder) => encoder.encode(text, options.parse_special_tokens),
        };
        let mut offsets = tokens.offsets(marks);
        if !options.add_special_tokens {
            return Ok(MarkedIds { ids: tokens.ids, offsets });
        }
        for offset in &mut offsets {
            *offset += self.prefix.len();
        }
        Ok(MarkedIds { ids: [&self.prefix[..], &tokens.ids, &self.suffix].concat(), offsets })
    }

    /// The text of a whole sequence of ids, invalid UTF-8 replaced by U+FFFD. A leading space
    /// that SentencePiece added is removed; special tokens are left out if `skip_special`.
    ///
    /// # Errors
    /// [`TextError::UnknownToken`] for an id outside of the vocabulary.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TextError> {
        let mut detokenizer =
            self.detokenizer(DetokenizeOptions { skip_special, start_of_text: true });
        let mut text = String::new();
        for &id in ids {
            self.piece(id)?;
            text.push_str(&detokenizer.push(id));
        }
        text.push_str(&detokenizer.finish());
        Ok(text)
    }

    /// A detokenizer for one stream of ids of this tokenizer.
    #[must_use]
    pub fn detokenizer(&self, options: DetokenizeOptions) -> Detokenizer {
        Detokenizer::new(Arc::clone(&self.vocabulary), options)
    }

    /// The bytes that a token stands for: not always UTF-8 by themselves, empty for an id that
    /// the vocabulary leaves out.
    ///
    /// # Errors
    /// [`TextError::UnknownToken`] for an id outside of the vocabulary.
    pub fn piece(&self, id: u32) -> Result<&[u8], TextError> {
        let size = self.vocabulary.size();
        self.vocabulary.piece(id).ok_or(TextError::UnknownToken { id, size })
    }

    /// The bytes of each token.
    ///
    /// # Errors
    /// [`TextError::UnknownToken`] for an id outside of the vocabulary.
    pub fn pieces(&self, ids: &[u32]) -> Result<Vec<Vec<u8>>, TextError> {
        ids.iter().map(|&id| self.piece(id).map(<[u8]>::to_vec)).collect()
    }

    /// One more than the largest token id. The model's logits may be wider (padding).
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.size()
    }

    /// How many ids below [`vocab_size`](Self::vocab_size) no token has.
    #[must_use]
    pub fn unused_ids(&self) -> usize {
        self.vocabulary.holes()
    }

    /// The id of a token by its name in the vocabulary file.
    #[must_use]
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.vocabulary.id(token)
    }

    /// The token that begins a sequence.
    #[must_use]
    pub fn bos_id(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a sequence. `generation_config.json` may name more.
    #[must_use]
    pub fn eos_id(&self) -> Option<u32> {
        self.eos
    }

    /// True for control tokens: those left out of the text that users see.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        self.vocabulary.is_special(id)
    }
}

#[cfg(test)]
mod tests;
