//! What a Llama checkpoint says of itself, checked before a tensor is read.

use crate::checkpoint::{Checkpoint, Dtype, ModelConfig, Rope, RopeScaling};
use crate::error::Error;
use crate::layers::attention::AttentionShape;
use crate::layers::rope::RopeTable;
use crate::layers::workspace::{HeadWorkspace, WorkspaceShape, activation_type};
use crate::load::{LoadOptions, context_length};
use crate::model::{ModelInfo, Precision};
use crate::state::AttentionGroup;

/// Epsilon of the norms where a configuration is silent, as in `transformers`.
const RMS_NORM_EPS: f64 = 1e-6;

/// Largest value of each count, and of heads times their size: far above any model, and low enough
/// that the bytes of a step's buffers fit 64 bits.
const COUNT_MAX: usize = 1 << 24;

/// Configuration of a Llama model, by the keys of `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LlamaConfig {
    /// `model_type`, which may be a namesake's.
    pub(crate) model_type: String,
    /// Rows of embedding and head.
    pub(crate) vocab_size: usize,
    /// Sizes of the attention layers.
    pub(crate) attention: AttentionShape,
    /// Width of the MLP.
    pub(crate) intermediate_size: usize,
    /// `num_hidden_layers`.
    pub(crate) layers: usize,
    /// Added to the mean square of the norms.
    pub(crate) rms_norm_eps: f32,
    /// Context the model was made for.
    pub(crate) max_position_embeddings: usize,
    /// Whether q, k, v and o have biases.
    pub(crate) attention_bias: bool,
    /// Whether gate, up and down have biases.
    pub(crate) mlp_bias: bool,
    /// Whether the embedding serves as the head.
    pub(crate) tied: bool,
    /// The rotary embedding.
    pub(crate) rope: Rope,
}

impl LlamaConfig {
    /// Reads and checks a configuration.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key.
    pub(crate) fn read(config: &ModelConfig) -> Result<Self, Error> {
        refuse_other_blocks(config)?;
        let read = Self {
            model_type: config.model_type()?.to_string(),
            vocab_size: count(config, "vocab_size")?,
            attention: attention_shape(config)?,
            intermediate_size: count(config, "intermediate_size")?,
            layers: count(config, "num_hidden_layers")?,
            rms_norm_eps: rms_norm_eps(config)?,
            max_position_embeddings: count(config, "max_position_embeddings")?,
            attention_bias: config.flag("attention_bias")?.unwrap_or(false),
            mlp_bias: config.flag("mlp_bias")?.unwrap_or(false),
            tied: config.flag("tie_word_embeddings")?.unwrap_or(false),
            rope: config.rope(None)?,
        };
        Ok(read)
    }

    /// Which tensors of a checkpoint have no place in the model and are no loss.
    pub(crate) fn ignored(&self) -> impl Fn(&str) -> bool + use<> {
        let tied = self.tied;
        move |name| {
            // Old checkpoints store frequencies that follow from the configuration, one set in each
            // layer; GGUF files a set that has joined the configuration; tied ones a copy of the
            // embedding.
            name.ends_with("rotary_emb.inv_freq")
                || name == "rope_freqs.weight"
                || (tied && name == "lm_head.weight")
        }
    }

    /// The context length that options ask for.
    ///
    /// # Errors
    /// [`Error::Option`] for more than the model can do.
    pub(crate) fn context_length(
        &self,
        config: &ModelConfig,
        options: &LoadOptions,
    ) -> Result<usize, Error> {
        let trained = self.max_position_embeddings;
        let limit = match self.rope.scaling {
            // Dynamic scaling is meant for contexts beyond the one that the configuration names.
            RopeScaling::Dynamic { factor, .. } => (trained as f64 * factor) as usize,
            _ => trained,
        };
        context_length(config, trained, limit, options)
    }

    /// State of the attention layers.
    pub(crate) fn attention_group(&self) -> AttentionGroup {
        AttentionGroup {
            layers: self.layers,
            kv_heads: self.attention.kv_heads,
            head_dim: self.attention.head_dim,
        }
    }

