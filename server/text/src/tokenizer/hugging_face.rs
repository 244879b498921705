//! A tokenizer from the bytes of `tokenizer.json`. The file's post-processor decides which
//! tokens frame a prompt; `tokenizer_config.json` is asked only where the file has none.

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::Deserialize;
use serde_json::Value;

use crate::error::TextError;
use crate::tokenizer::config::TokenizerConfig;
use crate::tokenizer::pipeline::{Pipeline, frame_of};
use crate::tokenizer::pre_tokenizer::PreTokenizer;
use crate::tokenizer::vocabulary::{Spelling, Vocabulary};
use crate::tokenizer::{Encoder, Tokenizer};

/// Largest id a file may give to a token: real vocabularies stay below 2^18, and ids without a
/// token cost memory.
const MAX_TOKEN_ID: u32 = (1 << 22) - 1;

fn broken(reason: impl Into<String>) -> TextError {
    TextError::File { file: "tokenizer.json", reason: reason.into() }
}

/// Builds the tokenizer of a Hugging Face checkpoint.
pub(crate) fn build(json: &[u8], config: &TokenizerConfig) -> Result<Tokenizer, TextError> {
    let outline: Outline = serde_json::from_slice(json).map_err(|e| broken(e.to_string()))?;
    let decoding = Decoding::of(outline.decoder.as_ref())?;
    // The library trusts its files here and there (merges longer than any token, for one).
    let library = catch_unwind(AssertUnwindSafe(|| tokenizers::Tokenizer::from_bytes(json)))
        .map_err(|_| broken("the vocabulary and the merges contradict each other"))?
        .map_err(|e| broken(e.to_string()))?;
    for DeclaredToken { id, content } in &outline.added_tokens {
        // The library numbers added tokens by itself and only logs where the file disagrees.
        if let Some(given) = library.token_to_id(content).filter(|given| given != id) {
            let reason = format!("added token {content:?} has id {id}, expected {given}");
            return Err(broken(reason));
        }
    }
    let vocabulary = vocabulary_of(&library, &decoding)?;
    let pre_tokenizer = PreTokenizer::from_library(library.get_pre_tokenizer())
        .map_err(|e| broken(format!("pre_tokenizer: {e}")))?;

    let id = |text: &Option<String>| text.as_deref().and_then(|text| vocabulary.id(text));
    let (bos, eos) = (id(&config.bos_token), id(&config.eos_token));
    let (prefix, suffix) = match library.get_post_processor() {
        Some(post_processor) => frame_of(post_processor)?,
        None => (
            asked_for("bos", config.add_bos_token, &config.bos_token, bos)?,
            asked_for("eos", config.add_eos_token, &config.eos_token, eos)?,
        ),
    };
    let pipeline = Pipeline::new(
        library.get_added_vocabulary().clone(),
        library.get_normalizer().cloned(),
        pre_tokenizer,
        library.get_model().clone(),
    );
    Ok(Tokenizer::new(vocabulary, Encoder::Pipeline(Box::new(pipeline)))
        .with_frame(prefix, suffix)
        .with_ends(bos, eos))
}

/// The token that `tokenizer_config.json` puts before or after prompts, if it does.
fn asked_for(
    name: &str,
    add: Option<bool>,
    text: &Option<String>,
    id: Option<u32>,
) -> Result<Vec<u32>, TextError> {
    match (add, id) {
        (Some(true), Some(id)) => Ok(vec![id]),
        (Some(true), None) => Err(broken(format!(
            "has no token {:?}, but tokenizer_config.json says add_{name}_token",
            text.as_deref().unwrap_or_default()
        ))),
        _ => Ok(Vec::new()),
    }
}

fn vocabulary_of(
    library: &tokenizers::Tokenizer,
    decoding: &Decoding,
) -> Result<Vocabulary, TextError> {
    let added = library.get_added_vocabulary().get_added_tokens_decoder();
    let learned_tokens = library.get_vocab(false);
    let mut tokens: Vec<(u32, String)> =
        learned_tokens.into_iter().map(|(token, id)| (id, token)).collect();
    tokens.retain(|(id, _)| !added.contains_key(id));
    let learned = tokens.len();
    tokens.extend(added.iter().map(|(id, token)| (*id, token.content.clone())));
    if let Some((id, token)) = tokens.iter().find(|(id, _)| *id > MAX_TOKEN_ID) {
        return Err(broken(format!(
            "token {token:?} has id {id}, expected at most {MAX_TOKEN_ID}"
        )));
    }
    let mut order: Vec<usize> = (0..tokens.len()).collect();
    order.sort_unstable_by_key(|&index| tokens[index].0);
    let mut vocabulary = Vocabulary::new(decoding.strip_leading_space);
    for index in order {
        let (id, token) = &tokens[index];
        if (*id as usize) < vocabulary.size() {
            return Err(broken(format!("token {token:?} has id {id}, which another token has")));
        }
        while vocabulary.size() < *id as usize {
            vocabulary.push_hole();
        }
        let special = added.get(id).is_some_and(|token| token.special);
        // Added tokens are plain text in a byte-level vocabulary.
        let plain = index >= learned && decoding.spelling == Spelling::ByteLevel;
        let bytes = if plain { token.clone().into_bytes() } else { decoding.spelling.bytes(token) };
        vocabulary.push(token, &bytes, special);
    }
    Ok(vocabulary)
}

