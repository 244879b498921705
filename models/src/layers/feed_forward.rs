//! What follows attention in a block: one gated MLP, or a mixture of experts.

use super::mlp::{Mlp, MlpShape, Output};
use super::moe::{Moe, MoeShape};
use super::workspace::{Workspace, WorkspaceShape};
use crate::error::Error;
use crate::load::weights::Weights;

/// Which of the two, and its sizes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum FeedForwardShape {
    /// One gated MLP.
    Dense(MlpShape),
    /// A mixture of experts.
    Sparse(MoeShape),
}

impl FeedForwardShape {
    /// Says which buffers such layers need, beside those that others have asked for.
    pub(crate) fn workspace(&self, shape: &mut WorkspaceShape) {
        match self {
            Self::Dense(mlp) => {
                let width = shape.intermediate_size.unwrap_or(0).max(mlp.intermediate_size);
                shape.intermediate_size = Some(width);
            }
            Self::Sparse(moe) => moe.workspace(shape),
        }
    }
}

/// Weights of either.
#[derive(Debug)]
pub(crate) enum FeedForward {
    /// One gated MLP.
    Dense(Mlp),
    /// A mixture of experts.
    Sparse(Box<Moe>),
}

impl FeedForward {
    /// Reads what `shape` says, under `name`.
    ///
    /// # Errors
    /// A tensor that is missing, has another shape or cannot be read.
    pub(crate) fn load(
        weights: &mut Weights<'_>,
        name: &str,
        shape: FeedForwardShape,
    ) -> Result<Self, Error> {
        Ok(match shape {
            FeedForwardShape::Dense(shape) => Self::Dense(Mlp::load(weights, name, shape)?),
            FeedForwardShape::Sparse(shape) => {
                Self::Sparse(Box::new(Moe::load(weights, name, shape)?))
            }
        })
    }

    /// Adds its result for the normalized rows to the residual stream.
    ///
    /// # Errors
    /// An operator refused.
    pub(crate) fn forward(&self, work: &mut Workspace, rows: usize) -> Result<(), Error> {
        match self {
            Self::Dense(mlp) => mlp.forward(work, rows, Output::Add),
            Self::Sparse(moe) => moe.forward(work, rows),
        }
    }
}
