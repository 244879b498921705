//! The configuration of a model, in one vocabulary: the keys of `config.json`.
//!
//! A GGUF file says the same in other words; its metadata is translated to these keys when it is
//! opened, so that a model reads its configuration once, whatever it came in. Defaults are the
//! model's business: an absent key is `None` here.

use std::collections::HashMap;
use std::fmt;

use serde_json::{Map, Value};

use super::rope::Rope;
use crate::error::Error;

/// Configuration of a model: canonical keys, and where they come from.
///
/// `null` counts as absent. Keys of a nested `text_config` stand beside the outer ones and win.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    file: String,
    values: Map<String, Value>,
    /// Canonical key to the key of the file, where they differ.
    spelled: HashMap<String, String>,
}

impl ModelConfig {
    /// A configuration from the parsed `config.json` of `file`.
    ///
    /// # Errors
    /// [`Error::Config`] if it is not an object.
    pub fn from_json(file: impl Into<String>, json: Value) -> Result<ModelConfig, Error> {
        let file = file.into();
        let Value::Object(mut values) = json else {
            return Err(Error::format(file, "config", "a JSON object", kind(&json)));
        };
        if let Some(Value::Object(text)) = values.remove("text_config") {
            values.extend(text);
        }
        values.retain(|_, value| !value.is_null());
        Ok(ModelConfig { file, values, spelled: HashMap::new() })
    }

    /// A configuration under canonical keys, read from other ones: `spelled` maps a canonical key
    /// to the key that `file` has for it.
    pub(crate) fn translated(
        file: String,
        values: Map<String, Value>,
        spelled: HashMap<String, String>,
    ) -> ModelConfig {
        ModelConfig { file, values, spelled }
    }

    /// The same with `defaults` for the keys it does not have: what `transformers` assumes for an
    /// architecture, and configurations on the hub leave out.
    pub(crate) fn with_defaults(&self, defaults: &[(&str, Value)]) -> ModelConfig {
        let mut config = self.clone();
        for (key, value) in defaults {
            config.values.entry(*key).or_insert_with(|| value.clone());
        }
        config
    }

    /// The file the configuration comes from.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// All keys and values.
    pub fn values(&self) -> &Map<String, Value> {
        &self.values
    }

    /// The value of a key.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// What the checkpoint says it is: `model_type`.
    ///
    /// # Errors
    /// [`Error::Config`] if absent or not a string.
    pub fn model_type(&self) -> Result<&str, Error> {
        self.string("model_type")?.ok_or_else(|| self.absent("model_type", "an architecture"))
    }

    /// A count.
    ///
    /// # Errors
    /// [`Error::Config`] if it is there and no non-negative integer.
    pub fn count(&self, key: &str) -> Result<Option<usize>, Error> {
        self.typed(key, "a non-negative integer", |value| {
            value.as_u64().and_then(|value| usize::try_from(value).ok())
        })
    }

    /// A count that the model cannot do without, at least one.
    ///
    /// # Errors
    /// [`Error::Config`] if it is absent, zero or no integer.
    pub fn required_count(&self, key: &str) -> Result<usize, Error> {
        match self.count(key)? {
            Some(0) => Err(self.error(key, "a positive integer", "0")),
            Some(value) => Ok(value),
            None => Err(self.absent(key, "a positive integer")),
        }
    }

    /// A finite number.
    ///
    /// # Errors
    /// [`Error::Config`] if it is there and no number.
    pub fn number(&self, key: &str) -> Result<Option<f64>, Error> {
        self.typed(key, "a number", Value::as_f64)
    }

