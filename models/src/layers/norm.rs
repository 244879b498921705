//! Root mean square normalization with its weight.

use candle_core::Tensor;
use sconce_kernels::rms_norm;

use crate::error::Error;
use crate::load::weights::Weights;

/// `x / sqrt(mean(x^2) + eps) * weight`.
#[derive(Debug)]
pub(crate) struct RmsNorm {
    /// `[dim]`.
    weight: Tensor,
    eps: f32,
}

impl RmsNorm {
    /// Reads `<name>.weight`, `[dim]`.
    ///
    /// # Errors
    /// A tensor that is missing, has another shape or cannot be read.
    pub(crate) fn load(
        weights: &mut Weights<'_>,
        name: &str,
        dim: usize,
        eps: f32,
    ) -> Result<Self, Error> {
        Ok(Self { weight: weights.vector(&format!("{name}.weight"), dim)?, eps })
    }

    /// Normalizes the leading `rows` of `x` into `out`, both `[capacity, dim]`.
    ///
    /// # Errors
    /// The operator refused.
    pub(crate) fn forward(&self, out: &Tensor, x: &Tensor, rows: usize) -> Result<(), Error> {
        Ok(rms_norm(out, x, &self.weight, self.eps, rows)?)
    }
}
