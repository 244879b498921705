//! One architecture's way from a checkpoint to a model, or to the sizes of one: the same steps for
//! all of them.

use std::ops::ControlFlow;

use candle_core::Device;
use sconce_kernels::BlockOrder;

use super::architecture::Architecture;
use super::sizes::{MemoryEstimate, context_length, state_layout};
use super::weights::Weights;
use super::{LoadOptions, LoadProgress};
use crate::checkpoint::Checkpoint;
use crate::error::Error;
use crate::layers::decoder::{Decoder, DecoderParts, DecoderWeights, WeightsSummary};
use crate::layers::head_workspace::HeadWorkspace;
use crate::layers::rope::{Frequencies, RopeTable};
use crate::layers::workspace::{Allocator, Part, Workspace, WorkspaceShape, activation_type};
use crate::model::{Model, ModelFootprint, ModelInfo};
use crate::state::{STATE_FORMAT, StateLayout};
use crate::work::TokenWork;

/// How an architecture is loaded and estimated, without its type.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Loader {
    load: LoadFn,
    estimate: EstimateFn,
}

type LoadFn = fn(
    &Checkpoint,
    &LoadOptions,
    &mut dyn FnMut(LoadProgress) -> ControlFlow<()>,
) -> Result<Box<dyn Model>, Error>;
type EstimateFn = fn(&Checkpoint, &LoadOptions) -> Result<MemoryEstimate, Error>;

impl Loader {
    /// The loader of `A`.
    pub(crate) const fn of<A: Architecture>() -> Self {
        Self { load: load::<A>, estimate: estimate::<A> }
    }

    /// Loads a checkpoint of the architecture.
    ///
    /// # Errors
    /// As for [`load`](super::load).
    pub(crate) fn load(
        self,
        checkpoint: &Checkpoint,
        options: &LoadOptions,
        progress: &mut dyn FnMut(LoadProgress) -> ControlFlow<()>,
    ) -> Result<Box<dyn Model>, Error> {
        (self.load)(checkpoint, options, progress)
    }

    /// What a load would take.
    ///
    /// # Errors
    /// As for [`estimate`](super::estimate).
    pub(crate) fn estimate(
        self,
        checkpoint: &Checkpoint,
        options: &LoadOptions,
    ) -> Result<MemoryEstimate, Error> {
        (self.estimate)(checkpoint, options)
    }
}

fn load<A: Architecture>(
    checkpoint: &Checkpoint,
    options: &LoadOptions,
    progress: &mut dyn FnMut(LoadProgress) -> ControlFlow<()>,
) -> Result<Box<dyn Model>, Error> {
    let device = options.device.open()?;
    let plan = Plan::<A>::new(checkpoint, options, &device)?;
    // Both before any weight is read: what cannot be allocated is refused early.
    let mut allocator = Allocator::new(options.step_tokens_max, options.precision, &device);
    let buffers = plan.buffers(&mut allocator)?;
    let weights = Weights::pack(checkpoint, &plan.ignores(), &device, progress)
        .quantized(options.quantize, plan.architecture.common().layers);
    let (weights, summary) = DecoderWeights::load(&plan.architecture, weights)?;
    debug_assert_eq!(summary, plan.summary, "what was checked is what was read");
    let footprint =
        ModelFootprint { weights_bytes: summary.bytes, workspace_bytes: allocator.bytes() };
    let parts = DecoderParts {
        info: plan.info(&device),
        footprint,
        token_work: plan.work(),
        step_tokens_max: options.step_tokens_max,
        layout: plan.layout,
        ropes: buffers.ropes,
        work: buffers.work,
        head: buffers.head,
    };
    Ok(Box::new(Decoder::new(weights, parts, &device)?))
}

fn estimate<A: Architecture>(
    checkpoint: &Checkpoint,
    options: &LoadOptions,
) -> Result<MemoryEstimate, Error> {
    let device = options.device.open()?;
    let plan = Plan::<A>::new(checkpoint, options, &device)?;
    let mut allocator = Allocator::counting(options.step_tokens_max, options.precision, &device);
    plan.buffers(&mut allocator)?;
    let (weights, context) = (plan.summary.bytes, plan.context_length);
    Ok(MemoryEstimate::new(weights, allocator.bytes(), &plan.layout, context))
}

