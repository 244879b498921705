//! Llama (Touvron et al., 2023) and what is built like it: RMSNorm, grouped-query attention with
//! rotary embedding, gated MLP. Names as in `transformers` checkpoints.

use sconce_kernels::Activation;

use crate::checkpoint::{ModelConfig, Rope, RopeScaling};
use crate::error::Error;
use crate::layers::attention::{AttentionKind, AttentionShape};
use crate::layers::block::{Block, BlockShape};
use crate::layers::feed_forward::FeedForwardShape;
use crate::layers::mlp::{MlpShape, activation};
use crate::layers::workspace::WorkspaceShape;
use crate::load::architecture::{Architecture, RopeSpec, StateShape};
use crate::load::config::{Common, attention_shape, count};
use crate::load::weights::Weights;

/// Configuration of a Llama model, by the keys of `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Llama {
    common: Common,
    attention: AttentionShape,
    intermediate_size: usize,
    activation: Activation,
    attention_bias: bool,
    mlp_bias: bool,
    rope: Rope,
}

impl Architecture for Llama {
    type Layer = Block;

    fn read(config: &ModelConfig) -> Result<Self, Error> {
        if let Some(window) = config.value("sliding_window") {
            return Err(config.error("sliding_window", "null: attention is full", window));
        }
        Ok(Self {
            common: Common::read(config, false)?,
            attention: attention_shape(config)?,
            intermediate_size: count(config, "intermediate_size")?,
            activation: activation(config, "hidden_act", Activation::Silu)?,
            attention_bias: config.flag("attention_bias")?.unwrap_or(false),
            mlp_bias: config.flag("mlp_bias")?.unwrap_or(false),
            rope: config.rope(None)?,
        })
    }

    fn common(&self) -> &Common {
        &self.common
    }

    fn context_length_max(&self) -> usize {
        let trained = self.common.max_position_embeddings;
        match self.rope.scaling {
            // Dynamic scaling is meant for contexts beyond the one that the configuration names.
            RopeScaling::Dynamic { factor, .. } => (trained as f64 * factor) as usize,
            _ => trained,
        }
    }

    fn state(&self) -> StateShape {
        StateShape::attention(self.common.layers, &self.attention)
    }

    fn ropes(&self) -> Vec<RopeSpec> {
        vec![RopeSpec { rope: self.rope.clone(), head_dim: self.attention.head_dim }]
    }

    fn workspace(&self, shape: &mut WorkspaceShape) {
        shape.attention = Some(self.attention);
        shape.intermediate_size = Some(self.intermediate_size);
    }

    fn layer(&self, weights: &mut Weights<'_>, index: usize) -> Result<Block, Error> {
        let kind = AttentionKind {
            bias: self.attention_bias,
            qk_norm: None,
            rope: 0,
            scale: self.attention.scale(),
            window: None,
            kv_layer: index,
        };
        let mlp = FeedForwardShape::Dense(MlpShape {
            hidden_size: self.common.hidden_size,
            intermediate_size: self.intermediate_size,
            activation: self.activation,
            bias: self.mlp_bias,
        });
        let rms_norm_eps = self.common.rms_norm_eps;
        let shape = BlockShape { attention: self.attention, kind, mlp, rms_norm_eps };
        Block::load(weights, index, &shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(change: Value) -> Result<Llama, Error> {
        let mut json = json!({
            "model_type": "llama", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "rms_norm_eps": 1e-5, "max_position_embeddings": 128, "hidden_act": "silu",
        });
        json.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        Llama::read(&ModelConfig::from_json("config.json", json).unwrap())
    }

    #[test]
    fn what_is_absent_has_the_defaults_of_the_architecture() {
        let config = read(json!({"num_key_value_heads": null, "rms_norm_eps": null})).unwrap();
        assert_eq!((config.attention.kv_heads, config.attention.head_dim), (4, 16));
        assert_eq!(config.common.rms_norm_eps, 1e-6);
        assert!(!config.common.tied && !config.attention_bias && !config.mlp_bias);
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
    fn only_dynamic_rope_reaches_past_the_trained_context() {
        assert_eq!(read(json!({})).unwrap().context_length_max(), 128);
        let dynamic = json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}});
        assert_eq!(read(dynamic).unwrap().context_length_max(), 256);
    }
}
