//! GGUF metadata in the vocabulary of `config.json`.
//!
//! The keys of a model lie under the name of its architecture (`llama.block_count`); what
//! `config.json` says and metadata does not, the presence and shapes of tensors tell. Where both
//! are silent llama.cpp's default is written out, since that of `transformers` may be another.

mod architecture;
mod rope;

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::{Gguf, GgufTensor, MetadataArray, MetadataValue};
use crate::checkpoint::config::ModelConfig;
use crate::checkpoint::generation::GenerationConfig;
use crate::error::Error;

/// Canonical keys, and the keys below the architecture's name that have their values.
type Keys = &'static [(&'static str, &'static str)];

/// Keys of every architecture.
const KEYS: Keys = &[
    ("hidden_size", "embedding_length"),
    ("num_attention_heads", "attention.head_count"),
    ("intermediate_size", "feed_forward_length"),
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    ("max_position_embeddings", "context_length"),
    ("sliding_window", "attention.sliding_window"),
    ("num_experts_per_tok", "expert_used_count"),
];

/// Most layers of a model, real ones having some hundreds: each is given a type.
const LAYERS_MAX: usize = 1 << 14;

/// GGUF architecture and `model_type`, where they differ.
const MODEL_TYPES: &[(&str, &str)] = &[
    ("gemma3", "gemma3_text"),
    ("qwen3moe", "qwen3_moe"),
    ("qwen3next", "qwen3_next"),
    ("qwen35", "qwen3_5"),
    ("qwen35moe", "qwen3_5_moe"),
    // What else has this architecture is refused.
    ("deepseek2", "glm4_moe_lite"),
];

impl Gguf {
    /// The configuration; `divisors` are the values of `rope_freqs.weight`, where the file has it.
    ///
    /// # Errors
    /// [`Error::Config`] if the architecture is missing, a value cannot be translated, or the model
    /// is another than its architecture's name would make it.
    pub(crate) fn model_config(&self, divisors: Option<Vec<f32>>) -> Result<ModelConfig, Error> {
        let architecture = self.architecture()?;
        let mut config =
            Translation { gguf: self, architecture, values: Map::new(), spelled: HashMap::new() };
        let model_type = MODEL_TYPES.iter().find(|(gguf, _)| *gguf == architecture);
        config.insert(
            "model_type",
            "general.architecture",
            model_type.map_or(architecture, |(_, name)| name),
        );
        config.rename(KEYS)?;
        config.layers()?;
        config.rope(divisors)?;
        config.tensors();
        config.architecture()?;
        config.token_ids()?;
        Ok(ModelConfig::translated(self.file.clone(), config.values, config.spelled))
    }

    /// Stop ids and sampling defaults.
    ///
    /// # Errors
    /// [`Error::Config`] if a key holds what it cannot.
    pub(crate) fn generation_config(
        &self,
        config: &ModelConfig,
    ) -> Result<GenerationConfig, Error> {
        let mut values = Map::new();
        for (canonical, key) in [
            ("temperature", "general.sampling.temp"),
            ("top_k", "general.sampling.top_k"),
            ("top_p", "general.sampling.top_p"),
            ("min_p", "general.sampling.min_p"),
            ("repetition_penalty", "general.sampling.penalty_repeat"),
        ] {
            if let Some(value) = self.value(key) {
                values.insert(canonical.into(), self.json(key, value)?);
            }
        }
        GenerationConfig::from_json(&self.file, Some(Value::Object(values)), config)
    }

    /// Rows of a head, for the order of q and k rows; `None` where the metadata does not tell.
    pub(crate) fn head_dim(&self) -> Result<Option<usize>, Error> {
        let architecture = self.architecture()?;
        let unsigned = |suffix: &str| self.unsigned::<usize>(&format!("{architecture}.{suffix}"));
        if let Some(head_dim) = unsigned("attention.key_length")? {
            return Ok(Some(head_dim));
        }
        let (hidden, heads) = (unsigned("embedding_length")?, unsigned("attention.head_count")?);
        Ok(hidden.zip(heads).and_then(|(hidden, heads)| hidden.checked_div(heads)))
    }

    /// Layers of the model, without those that predict further tokens; `None` where the metadata
    /// does not tell.
    ///
    /// # Errors
    /// [`Error::Config`] if there is no end to them, or no other than those.
    pub(crate) fn layers(&self) -> Result<Option<usize>, Error> {
        let architecture = self.architecture()?;
        let key = format!("{architecture}.block_count");
        let predicting = format!("{architecture}.nextn_predict_layers");
        let Some(blocks) = self.unsigned::<usize>(&key)? else { return Ok(None) };
        let extra = self.unsigned::<usize>(&predicting)?.unwrap_or(0);
        if blocks > LAYERS_MAX {
            return Err(self.error(&key, &format!("at most {LAYERS_MAX}"), blocks));
        }
        match blocks.checked_sub(extra) {
            Some(0) | None if extra > 0 => {
                Err(self.error(&predicting, &format!("less than block_count, {blocks}"), extra))
            }
            layers => Ok(layers),
        }
    }

