//! What Qwen3-Next and Qwen3.5 have in common, which is all but the MLPs: gated delta layers, one
//! layer of gated attention now and then, zero-centred norms.

use std::fmt::Debug;
use std::marker::PhantomData;

use sconce_kernels::Activation;
use serde_json::{Value, json};

use crate::checkpoint::{ModelConfig, Rope};
use crate::error::Error;
use crate::layers::attention::AttentionShape;
use crate::layers::feed_forward::FeedForwardShape;
use crate::layers::gated_delta_net::DeltaShape;
use crate::layers::hybrid::{HybridBlock, HybridShape, MixerKind};
use crate::layers::mlp::MlpShape;
use crate::layers::norm::NormKind;
use crate::layers::workspace::WorkspaceShape;
use crate::load::architecture::{Architecture, Frame, RopeSpec, StateShape};
use crate::load::config::{
    Common, attention_shape, count, count_or, expect_string, expect_unset, layer_types, product,
};
use crate::load::weights::Weights;
use crate::state::AttentionGroup;

/// Names of the two kinds of layers in `layer_types`.
const DELTA: &str = "linear_attention";
const ATTENTION: &str = "full_attention";

/// One of so many layers has attention where the configuration has no `layer_types`.
const FULL_ATTENTION_INTERVAL: usize = 4;

/// What `transformers` assumes for all of them.
const DEFAULTS: [(&str, usize); 8] = [
    ("max_position_embeddings", 32_768),
    ("num_attention_heads", 16),
    ("head_dim", 256),
    ("linear_conv_kernel_dim", 4),
    ("linear_key_head_dim", 128),
    ("linear_value_head_dim", 128),
    ("linear_num_key_heads", 16),
    ("linear_num_value_heads", 32),
];

/// Share of a head that the rope turns where the configuration does not say.
const PARTIAL_ROTARY_FACTOR: f64 = 0.25;

/// What a model of the family has of its own.
pub(crate) trait HybridVariant: Debug + Clone + PartialEq + 'static {
    /// What `transformers` assumes for keys that a configuration leaves out.
    const DEFAULTS: &[(&str, usize)];

    /// What follows the mixer of each layer.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key.
    fn mlps(config: &ModelConfig, common: &Common) -> Result<Vec<FeedForwardShape>, Error>;
}

/// Configuration of a model of the family, by the keys of `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Hybrid<V> {
    common: Common,
    attention: AttentionShape,
    delta: DeltaShape,
    rope: Rope,
    /// What each layer mixes tokens with.
    mixers: Vec<MixerKind>,
    /// What follows it.
    mlps: Vec<FeedForwardShape>,
    variant: PhantomData<V>,
}

impl<V: HybridVariant> Architecture for Hybrid<V> {
    type Layer = HybridBlock;

    fn read(config: &ModelConfig) -> Result<Self, Error> {
        let counts = DEFAULTS.iter().chain(V::DEFAULTS);
        let mut defaults: Vec<(&str, Value)> =
            counts.map(|(key, value)| (*key, json!(value))).collect();
        defaults.push(("partial_rotary_factor", json!(PARTIAL_ROTARY_FACTOR)));
        let config = &config.with_defaults(&defaults);
        refuse_other_blocks(config)?;
        let common = Common::read(config, false)?;
        Ok(Self {
            attention: attention_shape(config)?,
            delta: delta_shape(config)?,
            rope: config.rope(None)?,
            mixers: mixers(config, common.layers)?,
            mlps: V::mlps(config, &common)?,
            common,
            variant: PhantomData,
        })
    }

    fn common(&self) -> &Common {
        &self.common
    }

    fn frame(&self) -> Frame {
        Frame { norm: NormKind::ZeroCentred, embedding_scale: None }
    }

    fn state(&self) -> StateShape {
        let delta = self.mixers.iter().filter(|kind| matches!(kind, MixerKind::Delta(_))).count();
        let AttentionShape { kv_heads, head_dim, .. } = self.attention;
        let layers = self.mixers.len() - delta;
        let group = AttentionGroup::of_heads(layers, kv_heads, head_dim);
        StateShape {
            attention: if layers > 0 { vec![group] } else { vec![] },
            recurrent: (delta > 0).then(|| self.delta.state(delta)),
        }
    }

