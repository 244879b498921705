//! Gemma 3, its text model (arXiv 2503.19786): four zero-centred norms to a layer, of which two come
//! after their branch; sliding-window layers with a rope of their own between full ones.

use sconce_kernels::{Activation, add};
use serde_json::{Value, json};

use crate::checkpoint::{ModelConfig, Rope};
use crate::error::Error;
use crate::layers::attention::{Attention, AttentionKind, AttentionShape};
use crate::layers::decoder::{DecoderLayer, LayerStep};
use crate::layers::mlp::{Mlp, MlpShape, Output, activation};
use crate::layers::norm::{NormKind, RmsNorm};
use crate::layers::workspace::{Workspace, WorkspaceShape};
use crate::load::architecture::{Architecture, Frame, RopeSpec, StateShape};
use crate::load::config::{
    Common, attention_shape, count, count_or, expect_unset, layer_types, positive,
};
use crate::load::weights::Weights;

/// Names of the two kinds of layers in `layer_types`.
const FULL: &str = "full_attention";
const SLIDING: &str = "sliding_attention";

/// One of so many layers is full where the configuration has neither `layer_types` nor a pattern.
const SLIDING_WINDOW_PATTERN: usize = 6;

/// Defaults of `transformers` for what older configurations leave out.
const SLIDING_WINDOW: usize = 4096;
const QUERY_PRE_ATTN_SCALAR: f64 = 256.0;
const ROPE_LOCAL_BASE_FREQ: f64 = 10_000.0;
const ROPE_THETA: f64 = 1_000_000.0;

/// Sizes that the multimodal checkpoints on the hub leave out of their `text_config`.
fn defaults() -> [(&'static str, Value); 5] {
    [
        ("vocab_size", json!(262_208)),
        ("num_attention_heads", json!(8)),
        ("num_key_value_heads", json!(4)),
        ("head_dim", json!(256)),
        ("max_position_embeddings", json!(131_072)),
    ]
}

/// Index of each kind's rope among [`Architecture::ropes`].
const FULL_ROPE: usize = 0;
const SLIDING_ROPE: usize = 1;

/// Configuration of the text model, by the keys of `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Gemma3 {
    common: Common,
    attention: AttentionShape,
    attention_bias: bool,
    scale: f32,
    /// Window of each layer; `None` where attention is full.
    windows: Vec<Option<usize>>,
    intermediate_size: usize,
    activation: Activation,
    full_rope: Rope,
    sliding_rope: Rope,
}

impl Architecture for Gemma3 {
    type Layer = Gemma3Layer;