    /// Buffers of a step.
    pub(crate) fn workspace(&self, options: &LoadOptions) -> WorkspaceShape {
        WorkspaceShape {
            rows: options.step_tokens_max,
            attention: self.attention,
            intermediate_size: self.intermediate_size,
            activation: activation_type(options.precision),
        }
    }

    /// Bytes of all buffers of a step.
    pub(crate) fn workspace_bytes(&self, options: &LoadOptions) -> u64 {
        let (rows, hidden) = (options.step_tokens_max, self.attention.hidden_size);
        let head = HeadWorkspace::bytes_for(options.sequences_max, hidden, self.vocab_size);
        let rope = RopeTable::bytes_for(&self.rope, self.attention.head_dim, rows);
        self.workspace(options).bytes() + head + rope
    }

    /// What the model is, for those who step it.
    pub(crate) fn info(
        &self,
        checkpoint: &Checkpoint,
        context_length: usize,
        parameters: u64,
        options: &LoadOptions,
    ) -> ModelInfo {
        let generation = checkpoint.generation_config();
        ModelInfo {
            architecture: self.model_type.clone(),
            vocab_size: self.vocab_size,
            context_length,
            context_length_trained: self.max_position_embeddings,
            layers: self.layers,
            hidden_size: self.attention.hidden_size,
            parameters,
            weight_format: weight_format(checkpoint),
            eos_token_ids: generation.eos_token_ids.clone(),
            bos_token_id: generation.bos_token_id,
            fingerprint: fingerprint(checkpoint, options.precision),
        }
    }
}

/// Keys that would make another block of it, where they hold anything but what Llama has.
fn refuse_other_blocks(config: &ModelConfig) -> Result<(), Error> {
    match config.string("hidden_act")? {
        None | Some("silu" | "swish") => {}
        Some(other) => return Err(config.error("hidden_act", "silu", other)),
    }
    match config.value("sliding_window") {
        None => Ok(()),
        Some(window) => Err(config.error("sliding_window", "null: attention is full", window)),
    }
}

fn attention_shape(config: &ModelConfig) -> Result<AttentionShape, Error> {
    let hidden_size = count(config, "hidden_size")?;
    let heads = count(config, "num_attention_heads")?;
    let kv_heads = match config.count("num_key_value_heads")? {
        None => heads,
        Some(_) => count(config, "num_key_value_heads")?,
    };
    if !heads.is_multiple_of(kv_heads) {
        let expected = format!("a divisor of num_attention_heads, {heads}");
        return Err(config.error("num_key_value_heads", expected, kv_heads));
    }
    let head_dim = match config.count("head_dim")? {
        Some(_) => count(config, "head_dim")?,
        None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => {
            let expected = format!("a multiple of num_attention_heads, {heads}");
            return Err(config.error("hidden_size", expected, hidden_size));
        }
    };
    if heads * head_dim > COUNT_MAX {
        let expected = format!("at most {COUNT_MAX} elements of all heads");
        return Err(config.error("head_dim", expected, heads * head_dim));
    }
    Ok(AttentionShape { hidden_size, heads, kv_heads, head_dim })
}

fn rms_norm_eps(config: &ModelConfig) -> Result<f32, Error> {
    match config.number("rms_norm_eps")?.unwrap_or(RMS_NORM_EPS) {
        eps if eps.is_finite() && eps > 0.0 => Ok(eps as f32),
        eps => Err(config.error("rms_norm_eps", "a positive number", eps)),
    }
}

/// A count of at least one that arithmetic can rely on.
fn count(config: &ModelConfig, key: &str) -> Result<usize, Error> {
    match config.required_count(key)? {
        count if count <= COUNT_MAX => Ok(count),
        count => Err(config.error(key, format!("at most {COUNT_MAX}"), count)),
    }
}