/// The part of the file that the library keeps to itself.
#[derive(Deserialize)]
struct Outline {
    decoder: Option<Value>,
    #[serde(default)]
    added_tokens: Vec<DeclaredToken>,
}

#[derive(Deserialize)]
struct DeclaredToken {
    id: u32,
    content: String,
}

/// How ids become text, from the file's `decoder`.
#[derive(Debug, PartialEq, Eq)]
struct Decoding {
    spelling: Spelling,
    strip_leading_space: bool,
}

impl Decoding {
    fn of(decoder: Option<&Value>) -> Result<Self, TextError> {
        let Some(decoder) = decoder.filter(|d| !d.is_null()) else {
            return Err(broken(
                "decoder: expected ByteLevel or a SentencePiece decoder, found none",
            ));
        };
        let single = std::slice::from_ref(decoder);
        let steps = match kind(decoder) {
            "Sequence" => decoder.get("decoders").and_then(Value::as_array).map_or(single, |d| d),
            _ => single,
        };
        let (mut byte_level, mut word_mark, mut byte_tokens, mut strip) =
            (false, false, false, false);
        for step in steps {
            match kind(step) {
                "ByteLevel" => byte_level = true,
                "Replace" if is_word_mark(step) => word_mark = true,
                "Metaspace" => {
                    word_mark = true;
                    strip |= step.get("prepend_scheme").and_then(Value::as_str) != Some("never")
                        && step.get("add_prefix_space") != Some(&Value::Bool(false));
                }
                "ByteFallback" => byte_tokens = true,
                "Fuse" => {}
                "Strip" if is_one_leading_space(step) => strip = true,
                other => return Err(broken(format!("decoder: {other} is not supported: {step}"))),
            }
        }
        match (byte_level, word_mark) {
            (true, false) if !byte_tokens && !strip => {
                Ok(Self { spelling: Spelling::ByteLevel, strip_leading_space: false })
            }
            (false, true) => Ok(Self {
                spelling: Spelling::SentencePiece { byte_tokens },
                strip_leading_space: strip,
            }),
            _ => Err(broken(format!("decoder: this combination is not supported: {decoder}"))),
        }
    }
}

fn kind(step: &Value) -> &str {
    step.get("type").and_then(Value::as_str).unwrap_or("a step without type")
}

fn is_word_mark(step: &Value) -> bool {
    step.pointer("/pattern/String").and_then(Value::as_str) == Some("\u{2581}")
        && step.get("content").and_then(Value::as_str) == Some(" ")
}

fn is_one_leading_space(step: &Value) -> bool {
    let number = |key: &str| step.get(key).and_then(Value::as_u64);
    step.get("content").and_then(Value::as_str) == Some(" ")
        && (number("start"), number("stop")) == (Some(1), Some(0))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tokenizer(model: &Value, decoder: &Value) -> Result<Tokenizer, TextError> {
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": null, "pre_tokenizer": null, "post_processor": null,
            "decoder": decoder, "model": model,
        });
        build(file.to_string().as_bytes(), &TokenizerConfig::default())
    }

    fn byte_level() -> Value {
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true})
    }

    #[test]
    fn decoders_of_both_families_are_recognised() {
        let llama = json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
        let found = Decoding::of(Some(&llama)).unwrap();
        assert_eq!(found.spelling, Spelling::SentencePiece { byte_tokens: true });
        assert!(found.strip_leading_space);
        assert_eq!(Decoding::of(Some(&byte_level())).unwrap().spelling, Spelling::ByteLevel);
        for other in
            [json!({"type": "WordPiece"}), json!(null), json!({"type": "Sequence", "decoders": []})]
        {
            assert!(Decoding::of(Some(&other)).is_err(), "{other}");
        }
    }

    #[test]
    fn merges_that_contradict_the_vocabulary_are_an_error() {
        let good = json!({"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]});
        assert_eq!(tokenizer(&good, &byte_level()).unwrap().vocab_size(), 3);
        for merges in [json!(["ab ab"]), json!(["a c"]), json!([["a", "b", "c"]]), json!([1])] {
            let model =
                json!({"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": merges});
            let error = tokenizer(&model, &byte_level()).unwrap_err();
            assert!(error.to_string().starts_with("tokenizer.json: "), "{error}");
        }
    }

    #[test]
    fn an_enormous_id_costs_no_memory() {
        let model = json!({"type": "BPE", "vocab": {"a": 4_000_000_000_u32}, "merges": []});
        let error = tokenizer(&model, &byte_level()).unwrap_err();
        assert!(error.to_string().contains("4000000000"), "{error}");
    }

    #[test]
    fn an_id_that_two_tokens_share_is_an_error() {
        let model = json!({"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []});
        assert!(tokenizer(&model, &byte_level()).is_err());
    }
}
