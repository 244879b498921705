//! Root mean square normalization with its weight.

use candle_core::Tensor;
use sconce_kernels::rms_norm;

use crate::error::Error;
use crate::load::weights::Weights;

/// What the weight of a norm is a factor of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NormKind {
    /// `x * w`.
    Plain,
    /// `x * (1 + w)`: trained around zero. Some packings store `1 + w`, see
    /// [`Conventions`](crate::checkpoint::Conventions).
    ZeroCentred,
}

/// `x / sqrt(mean(x^2) + eps) * weight`.
#[derive(Debug)]
pub(crate) struct RmsNorm {
    /// `[dim]`, as a factor.
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
        (kind, eps): (NormKind, f32),
    ) -> Result<Self, Error> {
        let shifted = kind == NormKind::Plain || weights.conventions().norms_shifted;
        let offset = if shifted { 0.0 } else { 1.0 };
        let weight = weights.vector_map(&format!("{name}.weight"), dim, |w| w + offset)?;
        Ok(Self { weight, eps })
    }

    /// The weight as a factor, `[dim]`, and what is added to the mean of the squares.
    pub(crate) fn parts(&self) -> (&Tensor, f32) {
        (&self.weight, self.eps)
    }

    /// Normalizes the leading `rows` of `x` into `out`, both `[capacity, n * dim]`, each run of `dim`
    /// elements on its own.
    ///
    /// # Errors
    /// The operator refused.
    pub(crate) fn forward(&self, out: &Tensor, x: &Tensor, rows: usize) -> Result<(), Error> {
        Ok(rms_norm(out, x, &self.weight, self.eps, rows)?)
    }
}
