//! A linear layer: a packed weight and, where the checkpoint has one, a bias.

use std::sync::Arc;

use candle_core::Tensor;
use sconce_kernels::matmul::PRODUCTS_MAX;
use sconce_kernels::{Activations, Matrix, Mode, Product, add_bias, matmul, matmuls};

use crate::error::Error;
use crate::load::weights::Weights;

/// `x * weight^T + bias`.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    /// `[out, in]`; shared where an embedding serves as the head.
    pub(crate) weight: Arc<Matrix>,
    /// `[out]`.
    bias: Option<Tensor>,
}

impl Linear {
    /// Reads `<name>.weight`, `[outputs, inputs]`, and with `has_bias` `<name>.bias`, `[outputs]`.
    ///
    /// # Errors
    /// A tensor that is missing, has another shape or cannot be read.
    pub(crate) fn load(
        weights: &mut Weights<'_>,
        name: &str,
        (outputs, inputs): (usize, usize),
        has_bias: bool,
    ) -> Result<Self, Error> {
        let weight = Arc::new(weights.matrix(&format!("{name}.weight"), outputs, inputs)?);
        let bias = match has_bias {
            true => Some(weights.vector(&format!("{name}.bias"), outputs)?),
            false => None,
        };
        Ok(Self { weight, bias })
    }

    /// A layer of a weight and a bias, `[out]`, that were read already.
    pub(crate) fn new(weight: Matrix, bias: Option<Tensor>) -> Self {
        Self { weight: Arc::new(weight), bias }
    }

    /// A layer without a bias around a weight that is there already.
    pub(crate) fn shared(weight: Arc<Matrix>) -> Self {
        Self { weight, bias: None }
    }

    /// Writes the leading `rows` of `out`, or adds to them; `x` was prepared with as many.
    ///
    /// # Errors
    /// The operator refused.
    pub(crate) fn forward(
        &self,
        out: &Tensor,
        x: &Activations<'_>,
        rows: usize,
        mode: Mode,
    ) -> Result<(), Error> {
        matmul(out, x, &self.weight, mode)?;
        self.add_bias(out, rows)
    }

    /// Writes the leading `rows` of the output beside each layer; all read the same `x`, which was
    /// prepared with as many.
    ///
    /// # Errors
    /// The operator refused.
    pub(crate) fn forward_all<const N: usize>(
        layers: [(&Self, &Tensor); N],
        x: &Activations<'_>,
        rows: usize,
    ) -> Result<(), Error> {
        const { assert!(N <= PRODUCTS_MAX, "more products than a fork takes") }
        let products = layers.map(|(layer, out)| Product { out, weight: &layer.weight });
        matmuls(&products, x, Mode::Store)?;
        layers.into_iter().try_for_each(|(layer, out)| layer.add_bias(out, rows))
    }

    fn add_bias(&self, out: &Tensor, rows: usize) -> Result<(), Error> {
        if let Some(bias) = &self.bias {
            add_bias(out, bias, rows)?;
        }
        Ok(())
    }
}