    fn ropes(&self) -> Vec<RopeSpec> {
        vec![RopeSpec { rope: self.rope.clone(), head_dim: self.attention.head_dim }]
    }

    fn workspace(&self, shape: &mut WorkspaceShape) {
        shape.attention = Some(self.attention);
        shape.attention_gate = true;
        shape.delta = Some(self.delta);
        self.mlps.iter().for_each(|mlp| mlp.workspace(shape));
    }

    fn layer(&self, weights: &mut Weights<'_>, index: usize) -> Result<HybridBlock, Error> {
        let shape = HybridShape {
            delta: self.delta,
            attention: self.attention,
            mixer: self.mixers[index],
            mlp: self.mlps[index],
            rms_norm_eps: self.common.rms_norm_eps,
        };
        HybridBlock::load(weights, index, &shape)
    }

    /// Layers that predict further tokens, and the vision tower, are not for text.
    fn ignores(&self, name: &str) -> bool {
        name.starts_with("mtp.") || name.starts_with("vision.")
    }
}

/// Keys that would make another block of it.
fn refuse_other_blocks(config: &ModelConfig) -> Result<(), Error> {
    expect_unset(config, "attention_bias")?;
    // It is the function of the convolution too.
    expect_string(config, "hidden_act", &["silu", "swish"])?;
    // The gate of the norm in gated delta layers.
    expect_string(config, "output_gate_type", &["silu", "swish"])?;
    expect_unset(config, "use_sliding_window")?;
    match config.flag("attn_output_gate")? {
        Some(false) => Err(config.error("attn_output_gate", "true", false)),
        _ => Ok(()),
    }
}

fn delta_shape(config: &ModelConfig) -> Result<DeltaShape, Error> {
    const VALUE_HEADS: &str = "linear_num_value_heads";
    const KERNEL: &str = "linear_conv_kernel_dim";
    let shape = DeltaShape {
        hidden_size: count(config, "hidden_size")?,
        key_heads: count(config, "linear_num_key_heads")?,
        value_heads: count(config, VALUE_HEADS)?,
        key_dim: count(config, "linear_key_head_dim")?,
        value_dim: count(config, "linear_value_head_dim")?,
        kernel: count(config, KERNEL)?,
    };
    if !shape.value_heads.is_multiple_of(shape.key_heads) {
        let expected = format!("a multiple of linear_num_key_heads, {}", shape.key_heads);
        return Err(config.error(VALUE_HEADS, expected, shape.value_heads));
    }
    if shape.kernel < 2 {
        return Err(config.error(KERNEL, "at least 2", shape.kernel));
    }
    product(config, "linear_key_head_dim", shape.key_heads, shape.key_dim)?;
    product(config, "linear_value_head_dim", shape.value_heads, shape.value_dim)?;
    Ok(shape)
}

/// What each layer mixes tokens with: by `layer_types`, or attention in every
/// `full_attention_interval`th.
fn mixers(config: &ModelConfig, layers: usize) -> Result<Vec<MixerKind>, Error> {
    let attention: Vec<bool> =
        match layer_types(config, "layer_types", layers, &[DELTA, ATTENTION])? {
            Some(types) => types.into_iter().map(|kind| kind == ATTENTION).collect(),
            None => {
                let interval =
                    count_or(config, "full_attention_interval", FULL_ATTENTION_INTERVAL)?;
                (1..=layers).map(|layer| layer.is_multiple_of(interval)).collect()
            }
        };
    let before = |index: usize, kind: bool| {
        attention[..index].iter().filter(|attention| **attention == kind).count()
    };
    let mixer = |(index, kind): (usize, &bool)| match kind {
        true => MixerKind::Attention(before(index, true)),
        false => MixerKind::Delta(before(index, false)),
    };
    Ok(attention.iter().enumerate().map(mixer).collect())
}

