//! One step of one model: schedule, forward, sample, advance.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use sconce_models::{Batch, Blame, Drawn, Error, Logits};

use crate::cache::Cache;
use crate::error::EngineError;
use crate::event::{FinishReason, Token, TokenLogprobs};
use crate::meter::Phase;
use crate::request::{Sampling, Stopping};
use crate::residency::{Residency, Resident, panic_message};
use crate::sampler::{NotFinite, Sampler, sample_top, top_logprobs};
use crate::scheduler::Row;
use crate::sequence::Sequence;
use crate::shared::Shared;
use crate::status::{Counters, LoadedModel, ModelState};
use crate::steps::Step;

/// Steps in a row after which what fails them is given up: a model that panics or fails by itself is
/// marked as failed; a GPU ends the engine, for its driver can refuse a process for good, and only another
/// process helps then.
pub(crate) const FAILURES_MAX: u32 = 3;

/// A token, and its logprobs if they are wanted.
type Chosen = (u32, Option<TokenLogprobs>);

/// How a sequence ends, if it does.
type Outcome = Result<FinishReason, EngineError>;

/// Steps models in turn; its buffers are used again for each step.
pub(crate) struct Executor {
    shared: Arc<Shared>,
    sampler: Sampler,
    batch: Batch,
    rows: Vec<Row>,
    /// The running sequences that end with this step.
    ended: Vec<(usize, Outcome)>,
    /// The model whose turn was last.
    last: String,
    /// Steps, of whatever model, that a GPU failed without a good one between them.
    gpu_failures: u32,
}

