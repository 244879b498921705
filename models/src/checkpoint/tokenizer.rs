//! What a checkpoint holds for the conversion between text and tokens, as plain data.
//!
//! Nothing is interpreted here: who builds the tokenizer decides what the fields mean.

use std::path::PathBuf;

/// Where a tokenizer can be built from.
#[derive(Debug, Clone, PartialEq)]
pub enum TokenizerSource {
    /// Files of a Hugging Face directory.
    HuggingFace(HuggingFaceTokenizer),
    /// The metadata of a GGUF file.
    Gguf(Box<GgufTokenizer>),
}

/// The tokenizer files of a Hugging Face directory.
#[derive(Debug, Clone, PartialEq)]
pub struct HuggingFaceTokenizer {
    /// `tokenizer.json`.
    pub tokenizer_json: PathBuf,
    /// The parsed `tokenizer_config.json`; `Null` where there is none.
    pub tokenizer_config: serde_json::Value,
}

/// A tokenizer as GGUF metadata holds it, under `tokenizer.ggml.`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GgufTokenizer {
    /// The file, for messages.
    pub file: String,
    /// `model`: `gpt2` for byte-level BPE, `llama` for SentencePiece.
    pub model: String,
    /// `pre`: name of the pre-tokenizer of a `gpt2` model.
    pub pre: Option<String>,
    /// `tokens`: the text of each token; the index is its id.
    pub tokens: Vec<String>,
    /// `scores`, one for each token; empty if absent.
    pub scores: Vec<f32>,
    /// `token_type`, one for each token: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused,
    /// 6 byte; empty if absent.
    pub token_types: Vec<i32>,
    /// `merges`, first to last, two parts separated by a space; empty if absent.
    pub merges: Vec<String>,
    /// `bos_token_id`.
    pub bos_token_id: Option<u32>,
    /// `eos_token_id`.
    pub eos_token_id: Option<u32>,
    /// `unknown_token_id`.
    pub unknown_token_id: Option<u32>,
    /// `padding_token_id`.
    pub padding_token_id: Option<u32>,
    /// `eot_token_id`: ends a turn.
    pub eot_token_id: Option<u32>,
    /// `eom_token_id`: ends a message.
    pub eom_token_id: Option<u32>,
    /// `add_bos_token`.
    pub add_bos: Option<bool>,
    /// `add_eos_token`.
    pub add_eos: Option<bool>,
    /// `add_space_prefix`.
    pub add_space_prefix: Option<bool>,
    /// `remove_extra_whitespaces`.
    pub remove_extra_whitespaces: Option<bool>,
}

/// Texts of the special tokens that chat templates refer to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Starts a sequence.
    pub bos: Option<String>,
    /// Ends a sequence.
    pub eos: Option<String>,
    /// Stands for what the vocabulary lacks.
    pub unk: Option<String>,
    /// Fills up.
    pub pad: Option<String>,
}

/// The chat templates of a checkpoint, in Jinja.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChatTemplates {
    /// The one that is used where none is asked for by name.
    pub default: Option<String>,
    /// Others by name, such as `tool_use`, in order of name.
    pub named: Vec<(String, String)>,
}