/// Name of the type that most bytes of the matrices have.
fn weight_format(checkpoint: &Checkpoint) -> String {
    let mut shares: Vec<(Dtype, usize)> = Vec::new();
    for tensor in checkpoint.tensors().filter(|tensor| tensor.shape.len() > 1) {
        match shares.iter_mut().find(|(dtype, _)| *dtype == tensor.dtype) {
            Some((_, bytes)) => *bytes += tensor.bytes.len(),
            None => shares.push((tensor.dtype, tensor.bytes.len())),
        }
    }
    let most = shares.iter().max_by_key(|(_, bytes)| *bytes);
    most.map_or_else(|| "none".to_string(), |(dtype, _)| dtype.name().to_string())
}

/// State that was made with quantized activations differs from state that was not.
fn fingerprint(checkpoint: &Checkpoint, precision: Precision) -> u64 {
    let precision = match precision {
        Precision::Fast => 0,
        Precision::Exact => 1,
    };
    (checkpoint.fingerprint() << 1) | precision
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(change: Value) -> Result<LlamaConfig, Error> {
        let mut json = json!({
            "model_type": "llama", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "rms_norm_eps": 1e-5, "max_position_embeddings": 128, "hidden_act": "silu",
        });
        json.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        LlamaConfig::read(&ModelConfig::from_json("config.json", json).unwrap())
    }

    #[test]
    fn what_is_absent_has_the_defaults_of_the_architecture() {
        let config = read(json!({"num_key_value_heads": null, "rms_norm_eps": null})).unwrap();
        assert_eq!((config.attention.kv_heads, config.attention.head_dim), (4, 16));
        assert_eq!(config.rms_norm_eps, 1e-6);
        assert!(!config.tied && !config.attention_bias && !config.mlp_bias);
    }

    #[test]
    fn a_head_may_be_of_any_size() {
        let config = read(json!({"head_dim": 32})).unwrap();
        assert_eq!((config.attention.q_dim(), config.attention.kv_dim()), (128, 64));
    }

    #[test]
    fn a_key_that_cannot_be_is_named() {
        for (change, key) in [
            (json!({"num_attention_heads": 3}), "num_key_value_heads"),
            (json!({"num_attention_heads": 6}), "hidden_size"),
            (json!({"num_hidden_layers": 0}), "num_hidden_layers"),
            (json!({"intermediate_size": null}), "intermediate_size"),
            (json!({"vocab_size": 1_u64 << 40}), "vocab_size"),
            (json!({"head_dim": 1 << 23}), "head_dim"),
            (json!({"rms_norm_eps": -1.0}), "rms_norm_eps"),
            (json!({"hidden_act": "gelu"}), "hidden_act"),
            (json!({"sliding_window": 4096}), "sliding_window"),
            (json!({"rope_scaling": {"rope_type": "longrope"}}), "rope_scaling.rope_type"),
        ] {
            let error = read(change).unwrap_err();
            assert!(matches!(&error, Error::Config { key: found, .. } if found == key), "{error}");
        }
    }

    #[test]
    fn a_context_is_the_trained_one_or_less_unless_rope_is_dynamic() {
        let file = ModelConfig::from_json("config.json", json!({})).unwrap();
        let with = |config: &LlamaConfig, context_length| {
            let options = LoadOptions { context_length, ..Default::default() };
            config.context_length(&file, &options)
        };
        let plain = read(json!({})).unwrap();
        assert_eq!(with(&plain, None).unwrap(), 128);
        assert_eq!(with(&plain, Some(100)).unwrap(), 100);
        assert!(with(&plain, Some(0)).is_err());
        let error = with(&plain, Some(129)).unwrap_err().to_string();
        assert!(error.contains("128") && error.contains("129"), "{error}");
        let dynamic = json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}});
        assert_eq!(with(&read(dynamic).unwrap(), Some(256)).unwrap(), 256);
    }

    #[test]
    fn tensors_that_say_nothing_new_are_ignored() {
        let ignored = read(json!({})).unwrap().ignored();
        assert!(ignored("model.layers.0.self_attn.rotary_emb.inv_freq"));
        assert!(!ignored("lm_head.weight"));
        assert!(read(json!({"tie_word_embeddings": true})).unwrap().ignored()("lm_head.weight"));
    }
}
