//! The text of the simulated model: every byte is a token, so that any prompt has one and any
//! answer can be read.

use sconce_models::sim::{BOS_ID, EOS_ID, PAD_ID};
use sconce_text::{ChatTemplate, Tokenizer, TokenizerConfig};
use serde_json::{Map, Value, json};

use super::files::{TextFile, generation_config};
use super::text::ModelText;
use crate::error::CallError;

/// The tokens after the 256 bytes.
const CONTROL_TOKENS: [(u32, &str); 3] =
    [(BOS_ID, "<|begin|>"), (EOS_ID, "<|end|>"), (PAD_ID, "<|pad|>")];

/// A line for each message.
const CHAT_TEMPLATE: &str = "\
{%- for message in messages -%}
{{ message.role }}: {{ message.content }}
{% endfor -%}
{%- if add_generation_prompt -%}assistant: {%- endif -%}";

/// Whether `path` asks for a simulated model.
pub(super) fn is_simulated(path: &str) -> bool {
    path.starts_with(sconce_models::load::SIM_PREFIX)
}

/// The text of every simulated model.
pub(super) fn text() -> Result<ModelText, CallError> {
    let internal = |problem: String| CallError::Internal { problem };
    let tokenizer = Tokenizer::from_tokenizer_json(
        tokenizer_json().to_string().as_bytes(),
        &TokenizerConfig::default(),
    );
    let template = ChatTemplate::new(&[("default".to_owned(), CHAT_TEMPLATE.to_owned())], &[]);
    Ok(ModelText::new(
        tokenizer.map_err(|error| internal(error.to_string()))?,
        template.map_err(|error| internal(error.to_string()))?,
    ))
}

/// The same as files.
pub(super) fn files(eos: &[u32]) -> Vec<TextFile> {
    let config = json!({
        "bos_token": CONTROL_TOKENS[0].1, "eos_token": CONTROL_TOKENS[1].1,
        "pad_token": CONTROL_TOKENS[2].1, "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": false, "tokenizer_class": "PreTrainedTokenizerFast"
    });
    let file = |name, value: Value| TextFile { name, bytes: value.to_string().into_bytes() };
    vec![
        file("tokenizer.json", tokenizer_json()),
        file("tokenizer_config.json", config),
        generation_config(eos),
    ]
}

/// A byte-level vocabulary without merges, in the form of a `tokenizer.json`.
fn tokenizer_json() -> Value {
    let bytes = (0..=u8::MAX).map(|byte| (spelling(byte).to_string(), byte.into()));
    let vocab: Map<_, _> = bytes.collect();
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false
    });
    let control = CONTROL_TOKENS.iter().map(|(id, text)| {
        json!({
            "id": id, "content": text, "special": true, "normalized": false,
            "single_word": false, "lstrip": false, "rstrip": false
        })
    });
    json!({
        "version": "1.0",
        "added_tokens": control.collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": { "type": "BPE", "vocab": vocab, "merges": [] },
    })
}

/// How byte-level vocabularies spell a byte (GPT-2): printable Latin-1 as it is, the others as
/// the characters from U+0100 on, in order.
fn spelling(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return byte.into();
    }
    let before = (0..byte).filter(|&other| !printable(other)).count();
    char::from_u32(0x100 + before as u32).expect("68 characters from U+0100 on exist")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_the_token_of_its_number() {
        let text = text().expect("builds");
        let all: String = "a \n\u{0}\u{7f}\u{ad}\u{1f525}".to_owned();
        let ids = text.encode(&all, true, "text").expect("encodes");
        assert_eq!(ids, all.bytes().map(u32::from).collect::<Vec<_>>());
        assert_eq!(text.decode(&ids, false).expect("decodes"), all);
    }

    #[test]
    fn spaces_are_spelled_as_elsewhere() {
        assert_eq!((spelling(b' '), spelling(b'\n'), spelling(b'a')), ('\u{120}', '\u{10a}', 'a'));
    }
}