    /// A flag.
    ///
    /// # Errors
    /// [`Error::Config`] if it is there and neither `true` nor `false`.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, Error> {
        self.typed(key, "true or false", Value::as_bool)
    }

    /// A string.
    ///
    /// # Errors
    /// [`Error::Config`] if it is there and no string.
    pub fn string(&self, key: &str) -> Result<Option<&str>, Error> {
        self.typed(key, "a string", Value::as_str)
    }

    /// A list of strings, such as `layer_types`.
    ///
    /// # Errors
    /// [`Error::Config`] if it is there and no list of strings.
    pub fn strings(&self, key: &str) -> Result<Option<Vec<&str>>, Error> {
        self.typed(key, "a list of strings", |value| {
            value.as_array()?.iter().map(Value::as_str).collect()
        })
    }

    /// Token ids, given as one or as a list; empty if absent.
    ///
    /// # Errors
    /// [`Error::Config`] if it is there and no token id.
    pub fn token_ids(&self, key: &str) -> Result<Vec<u32>, Error> {
        let ids = self.typed(key, "a token id or a list of them", token_ids)?;
        Ok(ids.unwrap_or_default())
    }

    /// The rotary embedding, of the layers of `layer_type` where the checkpoint tells them apart.
    ///
    /// # Errors
    /// [`Error::Config`] for a scaling that is not known, or lacks a parameter.
    pub fn rope(&self, layer_type: Option<&str>) -> Result<Rope, Error> {
        Rope::from_config(self, layer_type, None)
    }

    /// As [`rope`](Self::rope), with the base of an architecture where none is given.
    ///
    /// # Errors
    /// As for [`rope`](Self::rope).
    pub(crate) fn rope_or(
        &self,
        layer_type: Option<&str>,
        theta_default: f64,
    ) -> Result<Rope, Error> {
        Rope::from_config(self, layer_type, Some(theta_default))
    }

    /// An error about `key`, naming the file and the key as the file spells it.
    pub fn error(&self, key: &str, expected: impl fmt::Display, found: impl fmt::Display) -> Error {
        Error::Config {
            file: self.file.clone(),
            key: self.spelled.get(key).map_or(key, String::as_str).to_string(),
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    fn absent(&self, key: &str, expected: &str) -> Error {
        self.error(key, expected, "nothing")
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        match self.values.get(key) {
            None => Ok(None),
            Some(value) => match read(value) {
                Some(value) => Ok(Some(value)),
                None => Err(self.error(key, expected, excerpt(value))),
            },
        }
    }
}

/// Token ids, given as one or as a list.
pub(crate) fn token_ids(value: &Value) -> Option<Vec<u32>> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(list) => list.iter().map(id).collect(),
        one => id(one).map(|id| vec![id]),
    }
}

/// The start of a value, short enough for a message.
pub(crate) fn excerpt(value: &Value) -> String {
    const CHARS_MAX: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// What kind of JSON a value is.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(json: Value) -> ModelConfig {
        ModelConfig::from_json("config.json", json).unwrap()
    }

    #[test]
    fn a_nested_text_config_wins_and_null_is_absent() {
        let config = config(json!({
            "hidden_size": 1, "head_dim": null,
            "text_config": {"hidden_size": 8, "model_type": "llama"},
        }));
        assert_eq!(config.required_count("hidden_size").unwrap(), 8);
        assert_eq!(config.count("head_dim").unwrap(), None);
        assert_eq!(config.model_type().unwrap(), "llama");
    }

    #[test]
    fn token_ids_come_alone_or_in_lists() {
        let config = config(json!({"eos_token_id": [2, 7], "bos_token_id": 1, "bad": [-1]}));
        assert_eq!(config.token_ids("eos_token_id").unwrap(), [2, 7]);
        assert_eq!(config.token_ids("bos_token_id").unwrap(), [1]);
        assert!(config.token_ids("pad_token_id").unwrap().is_empty());
        assert!(config.token_ids("bad").is_err());
    }

    #[test]
    fn a_wrong_type_names_file_key_and_both_values() {
        let error = config(json!({"hidden_size": "wide"})).required_count("hidden_size");
        assert_eq!(
            error.unwrap_err().to_string(),
            "config.json: key hidden_size: expected a non-negative integer, found \"wide\""
        );
        let error = config(json!({})).required_count("hidden_size").unwrap_err();
        assert!(error.to_string().ends_with("found nothing"));
    }
}
