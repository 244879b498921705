//! Text to tokens and back: tokenizer, chat template, streaming detokenizer, stop strings.
//!
//! This crate takes plain data (bytes of `tokenizer.json`, vocabulary lists, JSON messages) and
//! knows nothing of models, devices or the wire. Token ids are `u32`, text is UTF-8.

#![forbid(unsafe_code)]

pub mod chat_template;
mod detokenizer;
mod error;
mod stop;
pub mod tokenizer;

pub use chat_template::{ChatRequest, ChatTemplate, MarkedPrompt, TemplateError};
pub use detokenizer::{DetokenizeOptions, Detokenizer};
pub use error::TextError;
pub use stop::{MAX_STOP_BYTES, MAX_STOPS, StopMatcher};
pub use tokenizer::{EncodeOptions, GgufVocabulary, MarkedIds, Tokenizer, TokenizerConfig};