/// A gated MLP of `intermediate_size`.
///
/// # Errors
/// [`Error::Config`] naming the key.
pub(crate) fn dense(config: &ModelConfig, common: &Common) -> Result<FeedForwardShape, Error> {
    Ok(FeedForwardShape::Dense(MlpShape {
        hidden_size: common.hidden_size,
        intermediate_size: count(config, "intermediate_size")?,
        activation: Activation::Silu,
        bias: false,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One with an MLP of one width everywhere.
    #[derive(Debug, Clone, PartialEq)]
    struct Plain;

    impl HybridVariant for Plain {
        const DEFAULTS: &[(&str, usize)] = &[("num_key_value_heads", 1), ("intermediate_size", 48)];

        fn mlps(config: &ModelConfig, common: &Common) -> Result<Vec<FeedForwardShape>, Error> {
            Ok(vec![dense(config, common)?; common.layers])
        }
    }

    fn read(change: Value) -> Result<Hybrid<Plain>, Error> {
        let mut json = json!({
            "model_type": "qwen3_next", "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 5,
            "num_attention_heads": 2, "head_dim": 16,
        });
        json.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        Hybrid::read(&ModelConfig::from_json("config.json", json).unwrap())
    }

    #[test]
    fn every_fourth_layer_has_attention_unless_the_configuration_says_which() {
        use MixerKind::{Attention, Delta};
        let fourth = read(json!({})).unwrap();
        assert_eq!(fourth.mixers, [Delta(0), Delta(1), Delta(2), Attention(0), Delta(3)]);
        let second = read(json!({"full_attention_interval": 2})).unwrap();
        assert_eq!(second.mixers, [Delta(0), Attention(0), Delta(1), Attention(1), Delta(2)]);
        let types = [ATTENTION, DELTA, DELTA, ATTENTION, ATTENTION];
        let typed = read(json!({"layer_types": types, "full_attention_interval": 2})).unwrap();
        let expected = [Attention(0), Delta(0), Delta(1), Attention(1), Attention(2)];
        assert_eq!(typed.mixers, expected);
        let state = typed.state();
        assert_eq!((state.attention[0].layers, state.recurrent.unwrap().layers), (3, 2));
    }

    #[test]
    fn layers_of_one_kind_need_the_state_of_one_kind() {
        let delta = read(json!({"layer_types": vec![DELTA; 5]})).unwrap().state();
        assert!(delta.attention.is_empty() && delta.recurrent.is_some());
        let attention = read(json!({"full_attention_interval": 1})).unwrap().state();
        assert!(attention.recurrent.is_none() && attention.attention[0].layers == 5);
    }

    #[test]
    fn a_quarter_of_a_head_is_turned_unless_the_configuration_says_how_much() {
        assert_eq!(read(json!({})).unwrap().rope.partial_rotary_factor, 0.25);
        let flat = json!({"partial_rotary_factor": 0.5, "rope_theta": 1e7});
        assert_eq!(read(flat).unwrap().rope.partial_rotary_factor, 0.5);
        let nested = json!({"rope_parameters": {
            "rope_type": "default", "rope_theta": 1e7, "mrope_section": [11, 11, 10],
            "mrope_interleaved": true,
        }});
        let rope = read(nested).unwrap().rope;
        assert_eq!((rope.theta, rope.partial_rotary_factor), (1e7, 0.25));
    }

    #[test]
    fn keys_that_would_make_another_model_are_refused() {
        for (change, key) in [
            (json!({"attention_bias": true}), "attention_bias"),
            (json!({"hidden_act": "gelu"}), "hidden_act"),
            (json!({"attn_output_gate": false}), "attn_output_gate"),
            (json!({"output_gate_type": "sigmoid"}), "output_gate_type"),
            (json!({"use_sliding_window": true}), "use_sliding_window"),
            (json!({"linear_num_value_heads": 24}), "linear_num_value_heads"),
            (json!({"linear_conv_kernel_dim": 1}), "linear_conv_kernel_dim"),
            (json!({"layer_types": ["full_attention"]}), "layer_types"),
            (json!({"layer_types": vec!["sliding_attention"; 5]}), "layer_types"),
            (json!({"full_attention_interval": 0}), "full_attention_interval"),
            (json!({"linear_key_head_dim": 1 << 23}), "linear_key_head_dim"),
        ] {
            let error = read(change).unwrap_err().to_string();
            assert!(error.contains(&format!("key {key}:")), "{key}: {error}");
        }
        let hub = json!({
            "attn_output_gate": true, "hidden_act": "silu", "output_gate_type": "swish",
            "use_sliding_window": false, "mamba_ssm_dtype": "float32",
        });
        assert!(read(hub).is_ok());
    }
}
