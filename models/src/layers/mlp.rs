//! The gated MLP: `down(act(gate(x)) * up(x))`.

use candle_core::Tensor;
use sconce_kernels::{Activation, GateProduct, Mode, gate_mul};

use super::linear::Linear;
use super::workspace::{Allocator, Workspace};
use crate::checkpoint::ModelConfig;
use crate::error::Error;
use crate::load::weights::Weights;

/// Sizes of a gated MLP, and what it gates with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct MlpShape {
    /// Width of the residual stream.
    pub(crate) hidden_size: usize,
    /// Width between.
    pub(crate) intermediate_size: usize,
    /// Function of the gate.
    pub(crate) activation: Activation,
    /// Whether gate, up and down have biases.
    pub(crate) bias: bool,
}

/// Weights of a gated MLP.
#[derive(Debug)]
pub(crate) struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    activation: Activation,
}

/// Buffers of gated MLPs, in the same memory for every width.
#[derive(Debug)]
pub(crate) struct MlpBuffers {
    /// Those of the widest first; the others are made when an MLP of their width first runs.
    widths: Vec<WidthBuffers>,
}

/// Buffers of gated MLPs of one width, `[rows, width]` each.
#[derive(Debug)]
struct WidthBuffers {
    width: usize,
    gate: Tensor,
    up: Tensor,
    gated: Tensor,
}

impl MlpBuffers {
    /// Buffers for MLPs of up to `width`.
    ///
    /// # Errors
    /// The device cannot allocate.
    pub(crate) fn new(width: usize, allocator: &mut Allocator<'_>) -> Result<Self, Error> {
        allocator.multiplies(width);
        let widest = WidthBuffers {
            width,
            gate: allocator.buffer(width)?,
            up: allocator.buffer(width)?,
            gated: allocator.buffer(width)?,
        };
        Ok(Self { widths: vec![widest] })
    }

    /// The buffers of an MLP of `width`.
    fn of(&mut self, width: usize) -> Result<&WidthBuffers, Error> {
        let index = match self.widths.iter().position(|buffers| buffers.width == width) {
            Some(index) => index,
            None => {
                self.widths.push(self.widths[0].narrow(width)?);
                self.widths.len() - 1
            }
        };
        Ok(&self.widths[index])
    }
}

impl WidthBuffers {
    /// The leading part of the same memory, as rows of another width.
    fn narrow(&self, width: usize) -> Result<Self, Error> {
        let narrow = |tensor: &Tensor| -> Result<Tensor, Error> {
            let rows = tensor.dims()[0];
            let flat = tensor.flatten_all()?.narrow(0, 0, rows * width)?;
            Ok(flat.reshape((rows, width))?)
        };
        let (gate, up, gated) = (narrow(&self.gate)?, narrow(&self.up)?, narrow(&self.gated)?);
        Ok(Self { width, gate, up, gated })
    }
}

impl Mlp {
    /// Reads `<name>.{gate,up,down}_proj`.
    ///
    /// # Errors
    /// A tensor that is missing, has another shape or cannot be read.
    pub(crate) fn load(
        weights: &mut Weights<'_>,
        name: &str,
        shape: MlpShape,
    ) -> Result<Self, Error> {
        let wide = (shape.intermediate_size, shape.hidden_size);
        let narrow = (shape.hidden_size, shape.intermediate_size);
        let bias = shape.bias;
        Ok(Self {
            gate_proj: Linear::load(weights, &format!("{name}.gate_proj"), wide, bias)?,
            up_proj: Linear::load(weights, &format!("{name}.up_proj"), wide, bias)?,
            down_proj: Linear::load(weights, &format!("{name}.down_proj"), narrow, bias)?,
            activation: shape.activation,
        })
    }

    /// Adds the MLP of the normalized rows to the residual stream, or writes it to `work.branch`.
    ///
    /// # Errors
    /// An operator refused.
    pub(crate) fn forward(
        &self,
        work: &mut Workspace,
        rows: usize,
        output: Output,
    ) -> Result<(), Error> {
        self.project(work, rows)?;
        let buffers = work.mlp.as_mut().expect("the workspace was made for an MLP");
        let GateProduct { out, gate, x, .. } = self.product(buffers, rows)?;
        gate_mul(out, gate, x, self.activation, rows)?;
        self.finish(work, rows, output)
    }

    /// Projects the normalized rows: gate and up.
    ///
    /// # Errors
    /// An operator refused.
    pub(crate) fn project(&self, work: &mut Workspace, rows: usize) -> Result<(), Error> {
        let (gate, up) = (&self.gate_proj, &self.up_proj);
        let buffers = work.mlp.as_mut().expect("the workspace was made for an MLP");
        let buffers = buffers.of(gate.weight.rows())?;
        let x = work.activations.prepare(&work.normed, rows, &[&gate.weight, &up.weight])?;
        Linear::forward_all([(gate, &buffers.gate), (up, &buffers.up)], &x, rows)
    }

    /// What is to be computed between [`project`](Self::project) and [`finish`](Self::finish), which
    /// may go along with products of others.
    ///
    /// # Errors
    /// The device cannot allocate.
    pub(crate) fn product<'a>(
        &self,
        buffers: &'a mut MlpBuffers,
        rows: usize,
    ) -> Result<GateProduct<'a>, Error> {
        let WidthBuffers { gate, up, gated, .. } = buffers.of(self.gate_proj.weight.rows())?;
        Ok(GateProduct { out: gated, gate, x: up, rows })
    }

    /// Projects the product back: adds the result to the residual stream, or writes it to
    /// `work.branch`.
    ///
    /// # Errors
    /// An operator refused.
    pub(crate) fn finish(
        &self,
        work: &mut Workspace,
        rows: usize,
        output: Output,
    ) -> Result<(), Error> {
        let down = &self.down_proj;
        let buffers = work.mlp.as_mut().expect("the workspace was made for an MLP");
        let gated = &buffers.of(self.gate_proj.weight.rows())?.gated;
        let x = work.activations.prepare(gated, rows, &[&down.weight])?;
        let (out, mode) = match output {
            Output::Add => (&work.hidden, Mode::Add),
            Output::Branch => (&work.branch, Mode::Store),
        };
        down.forward(out, &x, rows, mode)
    }
}

/// Where a branch leaves its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    /// Added to the residual stream.
    Add,
    /// In `work.branch`, for whoever goes on with it.
    Branch,
}

/// What `hidden_act` or, with Gemma, `hidden_activation` names; `default` where it is absent.
///
/// # Errors
/// [`Error::Config`] for a function that is not built.
pub(crate) fn activation(
    config: &ModelConfig,
    key: &str,
    default: Activation,
) -> Result<Activation, Error> {
    match config.string(key)? {
        None => Ok(default),
        Some("silu" | "swish") => Ok(Activation::Silu),
        Some("gelu_pytorch_tanh") => Ok(Activation::GeluTanh),
        Some(other) => Err(config.error(key, "silu or gelu_pytorch_tanh", other)),
    }
}
