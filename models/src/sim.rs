//! A simulated model: no weights, real logits, for tests and for servers without a checkpoint.
//!
//! Its next token is a function of the whole history of a sequence, kept as a rolling hash in the
//! pages and slots of its pool, so a lost, doubled or foreign token shows in everything that follows,
//! and so does a foreign page. Time is spent as told.

mod gate;
mod history;
mod spec;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::collections::{HashSet, VecDeque};
use std::ops::ControlFlow;
use std::thread;
use std::time::Duration;

use candle_core::Device;
use sconce_kernels::draw_tokens::Drawn;

pub use self::gate::Gate;
use self::history::{History, Memory};
pub use self::spec::SimulatedSpec;
use crate::error::Error;
use crate::layers::step::{Step, StepLimits};
use crate::load::sizes::state_layout;
use crate::load::{LoadOptions, LoadProgress, LoadStage};
use crate::logits::Logits;
use crate::model::{Batch, Model, ModelFootprint, ModelInfo, Segment};
use crate::state::{PAGE_TOKENS, StatePool};

/// Token that starts a sequence. Ids below it are the bytes of the text, one each.
pub const BOS_ID: u32 = 256;

/// Token that ends a sequence.
pub const EOS_ID: u32 = 257;

/// Token that stands for nothing.
pub const PAD_ID: u32 = 258;

/// Smallest vocabulary: all bytes and the tokens above.
pub const VOCAB_MIN: usize = 259;

/// Most pages of a simulated pool.
const PAGES_MAX: usize = 1 << 20;

/// What it writes when nobody tampers with its logits.
const ALPHABET: &[u8] = b"etaoinshrdlucmfwypvbgkjqxz      ";

/// Logit of the next token; those of the others lie in [-4, 4). At temperature 1 others are never
/// drawn, at 4 often.
const NEXT_LOGIT: f32 = 24.0;

/// States remembered as ones that a completion token followed.
const ASKED_MAX: usize = 1 << 16;

/// See the module's own words.
#[derive(Debug)]
pub struct SimulatedModel {
    spec: SimulatedSpec,
    info: ModelInfo,
    pool: StatePool,
    limits: StepLimits,
    step: Step,
    memory: Memory,
    asked: Asked,
    logits: Vec<f32>,
    gate: Option<Gate>,
    drawn: Vec<Drawn>,
    /// Set by a step that holds the token of `crash_at`.
    crashes: Cell<bool>,
}

/// Where logits were asked for: a token that follows such a state is a completion token, also when
/// the sequence is computed again after its state was given up.
#[derive(Debug, Default)]
struct Asked {
    states: HashSet<u64>,
    order: VecDeque<u64>,
}

/// Makes the simulated model that a `sim:` path describes, at once.
///
/// # Errors
/// A path or options that describe none.
pub fn load(path: &str, options: &LoadOptions) -> Result<Box<dyn Model>, Error> {
    Ok(Box::new(SimulatedModel::new(SimulatedSpec::parse(path)?, options)?))
}

/// [`load`], taking the time and reporting the progress that the path asks for.
///
/// # Errors
/// As [`load`], and [`Error::Cancelled`].
pub fn load_with_progress(
    path: &str,
    options: &LoadOptions,
    progress: &mut dyn FnMut(LoadProgress) -> ControlFlow<()>,
) -> Result<Box<dyn Model>, Error> {
    let spec = SimulatedSpec::parse(path)?;
    let steps = spec.load_steps;
    for step in 0..=steps {
        let done = u128::from(spec.weights_bytes) * u128::from(step) / u128::from(steps);
        let report = LoadProgress {
            bytes_done: done as u64,
            bytes_total: spec.weights_bytes,
            tensors_done: step as usize,
            tensors_total: steps as usize,
            ..LoadProgress::at(LoadStage::Weights)
        };
        if progress(report).is_break() {
            return Err(Error::Cancelled);
        }
        if step < steps {
            thread::sleep(Duration::from_millis(spec.load_ms) / steps as u32);
        }
    }
    Ok(Box::new(SimulatedModel::new(spec, options)?))
}

impl SimulatedModel {
    /// The model that `spec` describes, with the pool and the step that `options` ask for; pages that
    /// `spec` asks for come before a limit of bytes. The precision means nothing to it.
    ///
    /// # Errors
    /// [`Error::Option`] for a context of zero or above the model's, or a pool that cannot be.
    pub fn new(spec: SimulatedSpec, options: &LoadOptions) -> Result<Self, Error> {
        let context = options.context_length.unwrap_or(spec.context);
        if !(1..=spec.context).contains(&context) {
            let expected = format!("1 to {}", spec.context);
            return Err(Error::option("context_length", expected, context));
        }
        let mut layout = state_layout(history::shape(spec.recurrent), context, options)?;
        layout.pages_max =
            if spec.pages > 0 { spec.pages } else { layout.pages_max.min(PAGES_MAX) };
        let info = ModelInfo {
            architecture: "sim".into(),
            vocab_size: spec.vocab,
            context_length: context,
            context_length_trained: spec.context,
            layers: 1 + usize::from(spec.recurrent),
            hidden_size: 0,
            parameters: 0,
            weight_format: "F32".into(),
            eos_token_ids: vec![EOS_ID],
            bos_token_id: Some(BOS_ID),
            fingerprint: mix(mix(spec.seed) ^ spec.vocab as u64 ^ u64::from(spec.recurrent) << 32),
        };
        let limits = StepLimits {
            tokens: options.step_tokens_max,
            context_length: context,
            vocab_size: spec.vocab,
        };
        Ok(Self {
            pool: StatePool::new(layout, &Device::Cpu)?,
            limits,
            step: Step::default(),
            memory: Memory::new(spec.seed, limits.tokens)?,
            asked: Asked::default(),
            logits: Vec::new(),
            gate: None,
            drawn: Vec::new(),
            crashes: Cell::new(false),
            info,
            spec,
        })
    }

