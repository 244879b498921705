//! GGUF metadata in the vocabulary of `config.json`.
//!
//! The keys of a model lie under the name of its architecture (`llama.block_count`); what
//! `config.json` says and metadata does not, the presence and shapes of tensors tell.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::{Gguf, MetadataArray, MetadataValue};
use crate::checkpoint::config::ModelConfig;
use crate::checkpoint::generation::GenerationConfig;
use crate::checkpoint::rope::FREQUENCY_DIVISORS;
use crate::error::Error;

/// Canonical key and the key below the architecture's name, for values that need no more than
/// another name.
const KEYS: &[(&str, &str)] = &[
    ("hidden_size", "embedding_length"),
    ("num_hidden_layers", "block_count"),
    ("num_attention_heads", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
    ("head_dim", "attention.key_length"),
    ("v_head_dim", "attention.value_length"),
    ("intermediate_size", "feed_forward_length"),
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    ("max_position_embeddings", "context_length"),
    ("rope_theta", "rope.freq_base"),
    ("sliding_window", "attention.sliding_window"),
    ("num_local_experts", "expert_count"),
    ("num_experts_per_tok", "expert_used_count"),
];

/// Architectures whose MLP gates with SiLU; metadata does not name the activation.
const SILU: &[&str] = &["llama", "qwen2", "qwen3", "qwen3moe", "qwen3next", "qwen35", "qwen35moe"];

/// GGUF architecture and `model_type`, where they differ.
const MODEL_TYPES: &[(&str, &str)] = &[
    ("gemma3", "gemma3_text"),
    ("qwen3moe", "qwen3_moe"),
    ("qwen3next", "qwen3_next"),
    ("qwen35", "qwen3_5"),
    ("qwen35moe", "qwen3_5_moe"),
];

impl Gguf {
    /// The configuration; `divisors` are the values of `rope_freqs.weight`, where the file has it.
    ///
    /// # Errors
    /// [`Error::Config`] if the architecture is missing or a value cannot be translated.
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
        for (canonical, suffix) in KEYS {
            config.rename(canonical, suffix)?;
        }
        config.rope(divisors)?;
        config.tensors();
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

    fn rename(&mut self, canonical: &str, suffix: &str) -> Result<(), Error> {
        let key = format!("{}.{suffix}", self.architecture);
        if let Some(value) = self.gguf.value(&key) {
            let json = self.gguf.json(&key, value)?;
            // A dense model may say that it has no experts.
            if !(canonical.starts_with("num_") && canonical.contains("experts") && json == 0) {
                self.insert(canonical, &key, json);
            }
        }
        self.spelled.insert(canonical.to_string(), key);
        Ok(())
    }

    /// The number under a key below the architecture's name.
    fn number(&self, suffix: &str) -> Result<Option<f64>, Error> {
        let key = format!("{}.{suffix}", self.architecture);
        match self.gguf.value(&key) {
            None => Ok(None),
            Some(MetadataValue::Float(value)) => Ok(Some(*value)),
            Some(MetadataValue::Integer(value)) => Ok(Some(*value as f64)),
            Some(other) => Err(self.gguf.error(&key, "a number", other)),
        }
    }

    fn rope(&mut self, divisors: Option<Vec<f32>>) -> Result<(), Error> {
        if let Some(divisors) = divisors {
            self.insert(FREQUENCY_DIVISORS, "rope_freqs.weight", divisors);
        }
        if let (Some(rotated), Some(head_dim)) =
            (self.number("rope.dimension_count")?, self.gguf.head_dim()?)
            && rotated > 0.0
            && rotated < head_dim as f64
        {
            let key = format!("{}.rope.dimension_count", self.architecture);
            self.insert("partial_rotary_factor", &key, rotated / head_dim as f64);
        }
        let type_key = format!("{}.rope.scaling.type", self.architecture);
        let name = match self.gguf.string(&type_key)? {
            Some(name) => name,
            // Before scalings had types there was one.
            None if self.number("rope.scale_linear")?.is_some_and(|factor| factor > 1.0) => {
                "linear"
            }
            None => "none",
        };
        let factor = match self.number("rope.scaling.factor")? {
            Some(factor) => Some(factor),
            None => self.number("rope.scale_linear")?,
        }
        .filter(|factor| *factor != 0.0);
        let scaling = match (name, factor) {
            ("none", _) | ("linear", None) => return Ok(()),
            ("yarn", factor) => self.yarn(factor)?,
            (name, factor) => json!({"rope_type": name, "factor": factor}),
        };
        let key = format!("{}.rope.scaling", self.architecture);
        self.spelled.insert("rope_scaling.rope_type".into(), type_key);
        self.insert("rope_scaling", &key, scaling);
        Ok(())
    }

    fn yarn(&self, factor: Option<f64>) -> Result<Value, Error> {
        let original = self.number("rope.scaling.original_context_length")?;
        // GGUF's factor is one more on top of the logarithmic one, `transformers`' is the product.
        let attention_factor = self
            .number("rope.scaling.attn_factor")?
            .zip(factor)
            .map(|(attention, factor)| attention * (0.1 * factor.ln() + 1.0));
        Ok(json!({
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original.map(|value| value as u64),
            "attention_factor": attention_factor,
            "beta_fast": self.number("rope.scaling.yarn_beta_fast")?,
            "beta_slow": self.number("rope.scaling.yarn_beta_slow")?,
        }))
    }

    /// What the tensor table tells.
    fn tensors(&mut self) {
        let find = |name: &str| self.gguf.tensors.iter().find(|tensor| tensor.name == name);
        let vocabulary = find("token_embd.weight").map(|tensor| tensor.shape[0]);
        let tied = find("output.weight").is_none();
        let attention_bias = find("blk.0.attn_q.bias").is_some();
        let mlp_bias = find("blk.0.ffn_up.bias").is_some();
        if let Some(vocabulary) = vocabulary {
            self.insert("vocab_size", "token_embd.weight", vocabulary);
        }
        self.insert("tie_word_embeddings", "output.weight", tied);
        self.insert("attention_bias", "blk.0.attn_q.bias", attention_bias);
        self.insert("mlp_bias", "blk.0.ffn_up.bias", mlp_bias);
        if SILU.contains(&self.architecture) {
            self.insert("hidden_act", "general.architecture", "silu");
        }
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