impl Executor {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            sampler: Sampler::default(),
            batch: Batch::default(),
            rows: Vec::new(),
            ended: Vec::new(),
            last: String::new(),
            gpu_failures: 0,
        }
    }

    /// Whether the GPU fails step after step.
    pub(crate) fn has_lost_gpu(&self) -> bool {
        self.gpu_failures >= FAILURES_MAX
    }

    /// Runs a step of the next model in turn that has something to run; whether there was one.
    pub(crate) fn step(
        &mut self,
        residency: &mut Residency,
        cache: &mut Cache,
        counters: &mut Counters,
    ) -> bool {
        for _ in 0..residency.loaded().count() {
            let Some(resident) = residency.loaded_after(&self.last) else { return false };
            self.last.clone_from(&resident.about.name);
            let done = match self.schedule(resident, cache, counters) {
                Ok(false) => continue,
                Ok(true) => self.evaluate(resident, cache, counters),
                Err(error) => {
                    // Of a step before.
                    self.rows.clear();
                    Err(self.count_failure(resident, &error))
                }
            };
            if let Err(error) = done {
                tracing::error!(model = %self.last, %error, "step failed");
                self.ended.clear();
                self.ended.extend(self.rows.iter().map(|row| (row.running, Err(error.clone()))));
                self.end_sequences(resident, cache, counters);
                if self.has_lost_gpu() {
                    // Whoever waits is told to go elsewhere when the engine ends.
                    tracing::error!(failures = self.gpu_failures, "the GPU is lost");
                } else if resident.failures >= FAILURES_MAX && resident.state == ModelState::Ready {
                    residency.fail(&self.last, &error, cache, counters);
                }
            }
            return true;
        }
        false
    }

    /// Counts a step that failed, as its error says.
    fn count_failure(&mut self, resident: &mut Resident, error: &Error) -> EngineError {
        match error.blame() {
            Blame::Batch => {}
            Blame::Model => resident.failures += 1,
            Blame::Gpu => {
                resident.failures += 1;
                self.gpu_failures += 1;
            }
        }
        EngineError::Forward { model: resident.about.name.clone(), message: error.to_string() }
    }

    /// Admits and composes; whether there is anything to evaluate. After an error there is not.
    fn schedule(
        &mut self,
        resident: &mut Resident,
        cache: &mut Cache,
        counters: &mut Counters,
    ) -> Result<bool, Error> {
        let now = self.shared.clock.now();
        let model = &mut resident.holding.model;
        let tokens_max = self.shared.config.step_tokens_max.min(model.step_tokens_max()).max(1);
        let memory = &mut cache.memory(model.state_mut(), resident.domain);
        let room = &self.shared.waiting_room;
        loop {
            let before = (counters.failed, counters.preemptions);
            resident.scheduler.admit(memory, now, counters, || room.departed(now))?;
            let step = (&mut self.batch, &mut self.rows);
            resident.scheduler.compose(memory, tokens_max, step, now, counters)?;
            if !self.rows.is_empty() {
                return Ok(true);
            }
            // Memory that was taken from one sequence may be what another waits for.
            if before == (counters.failed, counters.preemptions) {
                return Ok(false);
            }
        }
    }

    /// Runs the batch and hands every sequence its token. An error is one of the whole step.
    fn evaluate(
        &mut self,
        resident: &mut Resident,
        cache: &mut Cache,
        counters: &mut Counters,
    ) -> Result<(), EngineError> {
        let phase = self.phase(resident);
        let failed = |message| EngineError::Forward { model: resident.about.name.clone(), message };
        let began = self.shared.clock.now();
        *self.shared.step_began.lock() = Some(began);
        let (model, batch) = (&mut *resident.holding.model, &self.batch);
        // After a panic, the sequences of the step are closed, and nothing else is read of the
        // model that the step may have left half done.
        let result = catch_unwind(AssertUnwindSafe(move || {
            // Moved whole, or the logits could not outlive the closure's borrow of it.
            let model = model;
            model.forward(batch)
        }));
        *self.shared.step_began.lock() = None;
        let now = self.shared.clock.now();
        counters.step_time += now.saturating_duration_since(began);
        let mut logits = match result {
            Ok(Ok(logits)) => logits,
            Ok(Err(error)) => return Err(self.count_failure(resident, &error)),
            Err(panic) => {
                resident.failures += 1;
                return Err(failed(format!("the step panicked: {}", panic_message(&*panic))));
            }
        };
        (resident.failures, self.gpu_failures) = (0, 0);
        let wanted = self.rows.iter().filter(|row| row.samples).count();
        if logits.rows() != wanted {
            let found = logits.rows();
            return Err(failed(format!("expected logits of {wanted} rows, found {found}")));
        }
        counters.steps += 1;
        counters.step_tokens += self.batch.tokens.len() as u64;
        let mut next_logits = 0;
        for row in &self.rows {
            let sequence = resident.scheduler.running_mut(row.running);
            counters.prompt_tokens += sequence.advance(row.tokens, now) as u64;
            if !row.samples {
                continue;
            }
            let row_logits = (&mut logits, next_logits);
            next_logits += 1;
            let about = &resident.about;
            let outcome = sample(&mut self.sampler, sequence, row_logits, about, now, counters);
            self.ended.extend(outcome.map(|outcome| (row.running, outcome)));
        }
        self.remember(resident, cache);
        // Before anybody hears of an end, so that whoever does finds the step counted.
        let time = self.shared.clock.now().saturating_duration_since(began);
        let (tokens, sequences) = (self.batch.tokens.len(), self.rows.len());
        let step = Step { phase, began, time, tokens, sequences };
        resident.meter.step(&step);
        let scheduler = &mut resident.scheduler;
        let marks = self.rows.iter().filter_map(|row| scheduler.running_mut(row.running).trace);
        resident.steps.see(step, marks);
        self.end_sequences(resident, cache, counters);
        Ok(())
    }

    /// What the step is about to evaluate.
    fn phase(&self, resident: &mut Resident) -> Phase {
        // As the scheduler has it: one token left is decoded, be it a prompt's last.
        let mut decodes = |row: &Row| resident.scheduler.running_mut(row.running).remaining() == 1;
        let decoding = self.rows.iter().filter(|row| decodes(row)).count();
        match decoding {
            0 => Phase::Prefill,
            all if all == self.rows.len() => Phase::Decode,
            _ => Phase::Mixed,
        }
    }

    /// Leaves what the step has computed to the cache, and ends what was computed for that alone.
    fn remember(&mut self, resident: &mut Resident, cache: &mut Cache) {
        let memory = &mut cache.memory(resident.holding.model.state_mut(), resident.domain);
        for row in &self.rows {
            // What gave logits that are not finite is nothing to remember.
            if self.ended.iter().any(|(index, end)| *index == row.running && end.is_err()) {
                continue;
            }
            let sequence = resident.scheduler.running_mut(row.running);
            memory.remember(sequence);
            if sequence.remaining() == 0
                && let Some(keep) = sequence.keep.take()
            {
                let named = memory.name(sequence, keep.spec);
                // Nobody may be waiting any more.
                drop(keep.reply.send(named));
                self.ended.push((row.running, Ok(FinishReason::Length)));
            }
        }
    }

    /// Ends what is in `ended`, from the back, so that the indices before stay true.
    fn end_sequences(
        &mut self,
        resident: &mut Resident,
        cache: &mut Cache,
        counters: &mut Counters,
    ) {
        let now = self.shared.clock.now();
        let memory = &mut cache.memory(resident.holding.model.state_mut(), resident.domain);
        self.ended.sort_unstable_by_key(|(index, _)| std::cmp::Reverse(*index));
        for (index, outcome) in self.ended.drain(..) {
            resident.scheduler.end(index, memory, now, counters, outcome);
        }
    }
}

