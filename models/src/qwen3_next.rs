//! Qwen3-Next: three gated delta layers to one of gated attention, with a mixture of experts after
//! each.

use crate::checkpoint::ModelConfig;
use crate::error::Error;
use crate::hybrid::{Hybrid, HybridVariant, dense};
use crate::layers::feed_forward::FeedForwardShape;
use crate::load::config::Common;
use crate::load::experts::{softmax_experts, sparse_layers};

/// Configuration of a Qwen3-Next model.
pub(crate) type Qwen3Next = Hybrid<Next>;

/// Experts in most layers: by `decoder_sparse_step` and `mlp_only_layers`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Next;

impl HybridVariant for Next {
    const DEFAULTS: &[(&str, usize)] = &[
        ("vocab_size", 151_936),
        ("hidden_size", 2048),
        ("num_hidden_layers", 48),
        ("num_key_value_heads", 2),
        ("intermediate_size", 5632),
        ("num_experts_per_tok", 10),
        ("moe_intermediate_size", 512),
        ("shared_expert_intermediate_size", 512),
    ];

    fn mlps(config: &ModelConfig, common: &Common) -> Result<Vec<FeedForwardShape>, Error> {
        let renormalize = config.flag("norm_topk_prob")?.unwrap_or(true);
        let sparse = FeedForwardShape::Sparse(softmax_experts(config, renormalize)?);
        let dense = dense(config, common)?;
        let of = |has_experts: bool| if has_experts { sparse } else { dense };
        Ok(sparse_layers(config, common.layers)?.into_iter().map(of).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::architecture::Architecture;
    use serde_json::json;

    #[test]
    fn layers_without_experts_have_one_mlp() {
        let config = json!({
            "model_type": "qwen3_next", "num_hidden_layers": 4, "mlp_only_layers": [2],
            "decoder_sparse_step": 2, "norm_topk_prob": false, "num_experts": 512,
        });
        let config = ModelConfig::from_json("config.json", config).unwrap();
        let common = Qwen3Next::read(&config).unwrap().common().clone();
        let defaults: Vec<_> = Next::DEFAULTS.iter().map(|(key, of)| (*key, json!(of))).collect();
        let mlps = Next::mlps(&config.with_defaults(&defaults), &common).unwrap();
        let experts = mlps.iter().map(|mlp| match mlp {
            FeedForwardShape::Dense(mlp) => {
                assert_eq!(mlp.intermediate_size, 5632);
                None
            }
            FeedForwardShape::Sparse(moe) => {
                assert_eq!(moe.shared.map(|shared| shared.intermediate_size), Some(512));
                Some((moe.experts, moe.router.experts_per_token, moe.router.renormalize))
            }
        });
        let sparse = Some((512, 10, false));
        assert_eq!(experts.collect::<Vec<_>>(), [None, sparse, None, sparse]);
    }
}
