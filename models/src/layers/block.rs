//! The plain decoder block, of Llama and Qwen3: `x += attention(norm(x))`, then `x += mlp(norm(x))`,
//! where the MLP may be a mixture of experts.

use super::attention::{Attention, AttentionKind, AttentionShape};
use super::decoder::{DecoderLayer, LayerStep};
use super::feed_forward::{FeedForward, FeedForwardShape};
use super::mlp::Output;
use super::norm::{NormKind, RmsNorm};
use super::workspace::Workspace;
use crate::error::Error;
use crate::load::weights::Weights;

/// What a plain block is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockShape {
    pub(crate) attention: AttentionShape,
    pub(crate) kind: AttentionKind,
    pub(crate) mlp: FeedForwardShape,
    pub(crate) rms_norm_eps: f32,
}

/// Weights of a plain block.
#[derive(Debug)]
pub(crate) struct Block {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: FeedForward,
}

impl Block {
    /// Reads `model.layers.<index>`.
    ///
    /// # Errors
    /// A tensor that is missing, has another shape or cannot be read.
    pub(crate) fn load(
        weights: &mut Weights<'_>,
        index: usize,
        shape: &BlockShape,
    ) -> Result<Self, Error> {
        let name = |part: &str| format!("model.layers.{index}.{part}");
        let (hidden, norm) = (shape.attention.hidden_size, (NormKind::Plain, shape.rms_norm_eps));
        let (input, post) = (name("input_layernorm"), name("post_attention_layernorm"));
        Ok(Self {
            input_layernorm: RmsNorm::load(weights, &input, hidden, norm)?,
            self_attn: Attention::load(weights, &name("self_attn"), shape.attention, shape.kind)?,
            post_attention_layernorm: RmsNorm::load(weights, &post, hidden, norm)?,
            mlp: FeedForward::load(weights, &name("mlp"), shape.mlp)?,
        })
    }
}

impl DecoderLayer for Block {
    fn forward(&self, work: &mut Workspace, at: &LayerStep<'_>) -> Result<(), Error> {
        let rows = at.rows();
        self.input_layernorm.forward(&work.normed, &work.hidden, rows)?;
        self.self_attn.forward(work, at, Output::Add)?;
        self.post_attention_layernorm.forward(&work.normed, &work.hidden, rows)?;
        self.mlp.forward(work, rows)
    }
}
