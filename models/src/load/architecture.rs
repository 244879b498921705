//! What an architecture says of itself, so that one loader estimates, checks and loads them all.

use super::config::Common;
use super::weights::Weights;
use crate::checkpoint::{ModelConfig, Rope};
use crate::error::Error;
use crate::layers::attention::AttentionShape;
use crate::layers::decoder::DecoderLayer;
use crate::layers::norm::NormKind;
use crate::layers::workspace::WorkspaceShape;
use crate::state::{AttentionGroup, RecurrentGroup};

/// A decoder-only architecture: its configuration, read and checked, and how its layers are made.
///
/// Everything around the layers is the same for all: embedding, final norm, head, state, buffers.
/// `layers/decoder.rs` has it.
pub(crate) trait Architecture: Sized {
    /// One decoder layer.
    type Layer: DecoderLayer;

    /// Reads and checks a configuration. A key that would change the result and is not supported is
    /// an error.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key.
    fn read(config: &ModelConfig) -> Result<Self, Error>;

    /// What all architectures have.
    fn common(&self) -> &Common;

    /// Most tokens of a sequence that the architecture can be asked for; the trained context unless
    /// its positions reach further.
    fn context_length_max(&self) -> usize {
        self.common().max_position_embeddings
    }

    /// What is done between embedding and head besides layers.
    fn frame(&self) -> Frame {
        Frame { norm: NormKind::Plain, embedding_scale: None }
    }

    /// State of its attention and recurrent layers.
    fn state(&self) -> StateShape;

    /// Tokens that one sees in attention layer `index`, counted over the attention layers; all of
    /// them if `None`.
    fn window(&self, index: usize) -> Option<usize> {
        let _ = index;
        None
    }

    /// The rotary embeddings of its layers, which name them by index, and the heads they turn.
    fn ropes(&self) -> Vec<RopeSpec>;

    /// Columns of the buffers of a step.
    fn workspace(&self, shape: &mut WorkspaceShape);

    /// Reads layer `index`.
    ///
    /// # Errors
    /// A tensor that is missing, has another shape or cannot be read.
    fn layer(&self, weights: &mut Weights<'_>, index: usize) -> Result<Self::Layer, Error>;

    /// Whether a tensor, by its canonical name, has no place in the model and is no loss.
    fn ignores(&self, name: &str) -> bool {
        let _ = name;
        false
    }
}

/// What surrounds the layers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Frame {
    /// How the final norm stores its weight.
    pub(crate) norm: NormKind,
    /// Factor of the embedding's rows.
    pub(crate) embedding_scale: Option<f32>,
}

/// What the layers keep of a sequence.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct StateShape {
    /// Attention layers.
    pub(crate) attention: Vec<AttentionGroup>,
    /// Recurrent layers.
    pub(crate) recurrent: Option<RecurrentGroup>,
}

impl StateShape {
    /// Keys and values of `layers` attention layers of one shape.
    pub(crate) fn attention(layers: usize, shape: &AttentionShape) -> Self {
        let AttentionShape { kv_heads, head_dim, .. } = *shape;
        let group = AttentionGroup::of_heads(layers, kv_heads, head_dim);
        Self { attention: vec![group], recurrent: None }
    }
}

/// A rotary embedding and the size of the heads whose front it turns.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RopeSpec {
    /// Base and scaling.
    pub(crate) rope: Rope,
    /// Elements of a head.
    pub(crate) head_dim: usize,
}
