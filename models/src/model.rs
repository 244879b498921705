//! The one trait through which an engine sees a model, and the plain data that crosses it.
//!
//! A step is *ragged*: the tokens of every sequence in it lie in one flat vector, and segments say
//! whose they are. A prefill chunk is a segment of many tokens, a decode row a segment of one; there
//! is no second code path for either, nor for a batch of one.

use std::fmt;

use sconce_kernels::Draw;

use crate::error::Error;
use crate::logits::Logits;
use crate::state::{PointId, SequenceId, StatePool};
use crate::work::TokenWork;

/// A run of consecutive tokens of one sequence inside a [`Batch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Whose tokens these are; its state is read and advanced by `len`.
    pub sequence: SequenceId,
    /// Position of the segment's first token; equals the length of the sequence's state.
    pub first_position: usize,
    /// Number of tokens, at least one.
    pub len: usize,
    /// Whether the logits after the segment's last token are wanted.
    pub logits: bool,
}

/// A recurrent state to be kept on the way through a segment, without cutting it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PointEmit {
    /// Index of the segment in [`Batch::segments`].
    pub segment: usize,
    /// Tokens of the segment after which the sequence's state is copied, 1 to its length.
    pub offset: usize,
    /// The point that receives the copy; it comes once in a batch.
    pub point: PointId,
}

/// What becomes of a row of logits, so that of a device whose memory is not the host's no more than
/// that crosses the bus. A model whose logits are on the host ignores it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RowUse {
    /// How the next token is drawn from it; none where the row itself will be read.
    pub draw: Option<Draw>,
    /// How many of its largest logits will be asked for beside the token.
    pub largest: usize,
}

/// All tokens of one step.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// Token ids, segment after segment.
    pub tokens: Vec<u32>,
    /// Which sequence each run of `tokens` belongs to; lengths add up to `tokens.len()`.
    /// A sequence appears at most once.
    pub segments: Vec<Segment>,
    /// States to copy out, in any order; none for a model without recurrent layers.
    pub emits: Vec<PointEmit>,
    /// What becomes of the logits of each segment that wants them, in the order of the segments; what
    /// there are fewer of is [`RowUse::default`].
    pub uses: Vec<RowUse>,
}

impl Batch {
    /// Empties the batch and keeps its memory.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.segments.clear();
        self.emits.clear();
        self.uses.clear();
    }

    /// Appends a segment and its tokens.
    pub fn push(
        &mut self,
        sequence: SequenceId,
        first_position: usize,
        tokens: &[u32],
        logits: bool,
    ) {
        self.tokens.extend_from_slice(tokens);
        self.segments.push(Segment { sequence, first_position, len: tokens.len(), logits });
    }
}

/// What a loaded model is, as its checkpoint says it.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelInfo {
    /// `model_type` of the checkpoint: `llama`, `sim`, …
    pub architecture: String,
    /// Rows of the head; may exceed the tokenizer's vocabulary.
    pub vocab_size: usize,
    /// Most tokens a sequence may hold, prompt and completion together.
    pub context_length: usize,
    /// What the checkpoint was trained for; `context_length` may be set lower.
    pub context_length_trained: usize,
    /// Number of decoder layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Parameters, counted in elements.
    pub parameters: u64,
    /// Packing of most weights, as the checkpoint names it: `F32`, `BF16`, `Q4_1`, …
    pub weight_format: String,
    /// Ids that end a generation.
    pub eos_token_ids: Vec<u32>,
    /// Id that starts a sequence, where the checkpoint has one.
    pub bos_token_id: Option<u32>,
    /// Identity of the weights and of everything that changes what state they produce.
    pub fingerprint: u64,
}

/// Bytes a loaded model holds outside the state of its sequences.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ModelFootprint {
    /// Weights, as they lie in memory after repacking.
    pub weights_bytes: u64,
    /// Buffers of one step, allocated at load for the largest step.
    pub workspace_bytes: u64,
}

/// How exactly a model computes with its weights, which are what they are, and keeps keys and values. `docs/NUMERICS.md` says
/// what each costs in agreement with a reference.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Precision {
    /// Quantized weights read activations of 8 bits in groups of 32, in the head of 15 bits; keys
    /// and values are kept in 8 bits, where their shapes allow it.
    #[default]
    Fast,
    /// Quantized weights read activations of 15 bits in groups of 32; keys and values are f32.
    Fine,
    /// f32 throughout, for comparison with a reference.
    Exact,
}

impl Precision {
    /// All of them, the fastest first.
    pub const ALL: [Self; 3] = [Self::Fast, Self::Fine, Self::Exact];

    /// Its name in settings and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Fine => "fine",
            Self::Exact => "exact",
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A loaded model: weights on a device, and the pool that holds its sequences' state.
///
/// One thread owns it. A row's result does not depend on what else is in the batch, nor on how a
/// prompt was cut into segments.
pub trait Model: Send {
    /// What the model is.
    fn info(&self) -> &ModelInfo;

    /// What it holds besides sequence state.
    fn footprint(&self) -> ModelFootprint;

    /// What it does for a token; none where nothing is computed, as in a simulated model.
    fn work(&self) -> Option<&TokenWork> {
        None
    }

    /// The state of its sequences.
    fn state(&self) -> &StatePool;

    /// The state of its sequences, to open, reserve and close them.
    fn state_mut(&mut self) -> &mut StatePool;

    /// Most tokens one [`Batch`] may hold.
    fn step_tokens_max(&self) -> usize;

    /// Evaluates a batch and advances each of its sequences' state by its segment's length.
    ///
    /// Room must have been reserved with [`StatePool::reserve`]. A batch that is refused
    /// ([`Error::Batch`], [`Error::State`]) changes nothing. After an operator has failed, no sequence
    /// of the batch has advanced, but recurrent state may have: close them, or truncate them to
    /// nothing. What its [`emits`](Batch::emits) hold is unspecified then.
    ///
    /// # Errors
    /// A batch that breaks a rule of [`Segment`] or [`PointEmit`], or an operator that failed.
    fn forward(&mut self, batch: &Batch) -> Result<Logits<'_>, Error>;
}