    /// A scalar or list of integers as JSON.
    fn json(&self, key: &str, value: &MetadataValue) -> Result<Value, Error> {
        let integer = |value: i128| {
            i64::try_from(value).map(Value::from).or_else(|_| u64::try_from(value).map(Value::from))
        };
        let json = match value {
            MetadataValue::Integer(value) => integer(*value).ok(),
            MetadataValue::Float(value) => serde_json::Number::from_f64(*value).map(Value::Number),
            MetadataValue::Bool(value) => Some(Value::Bool(*value)),
            MetadataValue::String(text) => Some(Value::String(text.clone())),
            MetadataValue::Array(list) => list.integers().and_then(|list| {
                // Per-layer counts that are all the same are one count.
                match list.split_first() {
                    Some((first, rest)) if rest.iter().all(|value| value == first) => {
                        integer(*first).ok()
                    }
                    _ => list.into_iter().map(|value| integer(value).ok()).collect(),
                }
            }),
        };
        json.ok_or_else(|| self.error(key, "a finite number or integers", value))
    }
}

/// A configuration on its way from metadata to canonical keys.
struct Translation<'a> {
    gguf: &'a Gguf,
    architecture: &'a str,
    values: Map<String, Value>,
    spelled: HashMap<String, String>,
}

impl Translation<'_> {
    fn insert(&mut self, canonical: &str, key: &str, value: impl Into<Value>) {
        self.values.insert(canonical.to_string(), value.into());
        self.spelled.insert(canonical.to_string(), key.to_string());
    }

    /// Inserts the values of keys that need no more than another name, where the file has them.
    fn rename(&mut self, keys: Keys) -> Result<(), Error> {
        for (canonical, suffix) in keys {
            let key = self.key(suffix);
            if let Some(value) = self.gguf.value(&key) {
                let json = self.gguf.json(&key, value)?;
                // A dense model may say that it has no experts.
                if !(canonical.starts_with("num_") && canonical.contains("experts") && json == 0) {
                    self.insert(canonical, &key, json);
                }
            }
            self.spelled.insert(canonical.to_string(), key);
        }
        Ok(())
    }

    /// The full key of what stands below the architecture's name.
    fn key(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.architecture)
    }

    /// The number under a key below the architecture's name.
    fn number(&self, suffix: &str) -> Result<Option<f64>, Error> {
        let key = self.key(suffix);
        match self.gguf.value(&key) {
            None => Ok(None),
            Some(MetadataValue::Float(value)) => Ok(Some(*value)),
            Some(MetadataValue::Integer(value)) => Ok(Some(*value as f64)),
            Some(other) => Err(self.gguf.error(&key, "a number", other)),
        }
    }

    /// The count under a key below the architecture's name.
    fn count(&self, suffix: &str) -> Result<Option<usize>, Error> {
        self.gguf.unsigned(&self.key(suffix))
    }

    /// An error about the key below the architecture's name.
    fn error(&self, suffix: &str, expected: &str, found: impl ToString) -> Error {
        self.gguf.error(&self.key(suffix), expected, found)
    }

    /// The first tensor of any layer whose name ends so.
    fn tensor(&self, name: &str) -> Option<&GgufTensor> {
        let in_layer = |tensor: &&GgufTensor| {
            tensor.name.strip_suffix(name).is_some_and(|layer| layer.ends_with('.'))
        };
        self.gguf.tensors.iter().find(in_layer)
    }

    fn layers(&mut self) -> Result<(), Error> {
        let key = self.key("block_count");
        if let Some(layers) = self.gguf.layers()? {
            self.insert("num_hidden_layers", &key, layers);
        }
        self.spelled.insert("num_hidden_layers".into(), key);
        Ok(())
    }

    /// What the tensor table tells.
    fn tensors(&mut self) {
        let find = |name: &str| self.gguf.tensors.iter().find(|tensor| tensor.name == name);
        let vocabulary = find("token_embd.weight").map(|tensor| tensor.shape[0]);
        let tied = find("output.weight").is_none();
        let attention_bias =
            self.tensor("attn_q.bias").or_else(|| self.tensor("attn_q_a.bias")).is_some();
        let mlp_bias = self.tensor("ffn_up.bias").is_some();
        if let Some(vocabulary) = vocabulary {
            self.insert("vocab_size", "token_embd.weight", vocabulary);
        }
        self.insert("tie_word_embeddings", "output.weight", tied);
        self.insert("attention_bias", "blk.N.attn_q.bias", attention_bias);
        self.insert("mlp_bias", "blk.N.ffn_up.bias", mlp_bias);
    }

    fn token_ids(&mut self) -> Result<(), Error> {
        let id = |name: &str| self.gguf.unsigned::<u32>(&format!("tokenizer.ggml.{name}_token_id"));
        let mut ends = Vec::new();
        for name in ["eos", "eot", "eom"] {
            ends.extend(id(name)?.filter(|id| !ends.contains(id)));
        }
        let bos = id("bos")?;
        self.insert("eos_token_id", "tokenizer.ggml.eos_token_id", ends);
        if let Some(bos) = bos {
            self.insert("bos_token_id", "tokenizer.ggml.bos_token_id", bos);
        }
        Ok(())
    }
}

impl MetadataArray {
    /// The elements, if they are strings.
    pub(super) fn strings(&self) -> Option<&[String]> {
        match self {
            MetadataArray::String(list) => Some(list),
            _ => None,
        }
    }
}