/// Draws the next token of a sequence and sends it, unless it ends the sequence.
fn sample(
    sampler: &mut Sampler,
    sequence: &mut Sequence,
    logits: (&mut Logits<'_>, usize),
    about: &LoadedModel,
    now: Instant,
    counters: &mut Counters,
) -> Option<Outcome> {
    let (index, info) = (sequence.completion_tokens(), &about.info);
    let (id, logprobs) = match choose(sampler, sequence, logits, about) {
        Ok(chosen) => chosen,
        Err(error) => return Some(Err(error)),
    };
    let stopping = &sequence.stopping;
    if stopping.stop_token_ids.contains(&id) {
        return Some(Ok(FinishReason::StopToken(id)));
    }
    if !stopping.ignore_eos && info.eos_token_ids.contains(&id) {
        return Some(Ok(FinishReason::EndOfSequence(id)));
    }
    sequence.append(Token { id, logprobs }, now, counters);
    let full = sequence.tokens.len() >= info.context_length;
    let enough = sequence.stopping.max_tokens.is_some_and(|max| index + 1 >= max);
    (full || enough).then_some(Ok(FinishReason::Length))
}

/// The next token, and its logprobs if they are wanted: as the device has drawn it, or from the largest
/// logits, where those tell, else from the whole row, which may have to be fetched.
fn choose(
    sampler: &mut Sampler,
    sequence: &Sequence,
    (logits, row): (&mut Logits<'_>, usize),
    about: &LoadedModel,
) -> Result<Chosen, EngineError> {
    if sequence.row_use().draw.is_some()
        && let Some(chosen) = choose_on_device(sequence, (logits, row), about)?
    {
        return Ok(chosen);
    }
    let token_index = sequence.completion_tokens();
    let endless = sequence.is_endless().then(|| endless(sequence, about));
    let (sampling, history) = (endless.as_ref().unwrap_or(&sequence.sampling), &sequence.tokens);
    let row = logits.row(row).map_err(|error| unread(&error, about))?;
    let id = sampler.sample(row, sampling, history, (sequence.seed, token_index));
    let id = id.map_err(|NotFinite| EngineError::NonFiniteLogits { token_index })?;
    Ok((id, sequence.logprobs.map(|count| sampler.logprobs(row, id, count))))
}

/// The same without the row; none where the row is needed, or is as near.
fn choose_on_device(
    sequence: &Sequence,
    (logits, row): (&mut Logits<'_>, usize),
    about: &LoadedModel,
) -> Result<Option<Chosen>, EngineError> {
    let token_index = sequence.completion_tokens();
    let not_finite = || EngineError::NonFiniteLogits { token_index };
    let drawn = match logits.drawn(row) {
        Drawn::Token(id) => Some(id),
        Drawn::Undrawn => None,
        Drawn::NotFinite => return Err(not_finite()),
    };
    if let (Some(id), None) = (drawn, sequence.logprobs) {
        return Ok(Some((id, None)));
    }
    let Some(top) = logits.top(row).map_err(|error| unread(&error, about))? else {
        return Ok(None);
    };
    let draw = (sequence.seed, token_index);
    let id = match drawn {
        Some(id) => Some(id),
        None => sample_top(&top, about.info.vocab_size, &sequence.sampling, draw)
            .map_err(|NotFinite| not_finite())?,
    };
    Ok(id.and_then(|id| match sequence.logprobs {
        None => Some((id, None)),
        Some(count) => top_logprobs(&top, id, count).map(|logprobs| (id, Some(logprobs))),
    }))
}

/// Logits that were computed and cannot be had.
fn unread(error: &sconce_models::Error, about: &LoadedModel) -> EngineError {
    EngineError::Forward { model: about.name.clone(), message: error.to_string() }
}

/// The sampling of a sequence that may not end yet.
fn endless(sequence: &Sequence, about: &LoadedModel) -> Sampling {
    let Stopping { stop_token_ids, ignore_eos, .. } = &sequence.stopping;
    let eos = about.info.eos_token_ids.iter().filter(|_| !ignore_eos);
    let ends = stop_token_ids.iter().chain(eos);
    let ends = ends.filter(|&&id| (id as usize) < about.info.vocab_size);
    let mut sampling = sequence.sampling.clone();
    // The smallest logit there is: drawn only where every token would end it.
    sampling.logit_bias.extend(ends.map(|&id| (id, f32::MIN)));
    sampling
}
