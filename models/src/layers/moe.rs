//! A mixture of experts: a router chooses a few gated MLPs for each token, whose weighted results
//! are added up, with those of a shared one that all tokens pass. Which layout of a checkpoint the
//! experts come from is `experts.rs`.

use candle_core::{Device, Tensor};
use sconce_kernels::{
    Activation, ActivationBuffer, Activations, ExpertProduct, GateProduct, Matrix, Mode, PairInput,
    Product, RouterOptions, Routing, add_gated, combine_experts, expert_matmul, expert_matmuls,
    gate_mul, gate_muls, matmuls,
};

use super::experts::Experts;
use super::linear::Linear;
use super::mlp::{Mlp, MlpShape, Output};
use super::workspace::{Allocator, Part, Workspace, WorkspaceShape};
use crate::error::Error;
use crate::load::weights::Weights;
use crate::work::Use;

/// Rows of a step whose experts are computed together, on the processor and on a GPU. It bounds the
/// buffers, which have a row for each pair of a row and an expert; with fewer rows, the weights of an
/// expert would be read again for too few of them. A GPU is to have enough pairs for each expert to
/// fill its tensor cores: 40 of 512 experts of which rows choose ten. Results do not depend on it: every
/// operator computes a row, and a pair, from nothing but its own input.
const BLOCK_ROWS: [usize; 2] = [256, 2048];

/// Those of a device.
fn block_rows(device: &Device) -> usize {
    BLOCK_ROWS[usize::from(!device.is_cpu())]
}

/// Sizes of a mixture of experts, and how its router chooses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct MoeShape {
    /// Width of the residual stream.
    pub(crate) hidden_size: usize,
    /// Number of experts.
    pub(crate) experts: usize,
    /// Width of an expert.
    pub(crate) intermediate_size: usize,
    /// Function of the gates.
    pub(crate) activation: Activation,
    /// How experts are chosen and weighted.
    pub(crate) router: RouterOptions,
    /// Whether a correction is added to scores for the choice.
    pub(crate) correction: bool,
    /// The MLP that all tokens pass.
    pub(crate) shared: Option<SharedShape>,
}

/// An MLP that all tokens pass beside the experts they choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SharedShape {
    /// Its width.
    pub(crate) intermediate_size: usize,
    /// Whether it is `shared_expert`, times the sigmoid of `shared_expert_gate`, as in Qwen's models,
    /// or `shared_experts` as it is, as in GLM's.
    pub(crate) gated: bool,
}

impl MoeShape {
    /// Says which buffers such layers need.
    pub(crate) fn workspace(&self, shape: &mut WorkspaceShape) {
        shape.moe = Some(*self);
        if let Some(shared) = self.shared {
            let width = shape.intermediate_size.unwrap_or(0).max(shared.intermediate_size);
            shape.intermediate_size = Some(width);
            shape.branch |= shared.gated;
        }
    }
}

/// Weights of a mixture of experts.
#[derive(Debug)]
pub(crate) struct Moe {
    gate: Matrix,
    /// `[experts]`.
    e_score_correction_bias: Option<Tensor>,
    experts: Experts,
    shared: Option<SharedExpert>,
    router: RouterOptions,
    activation: Activation,
}

#[derive(Debug)]
struct SharedExpert {
    mlp: Mlp,
    /// `[1, hidden_size]`.
    gate: Option<Linear>,
}

/// Rows of a step whose experts are computed together, `[at most block_rows, hidden_size]` each.
#[derive(Debug)]
struct RowBlock {
    /// Part of `work.normed`.
    normed: Tensor,
    /// Part of `work.hidden`.
    hidden: Tensor,
}

/// Buffers of the experts of one block of rows.
#[derive(Debug)]
pub(crate) struct MoeBuffers {
    blocks: Vec<RowBlock>,
    /// Rows of a block, but for the last.
    block_rows: usize,
    /// `[rows, experts]`.
    logits: Tensor,
    routing: Routing,
    /// `[pairs, intermediate_size]`, as the next two.
    gate: Tensor,
    up: Tensor,
    gated: Tensor,
    /// Results of the pairs, `[pairs, hidden_size]`.
    down: Tensor,
    /// Quantized `gated`.
    activations: ActivationBuffer,
    /// Gate of the shared expert, `[rows of the step, 1]`.
    shared_gate: Tensor,
}