/// A checkpoint whose configuration and tensors were verified.
struct Plan<'a, A> {
    checkpoint: &'a Checkpoint,
    options: &'a LoadOptions,
    architecture: A,
    context_length: usize,
    layout: StateLayout,
    summary: WeightsSummary,
}

struct Buffers {
    ropes: Vec<RopeTable>,
    work: Workspace,
    head: HeadWorkspace,
}

impl<'a, A: Architecture> Plan<'a, A> {
    fn new(
        checkpoint: &'a Checkpoint,
        options: &'a LoadOptions,
        device: &'a Device,
    ) -> Result<Self, Error> {
        let config = checkpoint.config();
        let architecture = A::read(config)?;
        let trained = architecture.common().max_position_embeddings;
        let limit = architecture.context_length_max();
        let context_length = context_length(config, trained, limit, options)?;
        let layout = state_layout(architecture.state(), context_length, options)?;
        let weights = Weights::check(checkpoint, &ignores(&architecture), device)
            .quantized(options.quantize, architecture.common().layers);
        let (_, summary) = DecoderWeights::load(&architecture, weights)?;
        Ok(Self { checkpoint, options, architecture, context_length, layout, summary })
    }

    fn ignores(&self) -> impl Fn(&str) -> bool {
        ignores(&self.architecture)
    }

    fn buffers(&self, allocator: &mut Allocator<'_>) -> Result<Buffers, Error> {
        let common = self.architecture.common();
        let config = self.checkpoint.config();
        let mut ropes = Vec::new();
        for spec in self.architecture.ropes() {
            let frequencies = Frequencies::new(config, &spec.rope, spec.head_dim)?;
            ropes.push(RopeTable::new(frequencies, allocator)?);
        }
        let mut shape = WorkspaceShape::new(common.hidden_size);
        self.architecture.workspace(&mut shape);
        let work = Workspace::new(&shape, allocator)?;
        let rows = self.options.sequences_max;
        let head = HeadWorkspace::new(rows, common.hidden_size, common.vocab_size, allocator)?;
        Ok(Buffers { ropes, work, head })
    }

    fn work(&self) -> TokenWork {
        let mut shape = WorkspaceShape::new(self.architecture.common().hidden_size);
        self.architecture.workspace(&mut shape);
        let layers = self.layout.attention.iter().map(|group| group.layers).sum();
        let windows = (0..layers).map(|index| self.architecture.window(index)).collect();
        let activations =
            [Part::Layers, Part::Head].map(|part| activation_type(self.options.precision, part));
        let attention = (windows, shape.attention_macs());
        TokenWork::new(self.summary.work, activations, &self.layout, attention)
    }

    fn info(&self, device: &Device) -> ModelInfo {
        let common = self.architecture.common();
        let generation = self.checkpoint.generation_config();
        ModelInfo {
            architecture: common.model_type.clone(),
            vocab_size: common.vocab_size,
            context_length: self.context_length,
            context_length_trained: common.max_position_embeddings,
            layers: common.layers,
            hidden_size: common.hidden_size,
            parameters: self.summary.parameters,
            weight_format: self.summary.format.clone(),
            eos_token_ids: generation.eos_token_ids.clone(),
            bos_token_id: generation.bos_token_id,
            fingerprint: fingerprint(self.checkpoint, self.options, device),
        }
    }
}

/// Which tensors have no place in a model and are no loss, whatever the architecture.
fn ignores<A: Architecture>(architecture: &A) -> impl Fn(&str) -> bool {
    let tied = architecture.common().tied;
    move |name| {
        // Old checkpoints store frequencies that follow from the configuration, one set in each
        // layer; GGUF files a set that has joined the configuration; tied ones a copy of the
        // embedding.
        name.ends_with("rotary_emb.inv_freq")
            || name == "rope_freqs.weight"
            || (tied && name.starts_with("lm_head."))
            || architecture.ignores(name)
    }
}

/// State that was made with quantized activations or weights differs from state that was not.
fn fingerprint(checkpoint: &Checkpoint, options: &LoadOptions, device: &Device) -> u64 {
    let mut uses = vec![STATE_FORMAT, options.precision.name()];
    uses.extend(options.quantize.map(|format| format.name()));
    if BlockOrder::of(device) == BlockOrder::Tokens {
        uses.push("pages in the order of their tokens");
    }
    checkpoint.fingerprint_as(&uses)
}