    fn read(config: &ModelConfig) -> Result<Self, Error> {
        let config = &config.with_defaults(&defaults());
        for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
            if let Some(found) = config.value(key) {
                return Err(config.error(key, "null: logits are not capped", found));
            }
        }
        expect_unset(config, "use_bidirectional_attention")?;
        let common = Common::read(config, true)?;
        let scalar = positive(config, "query_pre_attn_scalar", QUERY_PRE_ATTN_SCALAR)?;
        Ok(Self {
            attention: attention_shape(config)?,
            attention_bias: config.flag("attention_bias")?.unwrap_or(false),
            scale: scalar.powf(-0.5) as f32,
            windows: windows(config, common.layers)?,
            intermediate_size: count(config, "intermediate_size")?,
            activation: activation(config, "hidden_activation", Activation::GeluTanh)?,
            full_rope: full_rope(config)?,
            sliding_rope: sliding_rope(config)?,
            common,
        })
    }

    fn common(&self) -> &Common {
        &self.common
    }

    fn frame(&self) -> Frame {
        let scale = (self.common.hidden_size as f32).sqrt();
        Frame { norm: NormKind::ZeroCentred, embedding_scale: Some(scale) }
    }

    fn state(&self) -> StateShape {
        StateShape::attention(self.common.layers, &self.attention)
    }

    fn window(&self, index: usize) -> Option<usize> {
        self.windows[index]
    }

    fn ropes(&self) -> Vec<RopeSpec> {
        let head_dim = self.attention.head_dim;
        [&self.full_rope, &self.sliding_rope]
            .map(|rope| RopeSpec { rope: rope.clone(), head_dim })
            .to_vec()
    }

    fn workspace(&self, shape: &mut WorkspaceShape) {
        shape.branch = true;
        shape.attention = Some(self.attention);
        shape.intermediate_size = Some(self.intermediate_size);
    }

    fn layer(&self, weights: &mut Weights<'_>, index: usize) -> Result<Gemma3Layer, Error> {
        let (hidden, of) =
            (self.common.hidden_size, (NormKind::ZeroCentred, self.common.rms_norm_eps));
        let name = |part: &str| format!("model.layers.{index}.{part}");
        let window = self.windows[index];
        let kind = AttentionKind {
            bias: self.attention_bias,
            qk_norm: Some(of),
            rope: if window.is_some() { SLIDING_ROPE } else { FULL_ROPE },
            scale: self.scale,
            window,
            kv_layer: index,
        };
        let mlp = MlpShape {
            hidden_size: hidden,
            intermediate_size: self.intermediate_size,
            activation: self.activation,
            bias: false,
        };
        let self_attn = Attention::load(weights, &name("self_attn"), self.attention, kind)?;
        let mlp = Mlp::load(weights, &name("mlp"), mlp)?;
        let mut norm = |part: &str| RmsNorm::load(weights, &name(part), hidden, of);
        Ok(Gemma3Layer {
            input_layernorm: norm("input_layernorm")?,
            self_attn,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            pre_feedforward_layernorm: norm("pre_feedforward_layernorm")?,
            mlp,
            post_feedforward_layernorm: norm("post_feedforward_layernorm")?,
        })
    }

    fn ignores(&self, name: &str) -> bool {
        name.starts_with("vision.") || name.contains("multi_modal_projector.")
    }
}

/// The window of each layer: by `layer_types`, or all but every `sliding_window_pattern`th.
fn windows(config: &ModelConfig, layers: usize) -> Result<Vec<Option<usize>>, Error> {
    let window = count_or(config, "sliding_window", SLIDING_WINDOW)?;
    if let Some(types) = layer_types(config, "layer_types", layers, &[FULL, SLIDING])? {
        return Ok(types.into_iter().map(|kind| (kind == SLIDING).then_some(window)).collect());
    }
    let key = match config.value("_sliding_window_pattern") {
        Some(_) => "_sliding_window_pattern",
        None => "sliding_window_pattern",
    };
    let pattern = count_or(config, key, SLIDING_WINDOW_PATTERN)?;
    let full = |index: usize| (index + 1).is_multiple_of(pattern);
    Ok((0..layers).map(|index| (!full(index)).then_some(window)).collect())
}

fn full_rope(config: &ModelConfig) -> Result<Rope, Error> {
    config.rope_or(Some(FULL), ROPE_THETA)
}

/// The rope of sliding layers: never scaled, with a base of its own in older configurations.
fn sliding_rope(config: &ModelConfig) -> Result<Rope, Error> {
    if config.value("rope_parameters").is_some_and(|nested| nested.get(SLIDING).is_some()) {
        return config.rope_or(Some(SLIDING), ROPE_LOCAL_BASE_FREQ);
    }
    let theta = positive(config, "rope_local_base_freq", ROPE_LOCAL_BASE_FREQ)?;
    Ok(Rope::unscaled(theta))
}

/// `x += post(attention(pre(x)))`, then `x += post(mlp(pre(x)))`.
#[derive(Debug)]
pub(crate) struct Gemma3Layer {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    pre_feedforward_layernorm: RmsNorm,
    mlp: Mlp,
    post_feedforward_layernorm: RmsNorm,
}