impl MoeBuffers {
    /// Buffers for layers of `shape` that read `normed` and add to `hidden`.
    ///
    /// # Errors
    /// The device cannot allocate.
    pub(crate) fn new(
        shape: &MoeShape,
        allocator: &mut Allocator<'_>,
        [normed, hidden]: [&Tensor; 2],
    ) -> Result<Self, Error> {
        let (width, choices) = (shape.intermediate_size, shape.router.experts_per_token);
        let block_rows = block_rows(allocator.device());
        let rows = allocator.rows().min(block_rows);
        let pairs = rows * choices;
        allocator.count(Routing::bytes_for(rows, shape.experts, choices));
        let routing = match allocator.makes() {
            true => Routing::new(rows, shape.experts, choices, normed.device())?,
            false => Routing::new(0, 0, 0, normed.device())?,
        };
        let gated = shape.shared.is_some_and(|shared| shared.gated);
        let rows_max = normed.dims()[0];
        let block = |first: usize| {
            let len = block_rows.min(rows_max - first);
            let (normed, hidden) = (normed.narrow(0, first, len)?, hidden.narrow(0, first, len)?);
            Ok(RowBlock { normed, hidden })
        };
        let blocks = (0..rows_max).step_by(block_rows).map(block);
        Ok(Self {
            blocks: blocks.collect::<Result<_, Error>>()?,
            block_rows,
            logits: allocator.tensor(rows, shape.experts)?,
            routing,
            gate: allocator.tensor(pairs, width)?,
            up: allocator.tensor(pairs, width)?,
            gated: allocator.tensor(pairs, width)?,
            down: allocator.tensor(pairs, shape.hidden_size)?,
            activations: allocator.activations(Part::Layers, pairs, width)?,
            shared_gate: allocator.buffer(usize::from(gated))?,
        })
    }
}

impl Moe {
    /// Reads `<name>.gate`, the experts and, where there is one, the shared expert.
    ///
    /// # Errors
    /// A tensor that is missing, has another shape or cannot be read.
    pub(crate) fn load(
        weights: &mut Weights<'_>,
        name: &str,
        shape: MoeShape,
    ) -> Result<Self, Error> {
        let (experts, hidden) = (shape.experts, shape.hidden_size);
        let gate = format!("{name}.gate.weight");
        let gate = weights.used(Use::Exact, |weights| weights.matrix(&gate, experts, hidden))?;
        let correction = match shape.correction {
            true => Some(weights.vector(&format!("{name}.gate.e_score_correction_bias"), experts)?),
            false => None,
        };
        let shared = match shape.shared {
            Some(shared) => Some(SharedExpert::load(weights, name, &shape, shared)?),
            None => None,
        };
        let used = Use::Expert { chosen: shape.router.experts_per_token, of: experts };
        Ok(Self {
            gate,
            e_score_correction_bias: correction,
            experts: weights.used(used, |weights| Experts::load(weights, name, &shape))?,
            shared,
            router: shape.router,
            activation: shape.activation,
        })
    }

    /// Adds the results of the normalized rows' experts to the residual stream.
    ///
    /// # Errors
    /// An operator refused.
    pub(crate) fn forward(&self, work: &mut Workspace, rows: usize) -> Result<(), Error> {
        let size = work.moe.as_ref().expect("the workspace was made for experts").block_rows;
        // What the shared expert does goes along with the others, where all rows are one block.
        let shared = self.shared.as_ref().filter(|_| rows <= size);
        for block in 0..rows.div_ceil(size) {
            let rows = size.min(rows - block * size);
            self.route(work, block, rows, shared)?;
            self.project(work, block, rows, shared)?;
            self.combine(work, block)?;
        }
        match (&self.shared, shared) {
            (Some(all), None) => all.add(work, rows),
            (_, Some(shared)) => shared.finish(work, rows),
            (None, None) => Ok(()),
        }
    }

    /// Chooses the experts of a block's leading `rows` rows, and computes the gate of the shared one.
    fn route(
        &self,
        work: &mut Workspace,
        block: usize,
        rows: usize,
        shared: Option<&SharedExpert>,
    ) -> Result<(), Error> {
        let buffers = work.moe.as_mut().expect("the workspace was made for experts");
        // In f32 whatever the precision: a choice of experts is not to hang on rounding.
        let x = Activations::exact(&buffers.blocks[block].normed, rows)?;
        let router = Product { out: &buffers.logits, weight: &self.gate };
        match shared.and_then(|shared| shared.gate.as_ref()) {
            Some(gate) => {
                let gate = Product { out: &buffers.shared_gate, weight: &gate.weight };
                matmuls(&[router, gate], &x, Mode::Store)?;
            }
            None => matmuls(&[router], &x, Mode::Store)?,
        }
        let correction = self.e_score_correction_bias.as_ref();
        Ok(buffers.routing.route(&buffers.logits, correction, &self.router, rows)?)
    }

