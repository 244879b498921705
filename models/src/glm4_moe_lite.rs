//! GLM-4 MoE Lite (GLM-4.7-Flash): latent attention as in DeepSeek-V3 (arXiv 2412.19437), first layers
//! dense, the rest mixtures of experts with a sigmoid router in groups and shared experts.

use sconce_kernels::{Activation, KvType, RopeLayout};
use serde_json::json;

use crate::checkpoint::{ModelConfig, Rope, RopeScaling};
use crate::error::Error;
use crate::layers::decoder::{DecoderLayer, LayerStep};
use crate::layers::feed_forward::{FeedForward, FeedForwardShape};
use crate::layers::latent_attention::{LatentAttention, LatentKind, LatentShape};
use crate::layers::mlp::{MlpShape, activation};
use crate::layers::moe::MoeShape;
use crate::layers::norm::{NormKind, RmsNorm};
use crate::layers::workspace::{Workspace, WorkspaceShape};
use crate::load::architecture::{Architecture, RopeSpec, StateShape};
use crate::load::config::{Common, count, count_or, layer_types, product};
use crate::load::experts::sigmoid_experts;
use crate::load::weights::Weights;
use crate::state::AttentionGroup;

/// Names of the two kinds of layers in `mlp_layer_types`.
const DENSE: &str = "dense";
const SPARSE: &str = "sparse";

/// Dense layers at the start where the configuration does not say.
const FIRST_K_DENSE_REPLACE: usize = 1;

/// Layers for speculation after the last, where the configuration does not say.
const NUM_NEXTN_PREDICT_LAYERS: usize = 1;

/// Factor on the weights of experts where the configuration does not say.
const ROUTED_SCALING_FACTOR: f64 = 1.8;

/// Epsilon of the norms on latents, whatever `rms_norm_eps` is: so `transformers`, and the models'
/// own code before it.
const LATENT_NORM_EPS: f32 = 1e-6;

/// Configuration of the model, by the keys of `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Glm4MoeLite {
    common: Common,
    attention: LatentShape,
    attention_bias: bool,
    scale: f32,
    rope: Rope,
    rope_layout: RopeLayout,
    /// MLP of the layers without experts.
    dense: MlpShape,
    /// Experts of the others, if there are any.
    experts: Option<MoeShape>,
    /// Whether a layer has experts.
    sparse: Vec<bool>,
    next_layers: usize,
}

/// Sizes of the attention layers.
fn latent_shape(config: &ModelConfig) -> Result<LatentShape, Error> {
    let shape = LatentShape {
        hidden_size: count(config, "hidden_size")?,
        heads: count(config, "num_attention_heads")?,
        // Queries are projected at once where the key is null, which counts as absent.
        q_lora_rank: config
            .value("q_lora_rank")
            .map(|_| count(config, "q_lora_rank"))
            .transpose()?,
        kv_lora_rank: count(config, "kv_lora_rank")?,
        nope_dim: count(config, "qk_nope_head_dim")?,
        rope_dim: count(config, "qk_rope_head_dim")?,
        value_dim: count(config, "v_head_dim")?,
    };
    for (key, dim) in [
        ("kv_lora_rank", shape.kv_lora_rank),
        ("qk_nope_head_dim", shape.nope_dim + shape.rope_dim),
        ("v_head_dim", shape.nope_dim + shape.value_dim),
    ] {
        product(config, key, shape.heads, dim)?;
    }
    match count_or(config, "num_key_value_heads", shape.heads)? {
        heads if heads == shape.heads => Ok(shape),
        other => Err(config.error("num_key_value_heads", shape.heads, other)),
    }
}

/// Which layers are mixtures of experts: by `mlp_layer_types`, or all after the first few.
fn sparse_layers(config: &ModelConfig, layers: usize) -> Result<Vec<bool>, Error> {
    if let Some(types) = layer_types(config, "mlp_layer_types", layers, &[DENSE, SPARSE])? {
        return Ok(types.into_iter().map(|kind| kind == SPARSE).collect());
    }
    match config.count("moe_layer_freq")? {
        None | Some(1) => {}
        Some(other) => return Err(config.error("moe_layer_freq", 1, other)),
    }
    let dense = config.count("first_k_dense_replace")?.unwrap_or(FIRST_K_DENSE_REPLACE);
    Ok((0..layers).map(|index| index >= dense).collect())
}

/// The rope of the turned part of heads, all of which is turned.
fn rope(config: &ModelConfig) -> Result<Rope, Error> {
    let rope = config.rope(None)?;
    match rope.partial_rotary_factor {
        1.0 => Ok(rope),
        other => Err(config.error("partial_rotary_factor", "1: qk_rope_head_dim says it", other)),
    }
}

