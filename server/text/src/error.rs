//! The error type of this crate. Chat template errors have their own type
//! ([`TemplateError`](crate::TemplateError)), because they carry a line of the template.

/// Why a tokenizer could not be built or used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// `tokenizer.json` or `tokenizer_config.json` does not parse or contradicts itself.
    #[error("{file}: {reason}")]
    File {
        /// Which file, by its conventional name.
        file: &'static str,
        /// What was expected and what was found.
        reason: String,
    },
    /// A vocabulary from GGUF metadata contradicts itself.
    #[error("vocabulary: {0}")]
    Vocabulary(String),
    /// GGUF metadata names a tokenizer model that is not built.
    #[error("tokenizer model {found:?} is not supported, expected one of: {known}")]
    UnknownModel {
        /// The name found in `tokenizer.ggml.model`.
        found: String,
        /// The names that are supported.
        known: String,
    },
    /// GGUF metadata names a pre-tokenizer that is not known.
    #[error("pre-tokenizer {found:?} is not known, expected one of: {known}")]
    UnknownPreTokenizer {
        /// The name found in `tokenizer.ggml.pre`.
        found: String,
        /// The names that are known.
        known: String,
    },
    /// Text could not be turned into tokens.
    #[error("text cannot be tokenized: {0}")]
    Encode(String),
    /// A token id is not in the vocabulary.
    #[error("token id {id} is outside of the vocabulary of {size} tokens")]
    UnknownToken {
        /// The id asked for.
        id: u32,
        /// One more than the largest id.
        size: usize,
    },
    /// More stop strings than allowed.
    #[error("{found} stop strings given, at most {max} are allowed")]
    TooManyStops {
        /// How many were given.
        found: usize,
        /// The limit.
        max: usize,
    },
    /// A stop string is empty.
    #[error("stop string {index} is empty")]
    EmptyStop {
        /// Position in the request.
        index: usize,
    },
    /// A stop string is longer than allowed.
    #[error("stop string {index} has {found} bytes, at most {max} are allowed")]
    StopTooLong {
        /// Position in the request.
        index: usize,
        /// Its length in bytes.
        found: usize,
        /// The limit in bytes.
        max: usize,
    },
}
