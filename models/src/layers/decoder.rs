//! Everything of a decoder-only model but its layers: embedding, final norm, head, and the step that
//! takes a batch through them. Architectures differ in the layer they plug in.

use std::sync::Arc;

use candle_core::Device;
use sconce_kernels::{Matrix, Mode, embedding, gather_rows, gpu, scale};

use super::head_workspace::HeadWorkspace;
use super::linear::Linear;
use super::norm::RmsNorm;
use super::rope::RopeTable;
use super::step::{Step, StepLimits};
use super::workspace::Workspace;
use crate::error::Error;
use crate::load::architecture::Architecture;
use crate::load::weights::Weights;
use crate::logits::Logits;
use crate::model::{Batch, Model, ModelFootprint, ModelInfo, RowUse};
use crate::state::{LayerKv, LayerRecurrent, StateLayout, StatePool};
use crate::work::{TokenWork, Use, WeightsWork};

/// One layer: reads and adds to the residual stream, `work.hidden`.
pub(crate) trait DecoderLayer: Send + std::fmt::Debug + 'static {
    /// Takes the rows of a step through the layer.
    ///
    /// # Errors
    /// An operator refused.
    fn forward(&self, work: &mut Workspace, at: &LayerStep<'_>) -> Result<(), Error>;
}

/// What a layer needs to know of the step besides its rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LayerStep<'a> {
    /// Rows, slots, pages and segments.
    pub(crate) step: &'a Step,
    /// Angles of the rows, in the order of [`Architecture::ropes`].
    pub(crate) ropes: &'a [RopeTable],
    /// State of all sequences.
    pub(crate) state: &'a StatePool,
}

impl<'a> LayerStep<'a> {
    /// Rows of the step.
    pub(crate) fn rows(&self) -> usize {
        self.step.rows()
    }

    /// Keys and values of attention layer `index`, counted over the attention layers.
    pub(crate) fn kv(&self, index: usize) -> &'a LayerKv {
        self.state.layer(index).expect("the pool was made for these layers")
    }

    /// State of recurrent layer `index`, counted over the recurrent layers.
    pub(crate) fn recurrent(&self, index: usize) -> &'a LayerRecurrent {
        self.state.recurrent_layer(index).expect("the pool was made for these layers")
    }
}

/// The weights of a model.
#[derive(Debug)]
pub(crate) struct DecoderWeights<L> {
    embed_tokens: Arc<Matrix>,
    embedding_scale: Option<f32>,
    layers: Vec<L>,
    norm: RmsNorm,
    lm_head: Linear,
}

impl<L: DecoderLayer> DecoderWeights<L> {
    /// Reads all tensors of an architecture.
    ///
    /// # Errors
    /// Tensors that are missing, too many, or of another shape or type.
    pub(crate) fn load<A: Architecture<Layer = L>>(
        architecture: &A,
        mut weights: Weights<'_>,
    ) -> Result<(Self, WeightsSummary), Error> {
        let (common, frame) = (architecture.common(), architecture.frame());
        let (vocab, hidden) = (common.vocab_size, common.hidden_size);
        let table = if common.tied { Use::Head } else { Use::LookedUp };
        let embed_tokens = weights
            .used(table, |weights| weights.matrix("model.embed_tokens.weight", vocab, hidden))?;
        let embed_tokens = Arc::new(embed_tokens);
        let layers = (0..common.layers)
            .map(|index| architecture.layer(&mut weights, index))
            .collect::<Result<Vec<_>, Error>>()?;
        let norm =
            RmsNorm::load(&mut weights, "model.norm", hidden, (frame.norm, common.rms_norm_eps))?;
        let lm_head = match common.tied {
            true => Linear::shared(Arc::clone(&embed_tokens)),
            false => weights.used(Use::Head, |weights| {
                Linear::load(weights, "lm_head", (vocab, hidden), false)
            })?,
        };
        let summary = weights.finish(&common.model_type)?;
        let embedding_scale = frame.embedding_scale;
        Ok((Self { embed_tokens, embedding_scale, layers, norm, lm_head }, summary))
    }
}

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WeightsSummary {
    /// As it lies in memory.
    pub(crate) bytes: u64,
    /// Elements.
    pub(crate) parameters: u64,
    /// By when they are read.
    pub(crate) work: WeightsWork,
    /// Packing that most bytes of the matrices have.
    pub(crate) format: String,
}