    /// Gate times up of the chosen experts, and of the shared one.
    fn project(
        &self,
        work: &mut Workspace,
        block: usize,
        rows: usize,
        shared: Option<&SharedExpert>,
    ) -> Result<(), Error> {
        let Experts { gate_proj, up_proj, .. } = &self.experts;
        let buffers = work.moe.as_ref().expect("the workspace was made for experts");
        let (routing, pairs) = (&buffers.routing, buffers.routing.pairs());
        let normed = &buffers.blocks[block].normed;
        let x = work.activations.prepare_experts(normed, rows, &[gate_proj, up_proj])?;
        let gate_up = [
            ExpertProduct { out: &buffers.gate, experts: gate_proj },
            ExpertProduct { out: &buffers.up, experts: up_proj },
        ];
        expert_matmuls(&gate_up, &x, routing, PairInput::Rows)?;
        let Some(shared) = shared else {
            let MoeBuffers { gated, gate, up, .. } = buffers;
            return Ok(gate_mul(gated, gate, up, self.activation, pairs)?);
        };
        shared.mlp.project(work, rows)?;
        let MoeBuffers { gated: out, gate, up: x, .. } =
            work.moe.as_ref().expect("the workspace was made for experts");
        let experts = GateProduct { out, gate, x, rows: pairs };
        let mlp = work.mlp.as_mut().expect("the workspace was made for a shared expert");
        Ok(gate_muls([experts, shared.mlp.product(mlp, rows)?], self.activation)?)
    }

    /// Adds the chosen experts' results for a block.
    fn combine(&self, work: &mut Workspace, block: usize) -> Result<(), Error> {
        let down_proj = &self.experts.down_proj;
        let buffers = work.moe.as_mut().expect("the workspace was made for experts");
        let (routing, pairs) = (&buffers.routing, buffers.routing.pairs());
        let x = buffers.activations.prepare_experts(&buffers.gated, pairs, &[down_proj])?;
        expert_matmul(&buffers.down, &x, down_proj, routing, PairInput::Pairs)?;
        Ok(combine_experts(&buffers.blocks[block].hidden, &buffers.down, routing)?)
    }
}

impl SharedExpert {
    fn load(
        weights: &mut Weights<'_>,
        name: &str,
        shape: &MoeShape,
        shared: SharedShape,
    ) -> Result<Self, Error> {
        let mlp = MlpShape {
            hidden_size: shape.hidden_size,
            intermediate_size: shared.intermediate_size,
            activation: shape.activation,
            bias: false,
        };
        if !shared.gated {
            let mlp = Mlp::load(weights, &format!("{name}.shared_experts"), mlp)?;
            return Ok(Self { mlp, gate: None });
        }
        let mlp = Mlp::load(weights, &format!("{name}.shared_expert"), mlp)?;
        let (gate, size) = (format!("{name}.shared_expert_gate"), (1, shape.hidden_size));
        let gate = weights.used(Use::Exact, |weights| Linear::load(weights, &gate, size, false))?;
        Ok(Self { mlp, gate: Some(gate) })
    }

    /// Adds its result for the normalized rows to the residual stream, whatever the others do.
    fn add(&self, work: &mut Workspace, rows: usize) -> Result<(), Error> {
        let Some(gate) = &self.gate else { return self.mlp.forward(work, rows, Output::Add) };
        self.mlp.forward(work, rows, Output::Branch)?;
        let buffers = work.moe.as_ref().expect("the workspace was made for experts");
        let x = Activations::exact(&work.normed, rows)?;
        gate.forward(&buffers.shared_gate, &x, rows, Mode::Store)?;
        Ok(add_gated(&work.hidden, &work.branch, &buffers.shared_gate, rows)?)
    }

    /// The same after its gate, and gate times up, were computed along with the others'.
    fn finish(&self, work: &mut Workspace, rows: usize) -> Result<(), Error> {
        if self.gate.is_none() {
            return self.mlp.finish(work, rows, Output::Add);
        }
        self.mlp.finish(work, rows, Output::Branch)?;
        let buffers = work.moe.as_ref().expect("the workspace was made for experts");
        Ok(add_gated(&work.hidden, &work.branch, &buffers.shared_gate, rows)?)
    }
}
