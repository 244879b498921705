//! Qwen3 with experts (arXiv 2505.09388): Qwen3 whose MLPs are mixtures of experts in most layers.

use sconce_kernels::Activation;

use crate::checkpoint::ModelConfig;
use crate::error::Error;
use crate::layers::block::{Block, BlockShape};
use crate::layers::feed_forward::FeedForwardShape;
use crate::layers::mlp::{MlpShape, activation};
use crate::layers::moe::MoeShape;
use crate::layers::workspace::WorkspaceShape;
use crate::load::architecture::{Architecture, RopeSpec, StateShape};
use crate::load::config::{Common, count};
use crate::load::experts::{softmax_experts, sparse_layers};
use crate::load::weights::Weights;
use crate::qwen3::Qwen3Attention;

/// Configuration of a Qwen3 model with experts, by the keys of `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Qwen3Moe {
    common: Common,
    attention: Qwen3Attention,
    /// MLP of the layers without experts, if there are any.
    dense: Option<MlpShape>,
    experts: MoeShape,
    /// Whether a layer has experts.
    sparse: Vec<bool>,
}

impl Architecture for Qwen3Moe {
    type Layer = Block;

    fn read(config: &ModelConfig) -> Result<Self, Error> {
        let common = Common::read(config, false)?;
        let sparse = sparse_layers(config, common.layers)?;
        let renormalize = config.flag("norm_topk_prob")?.unwrap_or(false);
        let dense = match sparse.contains(&false) {
            true => Some(MlpShape {
                hidden_size: common.hidden_size,
                intermediate_size: count(config, "intermediate_size")?,
                activation: activation(config, "hidden_act", Activation::Silu)?,
                bias: false,
            }),
            false => None,
        };
        Ok(Self {
            attention: Qwen3Attention::read(config, common.layers)?,
            dense,
            experts: softmax_experts(config, renormalize)?,
            sparse,
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
        shape.intermediate_size = self.dense.map(|dense| dense.intermediate_size);
        self.experts.workspace(shape);
    }

    fn layer(&self, weights: &mut Weights<'_>, index: usize) -> Result<Block, Error> {
        let rms_norm_eps = self.common.rms_norm_eps;
        let mlp = match self.dense {
            Some(dense) if !self.sparse[index] => FeedForwardShape::Dense(dense),
            _ => FeedForwardShape::Sparse(self.experts),
        };
        let shape = BlockShape {
            attention: self.attention.shape,
            kind: self.attention.kind(index, rms_norm_eps),
            mlp,
            rms_norm_eps,
        };
        Block::load(weights, index, &shape)
    }
}
