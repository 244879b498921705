//! Qwen3, dense (arXiv 2505.09388): Llama with a norm on each head of queries and keys.

use sconce_kernels::Activation;
use serde_json::json;

use crate::checkpoint::{ModelConfig, Rope};
use crate::error::Error;
use crate::layers::attention::{AttentionKind, AttentionShape};
use crate::layers::block::{Block, BlockShape};
use crate::layers::feed_forward::FeedForwardShape;
use crate::layers::mlp::{MlpShape, activation};
use crate::layers::norm::NormKind;
use crate::layers::workspace::WorkspaceShape;
use crate::load::architecture::{Architecture, RopeSpec, StateShape};
use crate::load::config::{COUNT_MAX, Common, attention_shape, count, layer_types};
use crate::load::weights::Weights;

/// Configuration of a dense Qwen3 model, by the keys of `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Qwen3 {
    common: Common,
    attention: Qwen3Attention,
    intermediate_size: usize,
    activation: Activation,
}

/// Attention of Qwen3, dense or with experts.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Qwen3Attention {
    /// Sizes.
    pub(crate) shape: AttentionShape,
    bias: bool,
    rope: Rope,
    /// Window of each layer.
    windows: Vec<Option<usize>>,
}

impl Qwen3Attention {
    /// Reads and checks its part of a configuration.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key.
    pub(crate) fn read(config: &ModelConfig, layers: usize) -> Result<Self, Error> {
        // Not hidden_size / heads, as elsewhere, where the key is absent.
        let config = &config.with_defaults(&[("head_dim", json!(128))]);
        Ok(Self {
            shape: attention_shape(config)?,
            bias: config.flag("attention_bias")?.unwrap_or(false),
            rope: config.rope(None)?,
            windows: windows(config, layers)?,
        })
    }

    /// What layer `index` does.
    pub(crate) fn kind(&self, index: usize, rms_norm_eps: f32) -> AttentionKind {
        AttentionKind {
            bias: self.bias,
            qk_norm: Some((NormKind::Plain, rms_norm_eps)),
            rope: 0,
            scale: self.shape.scale(),
            window: self.windows[index],
            kv_layer: index,
        }
    }

    /// The rope of all layers.
    pub(crate) fn ropes(&self) -> Vec<RopeSpec> {
        vec![RopeSpec { rope: self.rope.clone(), head_dim: self.shape.head_dim }]
    }
}

/// The window of each layer: by `layer_types`, or from layer `max_window_layers` on, and only where
/// `use_sliding_window` is set.
fn windows(config: &ModelConfig, layers: usize) -> Result<Vec<Option<usize>>, Error> {
    if !config.flag("use_sliding_window")?.unwrap_or(false)
        || config.value("sliding_window").is_none()
    {
        return Ok(vec![None; layers]);
    }
    let window = count(config, "sliding_window")?;
    let known = ["full_attention", "sliding_attention"];
    if let Some(types) = layer_types(config, "layer_types", layers, &known)? {
        let of = |kind: &str| (kind == "sliding_attention").then_some(window);
        return Ok(types.into_iter().map(of).collect());
    }
    let first = match config.value("max_window_layers") {
        Some(_) => config.count("max_window_layers")?.unwrap_or(COUNT_MAX),
        None => MAX_WINDOW_LAYERS,
    };
    Ok((0..layers).map(|index| (index >= first).then_some(window)).collect())
}

/// Layers with full attention where a configuration with a window does not say, as in `transformers`.
const MAX_WINDOW_LAYERS: usize = 28;

impl Architecture for Qwen3 {
    type Layer = Block;

    fn read(config: &ModelConfig) -> Result<Self, Error> {
        let common = Common::read(config, false)?;
        Ok(Self {
            attention: Qwen3Attention::read(config, common.layers)?,
            intermediate_size: count(config, "intermediate_size")?,
            activation: activation(config, "hidden_act", Activation::Silu)?,
            common,
        })
    }

    fn common(&self) -> &Common {
        &self.common
    }

    fn state(&self) -> StateShape {
        StateShape::attention(self.common.layers, &self.attention.shape)
    }

    fn ropes(&self) -> Vec<RopeSpec> {
        self.attention.ropes()
    }

    fn workspace(&self, shape: &mut WorkspaceShape) {
        shape.attention = Some(self.attention.shape);
        shape.intermediate_size = Some(self.intermediate_size);
    }

    fn layer(&self, weights: &mut Weights<'_>, index: usize) -> Result<Block, Error> {
        let rms_norm_eps = self.common.rms_norm_eps;
        let mlp = FeedForwardShape::Dense(MlpShape {
            hidden_size: self.common.hidden_size,
            intermediate_size: self.intermediate_size,
            activation: self.activation,
            bias: false,
        });
        let shape = BlockShape {
            attention: self.attention.shape,
            kind: self.attention.kind(index, rms_norm_eps),
            mlp,
            rms_norm_eps,
        };
        Block::load(weights, index, &shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn windows_of(json: Value) -> Vec<Option<usize>> {
        windows(&ModelConfig::from_json("config.json", json).unwrap(), 3).unwrap()
    }

    #[test]
    fn a_window_counts_only_where_it_is_used() {
        assert_eq!(windows_of(json!({"sliding_window": 8})), [None; 3]);
        assert_eq!(windows_of(json!({"use_sliding_window": true})), [None; 3]);
        let used = json!({"use_sliding_window": true, "sliding_window": 8, "max_window_layers": 1});
        assert_eq!(windows_of(used), [None, Some(8), Some(8)]);
        let typed = json!({
            "use_sliding_window": true, "sliding_window": 8, "max_window_layers": 1,
            "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        });
        assert_eq!(windows_of(typed), [Some(8), None, None]);
    }
}