/// Scale of the scores: that of whole heads, rescaled where YaRN asks for it (`mscale_all_dim`).
fn scale(config: &ModelConfig, shape: &LatentShape, rope: &Rope) -> Result<f32, Error> {
    let scale = ((shape.nope_dim + shape.rope_dim) as f64).sqrt().recip();
    let mscale = match &rope.scaling {
        RopeScaling::Yarn(yarn) if yarn.factor > 1.0 => {
            0.1 * yarn.mscale_all_dim.unwrap_or(0.0) * yarn.factor.ln() + 1.0
        }
        RopeScaling::Yarn(_) | RopeScaling::Default => 1.0,
        _ => {
            for key in ["rope_parameters", "rope_scaling"] {
                let found = config.value(key).and_then(|values| values.get("mscale_all_dim"));
                if let Some(found) = found {
                    let key = format!("{key}.mscale_all_dim");
                    return Err(config.error(&key, "nothing but with yarn", found));
                }
            }
            1.0
        }
    };
    Ok((scale * mscale * mscale) as f32)
}

impl Architecture for Glm4MoeLite {
    type Layer = Glm4Layer;

    fn read(config: &ModelConfig) -> Result<Self, Error> {
        let config =
            &config.with_defaults(&[("routed_scaling_factor", json!(ROUTED_SCALING_FACTOR))]);
        let common = Common::read(config, false)?;
        let sparse = sparse_layers(config, common.layers)?;
        let attention = latent_shape(config)?;
        let rope = rope(config)?;
        let interleave = config.flag("rope_interleave")?.unwrap_or(true);
        Ok(Self {
            scale: scale(config, &attention, &rope)?,
            attention_bias: config.flag("attention_bias")?.unwrap_or(false),
            rope,
            rope_layout: if interleave { RopeLayout::Interleaved } else { RopeLayout::Half },
            dense: MlpShape {
                hidden_size: common.hidden_size,
                intermediate_size: count(config, "intermediate_size")?,
                activation: activation(config, "hidden_act", Activation::Silu)?,
                bias: false,
            },
            experts: sparse.contains(&true).then(|| sigmoid_experts(config)).transpose()?,
            sparse,
            next_layers: config
                .count("num_nextn_predict_layers")?
                .unwrap_or(NUM_NEXTN_PREDICT_LAYERS),
            attention,
            common,
        })
    }

    fn common(&self) -> &Common {
        &self.common
    }

    fn state(&self) -> StateShape {
        let group = AttentionGroup {
            layers: self.common.layers,
            kv_heads: 1,
            key_dim: self.attention.rope_dim,
            value_dim: self.attention.kv_lora_rank,
            kv_type: KvType::F32,
        };
        StateShape { attention: vec![group], recurrent: None }
    }

    fn ropes(&self) -> Vec<RopeSpec> {
        vec![RopeSpec { rope: self.rope.clone(), head_dim: self.attention.rope_dim }]
    }

    fn workspace(&self, shape: &mut WorkspaceShape) {
        shape.latent = Some(self.attention);
        shape.intermediate_size = Some(self.dense.intermediate_size);
        if let Some(experts) = &self.experts {
            experts.workspace(shape);
        }
    }

    fn layer(&self, weights: &mut Weights<'_>, index: usize) -> Result<Glm4Layer, Error> {
        let name = |part: &str| format!("model.layers.{index}.{part}");
        let (hidden, norm) = (self.common.hidden_size, (NormKind::Plain, self.common.rms_norm_eps));
        let kind = LatentKind {
            bias: self.attention_bias,
            scale: self.scale,
            layout: self.rope_layout,
            eps: LATENT_NORM_EPS,
            kv_layer: index,
        };
        let (input, post) = (name("input_layernorm"), name("post_attention_layernorm"));
        let mlp = match self.experts {
            Some(experts) if self.sparse[index] => FeedForwardShape::Sparse(experts),
            _ => FeedForwardShape::Dense(self.dense),
        };
        Ok(Glm4Layer {
            input_layernorm: RmsNorm::load(weights, &input, hidden, norm)?,
            self_attn: LatentAttention::load(weights, &name("self_attn"), self.attention, kind)?,
            post_attention_layernorm: RmsNorm::load(weights, &post, hidden, norm)?,
            mlp: FeedForward::load(weights, &name("mlp"), mlp)?,
        })
    }

    fn ignores(&self, name: &str) -> bool {
        // Layers that predict further tokens follow the last one.
        let index = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
        let index = index.and_then(|(index, _)| index.parse::<usize>().ok());
        let first = self.common.layers;
        index.is_some_and(|index| (first..first.saturating_add(self.next_layers)).contains(&index))
    }
}

/// Weights of a layer.
#[derive(Debug)]
pub(crate) struct Glm4Layer {
    input_layernorm: RmsNorm,
    self_attn: LatentAttention,
    post_attention_layernorm: RmsNorm,
    mlp: FeedForward,
}

