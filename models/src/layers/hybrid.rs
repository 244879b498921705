//! The decoder block of Qwen3-Next and Qwen3.5: zero-centred norms, a mixer of tokens that is a gated
//! delta layer or gated attention, then an MLP or
//! experts.

use super::attention::AttentionShape;
use super::decoder::{DecoderLayer, LayerStep};
use super::feed_forward::{FeedForward, FeedForwardShape};
use super::gated_attention::GatedAttention;
use super::gated_delta_net::{DeltaShape, GatedDeltaNet};
use super::norm::{NormKind, RmsNorm};
use super::workspace::Workspace;
use crate::error::Error;
use crate::load::weights::Weights;

/// How a block mixes tokens, and which of the model's layers of that kind it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MixerKind {
    /// A gated delta layer.
    Delta(usize),
    /// Gated attention.
    Attention(usize),
}

/// What a block is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HybridShape {
    pub(crate) delta: DeltaShape,
    pub(crate) attention: AttentionShape,
    pub(crate) mixer: MixerKind,
    pub(crate) mlp: FeedForwardShape,
    pub(crate) rms_norm_eps: f32,
}

/// Weights of a block.
#[derive(Debug)]
pub(crate) struct HybridBlock {
    input_layernorm: RmsNorm,
    mixer: Mixer,
    post_attention_layernorm: RmsNorm,
    mlp: FeedForward,
}

#[derive(Debug)]
enum Mixer {
    Delta(Box<GatedDeltaNet>),
    Attention(Box<GatedAttention>),
}

impl HybridBlock {
    /// Reads `model.layers.<index>`.
    ///
    /// # Errors
    /// A tensor that is missing, has another shape or cannot be read.
    pub(crate) fn load(
        weights: &mut Weights<'_>,
        index: usize,
        shape: &HybridShape,
    ) -> Result<Self, Error> {
        let name = |part: &str| format!("model.layers.{index}.{part}");
        let (eps, hidden) = (shape.rms_norm_eps, shape.attention.hidden_size);
        let of = (NormKind::ZeroCentred, eps);
        let mixer = match shape.mixer {
            MixerKind::Delta(layer) => {
                let name = name("linear_attn");
                let net = GatedDeltaNet::load(weights, &name, &shape.delta, eps, layer)?;
                Mixer::Delta(Box::new(net))
            }
            MixerKind::Attention(layer) => {
                let name = name("self_attn");
                let net = GatedAttention::load(weights, &name, shape.attention, eps, layer)?;
                Mixer::Attention(Box::new(net))
            }
        };
        let mlp = FeedForward::load(weights, &name("mlp"), shape.mlp)?;
        let (input, post) = (name("input_layernorm"), name("post_attention_layernorm"));
        Ok(Self {
            input_layernorm: RmsNorm::load(weights, &input, hidden, of)?,
            mixer,
            post_attention_layernorm: RmsNorm::load(weights, &post, hidden, of)?,
            mlp,
        })
    }
}

impl DecoderLayer for HybridBlock {
    fn forward(&self, work: &mut Workspace, at: &LayerStep<'_>) -> Result<(), Error> {
        let rows = at.rows();
        self.input_layernorm.forward(&work.normed, &work.hidden, rows)?;
        match &self.mixer {
            Mixer::Delta(net) => net.forward(work, at)?,
            Mixer::Attention(net) => net.forward(work, at)?,
        }
        self.post_attention_layernorm.forward(&work.normed, &work.hidden, rows)?;
        self.mlp.forward(work, rows)
    }
}