impl DecoderLayer for Gemma3Layer {
    fn forward(&self, work: &mut Workspace, at: &LayerStep<'_>) -> Result<(), Error> {
        let rows = at.rows();
        self.input_layernorm.forward(&work.normed, &work.hidden, rows)?;
        self.self_attn.forward(work, at, Output::Branch)?;
        self.post_attention_layernorm.forward(&work.normed, &work.branch, rows)?;
        add(&work.hidden, &work.normed, rows)?;

        self.pre_feedforward_layernorm.forward(&work.normed, &work.hidden, rows)?;
        self.mlp.forward(work, rows, Output::Branch)?;
        self.post_feedforward_layernorm.forward(&work.normed, &work.branch, rows)?;
        Ok(add(&work.hidden, &work.normed, rows)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(change: Value) -> ModelConfig {
        let mut json = json!({
            "model_type": "gemma3_text", "vocab_size": 256, "hidden_size": 64, "head_dim": 16,
            "intermediate_size": 128, "num_hidden_layers": 7, "num_attention_heads": 4,
            "num_key_value_heads": 2, "max_position_embeddings": 128, "sliding_window": 16,
        });
        json.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        ModelConfig::from_json("config.json", json).unwrap()
    }

    fn read(change: Value) -> Result<Gemma3, Error> {
        Gemma3::read(&config(change))
    }

    #[test]
    fn every_sixth_layer_is_full_unless_the_configuration_says_which() {
        let full =
            |gemma: &Gemma3| -> Vec<bool> { gemma.windows.iter().map(Option::is_none).collect() };
        let sixth = read(json!({})).unwrap();
        assert_eq!(full(&sixth), [false, false, false, false, false, true, false]);
        let second = read(json!({"sliding_window_pattern": 2})).unwrap();
        assert_eq!(full(&second), [false, true, false, true, false, true, false]);
        let mut types = vec![SLIDING; 7];
        types[0] = FULL;
        let typed = read(json!({"layer_types": types})).unwrap();
        assert_eq!(full(&typed), [true, false, false, false, false, false, false]);
    }

    #[test]
    fn both_spellings_of_two_ropes_are_read_alike() {
        let flat = json!({
            "rope_theta": 500000.0, "rope_local_base_freq": 20000.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        });
        let nested = json!({"rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 500000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 20000.0},
        }});
        let (flat, nested) = (read(flat).unwrap(), read(nested).unwrap());
        assert_eq!(flat.full_rope, nested.full_rope);
        assert_eq!(flat.sliding_rope, nested.sliding_rope);
        assert_eq!(flat.sliding_rope.theta, 20000.0);
        assert_eq!(read(json!({})).unwrap().full_rope.theta, ROPE_THETA);
    }

    #[test]
    fn the_head_is_tied_and_the_scale_its_own() {
        let gemma = read(json!({"query_pre_attn_scalar": 64})).unwrap();
        assert!(gemma.common.tied);
        assert_eq!((gemma.scale, gemma.frame().embedding_scale), (0.125, Some(8.0)));
    }

    #[test]
    fn sizes_that_hub_files_leave_out_are_those_of_transformers() {
        let gemma = read(json!({"num_attention_heads": null, "num_key_value_heads": null,
            "head_dim": null, "vocab_size": null, "max_position_embeddings": null}))
        .unwrap();
        assert_eq!((gemma.attention.q_dim(), gemma.attention.kv_dim()), (2048, 1024));
        assert_eq!(
            (gemma.common.vocab_size, gemma.common.max_position_embeddings),
            (262_208, 131_072)
        );
    }

    #[test]
    fn what_is_not_built_is_refused() {
        for (change, key) in [
            (json!({"final_logit_softcapping": 30.0}), "final_logit_softcapping"),
            (json!({"use_bidirectional_attention": true}), "use_bidirectional_attention"),
            (json!({"layer_types": [FULL]}), "layer_types"),
            (json!({"layer_types": vec!["linear_attention"; 7]}), "layer_types"),
        ] {
            let error = read(change).unwrap_err();
            assert!(matches!(&error, Error::Config { key: found, .. } if found == key), "{error}");
        }
    }
}