impl DecoderLayer for Glm4Layer {
    fn forward(&self, work: &mut Workspace, at: &LayerStep<'_>) -> Result<(), Error> {
        let rows = at.rows();
        self.input_layernorm.forward(&work.normed, &work.hidden, rows)?;
        self.self_attn.forward(work, at)?;
        self.post_attention_layernorm.forward(&work.normed, &work.hidden, rows)?;
        self.mlp.forward(work, rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(change: Value) -> Result<Glm4MoeLite, Error> {
        let mut json = json!({
            "model_type": "glm4_moe_lite", "vocab_size": 96, "hidden_size": 32,
            "intermediate_size": 48, "moe_intermediate_size": 16, "num_hidden_layers": 3,
            "num_attention_heads": 3, "q_lora_rank": 20, "kv_lora_rank": 16,
            "qk_rope_head_dim": 8, "qk_nope_head_dim": 12, "v_head_dim": 14,
            "n_routed_experts": 8, "num_experts_per_tok": 3, "max_position_embeddings": 512,
        });
        json.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        Glm4MoeLite::read(&ModelConfig::from_json("config.json", json).unwrap())
    }

    #[test]
    fn what_is_absent_has_the_defaults_of_the_architecture() {
        let config = read(json!({})).unwrap();
        assert_eq!(config.rope_layout, RopeLayout::Interleaved);
        assert_eq!(config.sparse, [false, true, true]);
        assert_eq!(config.scale, 20_f32.sqrt().recip());
        let router = config.experts.unwrap().router;
        assert_eq!((router.scale, router.renormalize, router.groups), (1.8, true, 1));
        assert!(!config.attention_bias && !config.common.tied);
        let plain = read(json!({"q_lora_rank": null, "rope_interleave": false})).unwrap();
        assert_eq!((plain.attention.q_lora_rank, plain.rope_layout), (None, RopeLayout::Half));
    }

    #[test]
    fn a_token_keeps_its_latent_and_one_rope_key() {
        let state = read(json!({})).unwrap().state();
        let group = AttentionGroup {
            layers: 3,
            kv_heads: 1,
            key_dim: 8,
            value_dim: 16,
            kv_type: KvType::F32,
        };
        assert_eq!(state, StateShape { attention: vec![group], recurrent: None });
    }

    #[test]
    fn layers_are_sparse_by_their_types_or_after_the_first_few() {
        let sparse = |change| read(change).unwrap().sparse;
        assert_eq!(sparse(json!({"first_k_dense_replace": 2})), [false, false, true]);
        assert_eq!(sparse(json!({"first_k_dense_replace": 0})), [true; 3]);
        let types = json!(["sparse", "dense", "sparse"]);
        let both = json!({"mlp_layer_types": types, "first_k_dense_replace": 2});
        assert_eq!(sparse(both), [true, false, true]);
        let none = json!({"first_k_dense_replace": 3, "n_routed_experts": null});
        assert_eq!(read(none).unwrap().experts, None);
    }

    #[test]
    fn yarn_rescales_the_scores_by_the_square_of_its_factor() {
        let with = |mscale_all_dim: f64| {
            let yarn = json!({
                "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64,
                "mscale_all_dim": mscale_all_dim,
            });
            read(json!({"rope_scaling": yarn})).unwrap().scale
        };
        let factor = 0.1 * 0.8 * 4.0_f64.ln() + 1.0;
        assert_eq!(with(0.8), (20_f64.sqrt().recip() * factor * factor) as f32);
        assert_eq!(with(0.0), 20_f32.sqrt().recip());
    }

    #[test]
    fn layers_after_the_last_are_ignored_and_no_others() {
        let config = read(json!({})).unwrap();
        assert!(config.ignores("model.layers.3.eh_proj.weight"));
        assert!(!config.ignores("model.layers.2.mlp.gate.weight"));
        assert!(!config.ignores("model.layers.4.eh_proj.weight"));
        assert!(!config.ignores("model.norm.weight"));
        let none = read(json!({"num_nextn_predict_layers": 0})).unwrap();
        assert!(!none.ignores("model.layers.3.eh_proj.weight"));
    }

    #[test]
    fn a_key_that_cannot_be_is_named() {
        for (change, key) in [
            (json!({"kv_lora_rank": null}), "kv_lora_rank"),
            (json!({"q_lora_rank": 0}), "q_lora_rank"),
            (json!({"qk_rope_head_dim": 0}), "qk_rope_head_dim"),
            (json!({"v_head_dim": 1 << 24}), "v_head_dim"),
            (json!({"num_key_value_heads": 1}), "num_key_value_heads"),
            (json!({"scoring_func": "softmax"}), "scoring_func"),
            (json!({"topk_method": "greedy"}), "topk_method"),
            (json!({"moe_layer_freq": 2}), "moe_layer_freq"),
            (json!({"mlp_layer_types": ["dense"]}), "mlp_layer_types"),
            (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
            (
                json!({"rope_scaling": {"type": "linear", "factor": 2.0, "mscale_all_dim": 1.0}}),
                "rope_scaling.mscale_all_dim",
            ),
        ] {
            let error = read(change).unwrap_err();
            assert!(matches!(&error, Error::Config { key: found, .. } if found == key), "{error}");
        }
    }
}
