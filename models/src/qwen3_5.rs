//! Qwen3.5, its text models, dense or with experts: the layers of Qwen3-Next, whose projections its
//! checkpoints store apart.

use crate::checkpoint::ModelConfig;
use crate::error::Error;
use crate::hybrid::{Hybrid, HybridVariant, dense};
use crate::layers::feed_forward::FeedForwardShape;
use crate::load::config::Common;
use crate::load::experts::softmax_experts;

/// Configuration of a dense Qwen3.5 model.
pub(crate) type Qwen3_5 = Hybrid<Dense>;

/// Configuration of a Qwen3.5 model with experts.
pub(crate) type Qwen3_5Moe = Hybrid<Sparse>;

/// One gated MLP in every layer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Dense;

impl HybridVariant for Dense {
    const DEFAULTS: &[(&str, usize)] = &[
        ("vocab_size", 248_320),
        ("hidden_size", 4096),
        ("num_hidden_layers", 32),
        ("num_key_value_heads", 4),
        ("intermediate_size", 12_288),
    ];

    fn mlps(config: &ModelConfig, common: &Common) -> Result<Vec<FeedForwardShape>, Error> {
        Ok(vec![dense(config, common)?; common.layers])
    }
}

/// Experts in every layer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sparse;

impl HybridVariant for Sparse {
    const DEFAULTS: &[(&str, usize)] = &[
        ("vocab_size", 248_320),
        ("hidden_size", 2048),
        ("num_hidden_layers", 40),
        ("num_key_value_heads", 2),
        ("num_experts_per_tok", 8),
        ("moe_intermediate_size", 512),
        ("shared_expert_intermediate_size", 512),
    ];

    fn mlps(config: &ModelConfig, common: &Common) -> Result<Vec<FeedForwardShape>, Error> {
        // `transformers` has no key for it and always does; others have one, which says the same.
        let renormalize = config.flag("norm_topk_prob")?.unwrap_or(true);
        let sparse = FeedForwardShape::Sparse(softmax_experts(config, renormalize)?);
        Ok(vec![sparse; common.layers])
    }
}