/// A loaded model.
#[derive(Debug)]
pub(crate) struct Decoder<L> {
    weights: DecoderWeights<L>,
    info: ModelInfo,
    footprint: ModelFootprint,
    token_work: TokenWork,
    limits: StepLimits,
    state: StatePool,
    step: Step,
    ropes: Vec<RopeTable>,
    work: Workspace,
    head: HeadWorkspace,
}

/// What a model is made of, besides weights.
#[derive(Debug)]
pub(crate) struct DecoderParts {
    pub(crate) info: ModelInfo,
    pub(crate) footprint: ModelFootprint,
    pub(crate) token_work: TokenWork,
    pub(crate) step_tokens_max: usize,
    pub(crate) layout: StateLayout,
    pub(crate) ropes: Vec<RopeTable>,
    pub(crate) work: Workspace,
    pub(crate) head: HeadWorkspace,
}

impl<L: DecoderLayer> Decoder<L> {
    /// A model, and the pool of its state on `device`.
    ///
    /// # Errors
    /// The device cannot allocate.
    pub(crate) fn new(
        weights: DecoderWeights<L>,
        parts: DecoderParts,
        device: &Device,
    ) -> Result<Self, Error> {
        let limits = StepLimits {
            tokens: parts.step_tokens_max,
            context_length: parts.info.context_length,
            vocab_size: parts.info.vocab_size,
        };
        let state = StatePool::new(parts.layout, device)?;
        Ok(Self {
            weights,
            info: parts.info,
            footprint: parts.footprint,
            token_work: parts.token_work,
            limits,
            step: Step::new(limits, state.layout()),
            state,
            ropes: parts.ropes,
            work: parts.work,
            head: parts.head,
        })
    }

    /// Evaluates the planned step up to the residual stream after the last layer.
    fn decode(&mut self, tokens: &[u32]) -> Result<(), Error> {
        embedding(&self.work.hidden, &self.weights.embed_tokens, tokens)?;
        if let Some(factor) = self.weights.embedding_scale {
            scale(&self.work.hidden, factor, tokens.len())?;
        }
        let at = LayerStep { step: &self.step, ropes: &self.ropes, state: &self.state };
        self.weights.layers.iter().try_for_each(|layer| layer.forward(&mut self.work, &at))
    }

    /// Logits of the rows that asked for them, in the leading rows of the head's buffer, and what is to
    /// become of them on the device.
    fn predict(&mut self, uses: &[RowUse]) -> Result<(), Error> {
        let rows = self.step.logits_rows.len();
        if rows == 0 {
            return Ok(());
        }
        let (head, weights) = (&mut self.head, &self.weights);
        gather_rows(&head.hidden, &self.work.hidden, &self.step.logits_rows)?;
        weights.norm.forward(&head.normed, &head.hidden, rows)?;
        let lm_head = &weights.lm_head;
        let x = head.activations.prepare(&head.normed, rows, &[&lm_head.weight])?;
        lm_head.forward(&head.logits, &x, rows, Mode::Store)?;
        head.draw(rows, uses)
    }
}

impl<L: DecoderLayer> Model for Decoder<L> {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn footprint(&self) -> ModelFootprint {
        self.footprint
    }

    fn work(&self) -> Option<&TokenWork> {
        Some(&self.token_work)
    }

    fn state(&self) -> &StatePool {
        &self.state
    }

    fn state_mut(&mut self) -> &mut StatePool {
        &mut self.state
    }

    fn step_tokens_max(&self) -> usize {
        self.limits.tokens
    }

    fn forward(&mut self, batch: &Batch) -> Result<Logits<'_>, Error> {
        self.step.plan(batch, &self.state, self.limits)?;
        for rope in &mut self.ropes {
            rope.fill(&self.step.positions)?;
        }
        let device = self.work.hidden.device().clone();
        gpu::step(&device, || {
            self.decode(&batch.tokens)?;
            self.predict(&batch.uses)
        })?;
        for segment in &batch.segments {
            // The plan has verified that there is room, so none of these fails halfway.
            self.state.advance(segment.sequence, segment.len)?;
        }
        self.head.read(self.step.logits_rows.len())
    }
}