    /// Makes every step wait at `gate`.
    #[must_use]
    pub fn with_gate(mut self, gate: Gate) -> Self {
        self.gate = Some(gate);
        self
    }

    /// Behaves as if on a device that has drawn these tokens from the leading rows of every step.
    #[must_use]
    pub fn with_drawn(mut self, drawn: Vec<Drawn>) -> Self {
        self.drawn = drawn;
        self
    }

    /// Fails, panics and sleeps as the specification says.
    fn misbehave(&mut self, batch: &Batch) -> Result<(), Error> {
        let holds = |segment: &Segment, number: u64| {
            let first = segment.first_position as u64 + 1;
            (first..first + segment.len as u64).contains(&number)
        };
        let reached = |number| batch.segments.iter().any(|segment| holds(segment, number));
        if reached(self.spec.lost_at) {
            self.pool.lose_device();
        }
        self.pool.check_device()?;
        if reached(self.spec.fail_at) {
            let message = format!("simulated failure at token {}", self.spec.fail_at);
            return Err(Error::Operator(candle_core::Error::Msg(message)));
        }
        assert!(!reached(self.spec.panic_at), "simulated panic at token {}", self.spec.panic_at);
        if reached(self.spec.crash_at) {
            self.crashes.set(true);
        }
        let prefill = batch.segments.iter().map(|s| s.len as u64).filter(|&len| len > 1);
        let decodes = batch.segments.iter().any(|segment| segment.len == 1);
        let us =
            self.spec.prefill_us * prefill.sum::<u64>() + self.spec.decode_us * u64::from(decodes);
        if us > 0 {
            thread::sleep(Duration::from_micros(us));
        }
        Ok(())
    }

    /// The history of `len` tokens whose last is `token`.
    fn follow(&self, history: History, token: u32, len: usize) -> History {
        let completed = match self.asked.states.contains(&history.hash) {
            true => history.completed + 1,
            false => 0,
        };
        // Turned, or a token whose mix equals the hash would wipe the history out.
        let hash = mix(history.hash.rotate_left(23) ^ mix(u64::from(token)));
        let mut next = History { hash, completed, ..history };
        if len.is_multiple_of(PAGE_TOKENS) {
            next.end_page();
        }
        next
    }

    /// Appends the logits after `len` tokens.
    fn push_logits(&mut self, history: History, len: usize) {
        let from = self.logits.len();
        if self.spec.nan_at > 0 && len as u64 >= self.spec.nan_at {
            self.logits.resize(from + self.spec.vocab, f32::NAN);
            return;
        }
        let seen = history.hash ^ history.pages;
        self.logits.extend((0..self.spec.vocab as u64).map(|id| {
            let bits = mix(seen ^ mix(id)) >> 40;
            bits as f32 / (1_u32 << 21) as f32 - 4.0
        }));
        let ends = self.spec.eos_after > 0 && history.completed >= self.spec.eos_after;
        let letter = ALPHABET[mix(!seen) as usize % ALPHABET.len()];
        let next = if ends { EOS_ID as usize } else { letter.into() };
        self.logits[from + next] = NEXT_LOGIT;
    }
}

impl Model for SimulatedModel {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn footprint(&self) -> ModelFootprint {
        ModelFootprint { weights_bytes: self.spec.weights_bytes, workspace_bytes: 0 }
    }

    fn state(&self) -> &StatePool {
        &self.pool
    }

    fn state_mut(&mut self) -> &mut StatePool {
        &mut self.pool
    }

    fn step_tokens_max(&self) -> usize {
        assert!(!self.crashes.take(), "simulated crash after token {}", self.spec.crash_at);
        self.limits.tokens
    }

    fn forward(&mut self, batch: &Batch) -> Result<Logits<'_>, Error> {
        if let Some(gate) = &self.gate {
            gate.enter(batch);
        }
        self.step.plan(batch, &self.pool, self.limits)?;
        let recall = |segment| self.memory.recall(&self.pool, &self.step, segment);
        let histories =
            (0..batch.segments.len()).map(recall).collect::<Result<Vec<History>, Error>>()?;
        self.misbehave(batch)?;
        self.logits.clear();
        self.memory.clear();
        let mut tokens = batch.tokens.iter();
        for (index, (segment, mut history)) in batch.segments.iter().zip(histories).enumerate() {
            for (offset, &token) in (1..).zip(tokens.by_ref().take(segment.len)) {
                history = self.follow(history, token, segment.first_position + offset);
                self.memory.push(history);
                for emit in &self.step.emits {
                    if (emit.segment, emit.offset) == (index, offset) {
                        self.memory.write_slot(&self.pool, emit.slot, history)?;
                    }
                }
            }
            self.memory.write_slot(&self.pool, self.step.recurrent[index].slot, history)?;
            if segment.logits {
                self.asked.remember(history.hash);
                self.push_logits(history, segment.first_position + segment.len);
            }
        }
        self.memory.write(&self.pool, &self.step)?;
        for segment in &batch.segments {
            self.pool.advance(segment.sequence, segment.len)?;
        }
        Ok(Logits::on_host(&self.logits, self.spec.vocab).with_drawn(&self.drawn))
    }
}

impl Asked {
    fn remember(&mut self, state: u64) {
        if !self.states.insert(state) {
            return;
        }
        self.order.push_back(state);
        if self.order.len() > ASKED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.states.remove(&oldest);
        }
    }
}

/// The finalizer of SplitMix64 (Steele et al. 2014), off zero.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
