//! The tokenizer and chat templates of a GGUF file, taken out of its metadata.

use super::{Gguf, MetadataArray, MetadataValue};
use crate::checkpoint::tokenizer::{ChatTemplates, GgufTokenizer, SpecialTokens};
use crate::error::Error;

const TEMPLATE: &str = "tokenizer.chat_template";

impl Gguf {
    /// The tokenizer; `None` if the file has none.
    ///
    /// # Errors
    /// [`Error::Config`] if a key has the wrong type, or a list another length than the tokens.
    pub(crate) fn tokenizer(&self) -> Result<Option<GgufTokenizer>, Error> {
        let Some(model) = self.string("tokenizer.ggml.model")? else { return Ok(None) };
        let id = |name: &str| self.unsigned::<u32>(&format!("tokenizer.ggml.{name}"));
        let flag = |name: &str| self.flag(&format!("tokenizer.ggml.{name}"));
        let tokens = self.strings("tokenizer.ggml.tokens")?;
        Ok(Some(GgufTokenizer {
            file: self.file.clone(),
            model: model.to_string(),
            pre: self.string("tokenizer.ggml.pre")?.map(str::to_string),
            scores: self.scores(tokens.len())?,
            token_types: self.token_types(tokens.len())?,
            merges: self.strings("tokenizer.ggml.merges")?,
            tokens,
            bos_token_id: id("bos_token_id")?,
            eos_token_id: id("eos_token_id")?,
            unknown_token_id: id("unknown_token_id")?,
            padding_token_id: id("padding_token_id")?,
            eot_token_id: id("eot_token_id")?,
            eom_token_id: id("eom_token_id")?,
            add_bos: flag("add_bos_token")?,
            add_eos: flag("add_eos_token")?,
            add_space_prefix: flag("add_space_prefix")?,
            remove_extra_whitespaces: flag("remove_extra_whitespaces")?,
        }))
    }

    /// The texts of the special tokens.
    ///
    /// # Errors
    /// [`Error::Config`] if a key has the wrong type.
    pub(crate) fn special_tokens(&self) -> Result<SpecialTokens, Error> {
        let tokens = match self.value("tokenizer.ggml.tokens") {
            Some(MetadataValue::Array(list)) => list.strings().unwrap_or_default(),
            _ => &[],
        };
        let text = |name: &str| -> Result<Option<String>, Error> {
            let id = self.unsigned::<usize>(&format!("tokenizer.ggml.{name}_token_id"))?;
            Ok(id.and_then(|id| tokens.get(id).cloned()))
        };
        Ok(SpecialTokens {
            bos: text("bos")?,
            eos: text("eos")?,
            unk: text("unknown")?,
            pad: text("padding")?,
        })
    }

    /// The chat templates: the default one, and those under `tokenizer.chat_template.NAME`.
    ///
    /// # Errors
    /// [`Error::Config`] if one is no string.
    pub(crate) fn chat_templates(&self) -> Result<ChatTemplates, Error> {
        let default = self.string(TEMPLATE)?.map(str::to_string);
        let mut named = Vec::new();
        for key in &self.keys {
            let Some(name) = key.strip_prefix(TEMPLATE).and_then(|rest| rest.strip_prefix('.'))
            else {
                continue;
            };
            if let Some(template) = self.string(key)? {
                named.push((name.to_string(), template.to_string()));
            }
        }
        named.sort();
        Ok(ChatTemplates { default, named })
    }

    fn strings(&self, key: &str) -> Result<Vec<String>, Error> {
        match self.value(key) {
            None => Ok(Vec::new()),
            Some(MetadataValue::Array(list)) if list.strings().is_some() || list.is_empty() => {
                Ok(list.strings().unwrap_or_default().to_vec())
            }
            Some(other) => Err(self.error(key, "a list of strings", other)),
        }
    }

    fn scores(&self, tokens: usize) -> Result<Vec<f32>, Error> {
        const KEY: &str = "tokenizer.ggml.scores";
        let scores = match self.value(KEY) {
            None => return Ok(Vec::new()),
            Some(MetadataValue::Array(MetadataArray::F32(list))) => list.clone(),
            Some(other) => return Err(self.error(KEY, "a list of f32", other)),
        };
        self.same_length(KEY, scores.len(), tokens)?;
        Ok(scores)
    }

    fn token_types(&self, tokens: usize) -> Result<Vec<i32>, Error> {
        const KEY: &str = "tokenizer.ggml.token_type";
        let Some(value) = self.value(KEY) else { return Ok(Vec::new()) };
        let types: Option<Vec<i32>> = match value {
            MetadataValue::Array(MetadataArray::I32(list)) => Some(list.clone()),
            MetadataValue::Array(list) => list
                .integers()
                .and_then(|list| list.into_iter().map(|kind| i32::try_from(kind).ok()).collect()),
            _ => None,
        };
        let types = types.ok_or_else(|| self.error(KEY, "a list of integers", value))?;
        self.same_length(KEY, types.len(), tokens)?;
        Ok(types)
    }

    fn same_length(&self, key: &str, found: usize, tokens: usize) -> Result<(), Error> {
        if found == tokens {
            return Ok(());
        }
        Err(self.error(key, &format!("{tokens} values, one for each token"), found))
    }
}
