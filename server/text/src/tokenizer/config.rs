//! Facts from `tokenizer_config.json`: which tokens begin and end a text, and the chat
//! templates. The tokenizer itself is in `tokenizer.json`.

use serde::Deserialize;
use serde_json::Value;

use crate::error::TextError;

/// What this crate needs of `tokenizer_config.json`. Unknown keys are left alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenizerConfig {
    /// The text of the token that begins a sequence.
    pub bos_token: Option<String>,
    /// The text of the token that ends a sequence.
    pub eos_token: Option<String>,
    /// The text of the token for what is unknown.
    pub unk_token: Option<String>,
    /// The text of the padding token.
    pub pad_token: Option<String>,
    /// Whether BOS begins a prompt, where the tokenizer does not decide it by itself.
    pub add_bos_token: Option<bool>,
    /// Whether EOS ends a prompt, where the tokenizer does not decide it by itself.
    pub add_eos_token: Option<bool>,
    /// Chat templates by name, in the file's order; a single one is named `default`.
    pub chat_templates: Vec<(String, String)>,
}

#[derive(Deserialize)]
struct Raw {
    bos_token: Option<TokenText>,
    eos_token: Option<TokenText>,
    unk_token: Option<TokenText>,
    pad_token: Option<TokenText>,
    add_bos_token: Option<bool>,
    add_eos_token: Option<bool>,
    chat_template: Option<Value>,
}

/// A token as plain text or as the object of an added token.
#[derive(Deserialize)]
#[serde(untagged)]
enum TokenText {
    Plain(String),
    Added { content: String },
}

impl From<TokenText> for String {
    fn from(token: TokenText) -> Self {
        match token {
            TokenText::Plain(text) | TokenText::Added { content: text } => text,
        }
    }
}

impl TokenizerConfig {
    /// Reads `tokenizer_config.json`.
    ///
    /// # Errors
    /// [`TextError::File`] if it is no JSON object or a key that is used has another type.
    pub fn from_json(json: &[u8]) -> Result<Self, TextError> {
        let broken = |reason: String| TextError::File { file: "tokenizer_config.json", reason };
        let raw: Raw = serde_json::from_slice(json).map_err(|e| broken(e.to_string()))?;
        let chat_templates = match raw.chat_template {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::String(source)) => vec![("default".to_owned(), source)],
            Some(Value::Array(entries)) => {
                let named = |entry: &Value| {
                    let text = |key: &str| Some(entry.get(key)?.as_str()?.to_owned());
                    Some((text("name")?, text("template")?))
                };
                entries.iter().map(named).collect::<Option<_>>().ok_or_else(|| {
                    broken("chat_template: expected objects with name and template".to_owned())
                })?
            }
            Some(_) => {
                return Err(broken("chat_template: expected a string or a list".to_owned()));
            }
        };
        Ok(Self {
            bos_token: raw.bos_token.map(Into::into),
            eos_token: raw.eos_token.map(Into::into),
            unk_token: raw.unk_token.map(Into::into),
            pad_token: raw.pad_token.map(Into::into),
            add_bos_token: raw.add_bos_token,
            add_eos_token: raw.add_eos_token,
            chat_templates,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_as_text_or_as_objects() {
        let json = br#"{"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "</s>",
            "pad_token": null, "add_bos_token": true, "chat_template": "{{ 1 }}"}"#;
        let config = TokenizerConfig::from_json(json).unwrap();
        assert_eq!(config.bos_token.as_deref(), Some("<s>"));
        assert_eq!(config.eos_token.as_deref(), Some("</s>"));
        assert_eq!((config.pad_token, config.add_bos_token), (None, Some(true)));
        assert_eq!(config.chat_templates, [("default".to_owned(), "{{ 1 }}".to_owned())]);
    }

    #[test]
    fn several_templates_keep_their_names() {
        let json = br#"{"chat_template": [{"name": "default", "template": "a"},
            {"name": "tool_use", "template": "b"}]}"#;
        let names: Vec<_> = TokenizerConfig::from_json(json).unwrap().chat_templates;
        assert_eq!(names[1], ("tool_use".to_owned(), "b".to_owned()));
    }

    #[test]
    fn a_file_of_another_shape_is_refused_by_name() {
        for json in ["[]", "{", r#"{"bos_token": 3}"#, r#"{"chat_template": [1]}"#] {
            let error = TokenizerConfig::from_json(json.as_bytes()).unwrap_err();
            assert!(error.to_string().starts_with("tokenizer_config.json: "), "{error}");
        }
    }
}
