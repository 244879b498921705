//! The gated MLP: `down(silu(gate(x)) * up(x))`.

use sconce_kernels::{Mode, silu_mul};

use super::linear::Linear;
use super::workspace::Workspace;
use crate::error::Error;
use crate::load::weights::Weights;

/// Weights of a gated MLP.
#[derive(Debug)]
pub(crate) struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

impl Mlp {
    /// Reads `<name>.{gate,up,down}_proj`.
    ///
    /// # Errors
    /// A tensor that is missing, has another shape or cannot be read.
    pub(crate) fn load(
        weights: &mut Weights<'_>,
        name: &str,
        hidden_size: usize,
        intermediate_size: usize,
        bias: bool,
    ) -> Result<Self, Error> {
        let wide = (intermediate_size, hidden_size);
        let narrow = (hidden_size, intermediate_size);
        Ok(Self {
            gate_proj: Linear::load(weights, &format!("{name}.gate_proj"), wide, bias)?,
            up_proj: Linear::load(weights, &format!("{name}.up_proj"), wide, bias)?,
            down_proj: Linear::load(weights, &format!("{name}.down_proj"), narrow, bias)?,
        })
    }

    /// Adds the MLP of the normalized rows to the residual stream.
    ///
    /// # Errors
    /// An operator refused.
    pub(crate) fn forward(&self, work: &mut Workspace, rows: usize) -> Result<(), Error> {
        let (gate, up, down) = (&self.gate_proj, &self.up_proj, &self.down_proj);
        let x = work.activations.prepare(&work.normed, rows, &[&gate.weight, &up.weight])?;
        gate.forward(&work.gate, &x, rows, Mode::Store)?;
        up.forward(&work.up, &x, rows, Mode::Store)?;
        silu_mul(&work.gated, &work.gate, &work.up, rows)?;
        let x = work.activations.prepare(&work.gated, rows, &[&down.weight])?;
        down.forward(&work.hidden, &x, rows, Mode::Add)
    }
}
