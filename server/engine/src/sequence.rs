//! One request from submission to its last event: its tokens, its state in the pool, its account.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sconce_cache::SnapshotSpec;
use sconce_models::{RowUse, SequenceId};
use tokio::sync::oneshot;

use crate::cache::{Footing, Memory, Parting};
use crate::error::EngineError;
use crate::event::{CacheReport, Event, FinishReason, Finished, Started, Timings, Token, Usage};
use crate::generation::EventSender;
use crate::meter::{End, ModelMeter};
use crate::request::{CacheUse, Request, Sampling, Stopping};
use crate::sampler;
use crate::shared::WaitingPlace;
use crate::snapshot::SnapshotInfo;
use crate::status::Counters;
use crate::steps::TraceMark;

/// A request inside the engine.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) model: String,
    pub(crate) request_id: String,
    pub(crate) sampling: Sampling,
    pub(crate) stopping: Stopping,
    pub(crate) logprobs: Option<usize>,
    pub(crate) deadline: Option<Instant>,
    pub(crate) cache: CacheUse,
    /// As in the request.
    pub(crate) trace: Option<TraceMark>,
    /// Set where the prompt is computed to be remembered, and not to be completed.
    pub(crate) keep: Option<Keep>,
    /// Of the draw; the request's, or one that cannot be guessed.
    pub(crate) seed: u64,
    /// Its place in every order: larger priority first, then earlier arrival.
    pub(crate) rank: Rank,
    /// Prompt, then completion.
    pub(crate) tokens: Vec<u32>,
    pub(crate) prompt_tokens: usize,
    /// Where its state is; `None` while it waits, for the first time or after a preemption.
    pub(crate) state: Option<SequenceId>,
    /// How many of `tokens` that state stands for.
    pub(crate) computed: usize,
    /// What it has to do with the cache.
    pub(crate) footing: Footing,
    /// What its caller was told of the cache.
    report: Option<CacheReport>,
    /// Given back at the first admission.
    place: Option<WaitingPlace>,
    /// Where it is counted.
    pub(crate) meter: Arc<ModelMeter>,
    events: EventSender,
    /// Prompt tokens that are done: resumed at the start, or evaluated at least once.
    evaluated: usize,
    moments: Moments,
}

/// The name that a prompt's state is to have, and who waits for it.
#[derive(Debug)]
pub(crate) struct Keep {
    pub(crate) spec: SnapshotSpec,
    pub(crate) reply: oneshot::Sender<Result<SnapshotInfo, EngineError>>,
}

/// Place of a sequence among others: the smaller runs first, the larger is preempted first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    priority: std::cmp::Reverse<i32>,
    arrival: u64,
}

#[derive(Debug, Clone, Copy)]
struct Moments {
    arrived: Instant,
    admitted: Option<Instant>,
    prompt_done: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
}

impl Sequence {
    /// A checked request that holds a place in the queue; ranked when the engine takes it up.
    pub(crate) fn new(
        request: Request,
        place: WaitingPlace,
        events: EventSender,
        meter: Arc<ModelMeter>,
    ) -> Self {
        let moments = Moments {
            arrived: request.arrived,
            admitted: None,
            prompt_done: None,
            first_token: None,
            last_token: None,
        };
        Self {
            model: request.model,
            request_id: request.request_id,
            seed: request
                .sampling
                .seed
                .unwrap_or_else(|| RandomState::new().build_hasher().finish()),
            sampling: request.sampling,
            stopping: request.stopping,
            logprobs: request.logprobs,
            deadline: request.deadline,
            cache: request.cache,
            trace: request.trace,
            keep: None,
            rank: Rank { priority: std::cmp::Reverse(request.priority), arrival: 0 },
            prompt_tokens: request.prompt.len(),
            tokens: request.prompt,
            state: None,
            computed: 0,
            footing: Footing::default(),
            report: None,
            place: Some(place),
            meter,
            events,
            evaluated: 0,
            moments,
        }
    }

    /// Fixes the sequence's place among those of its priority.
    pub(crate) fn arrive(&mut self, arrival: u64) {
        self.rank.arrival = arrival;
    }

    /// Completion tokens so far.
    pub(crate) fn completion_tokens(&self) -> usize {
        self.tokens.len() - self.prompt_tokens
    }

    /// Tokens that have to be evaluated before the next one can be sampled.
    pub(crate) fn remaining(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Whether it may not end with the next token.
    pub(crate) fn is_endless(&self) -> bool {
        self.completion_tokens() < self.stopping.min_tokens
    }

    /// What a device may do with the logits of its next token.
    pub(crate) fn row_use(&self) -> RowUse {
        let draw = (self.seed, self.completion_tokens());
        let draw = sampler::device_draw(&self.sampling, &self.tokens, draw);
        RowUse { draw: draw.filter(|_| !self.is_endless()), largest: self.logprobs.unwrap_or(0) }
    }

    /// Whether its caller was told that it started.
    pub(crate) fn is_started(&self) -> bool {
        self.moments.admitted.is_some()
    }

    /// Whether its caller went away.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.events.is_abandoned()
    }

    /// Whether its reader lets it go on; if not, the bell rings when it does.
    pub(crate) fn has_room(&self) -> bool {
        self.events.has_room()
    }

    /// Whether it has to end although the model would go on, and how.
    pub(crate) fn cut(&self, now: Instant) -> Option<FinishReason> {
        if self.events.is_stopped() {
            return Some(FinishReason::Stopped);
        }
        self.deadline.filter(|&deadline| deadline <= now).map(|_| FinishReason::Deadline)
    }

    /// Gives it state, in which `computed` tokens are done: the place in the queue is free, and its
    /// caller learns so the first time.
    pub(crate) fn admit(&mut self, state: SequenceId, memory: &mut Memory<'_>, now: Instant) {
        self.state = Some(state);
        self.place = None;
        if self.moments.admitted.is_none() {
            self.moments.admitted = Some(now);
            let cache = memory.report(self, self.computed);
            tracing::debug!(
                request_id = %self.request_id,
                prompt_tokens = self.prompt_tokens,
                matched = cache.matched,
                resumed = cache.resumed,
                tier = cache.tier.map(tracing::field::display),
                reason = ?cache.reason,
                divergence = cache.divergence,
                "started"
            );
            self.meter.admitted(self.prompt_tokens, self.stopping.max_tokens, &cache);
            self.report = Some(cache);
            self.evaluated = cache.resumed;
            let started = Started { prompt_tokens: self.prompt_tokens, cache };
            self.events.send(Event::Started(started));
        }
    }

    /// Lets its state go. What it has generated stays, and is resumed or computed again after
    /// readmission.
    pub(crate) fn release(&mut self, memory: &mut Memory<'_>, parting: Parting) {
        memory.close(self, parting);
    }

    /// Counts `tokens` more tokens as evaluated, and returns how many prompt tokens among them were
    /// so for the first time.
    pub(crate) fn advance(&mut self, tokens: usize, now: Instant) -> usize {
        self.computed += tokens;
        let evaluated = self.computed.min(self.prompt_tokens);
        let fresh = evaluated.saturating_sub(self.evaluated);
        self.evaluated += fresh;
        if self.evaluated == self.prompt_tokens {
            self.moments.prompt_done.get_or_insert(now);
        }
        fresh
    }

    /// Sends and keeps a completion token.
    pub(crate) fn append(&mut self, token: Token, now: Instant, counters: &mut Counters) {
        self.tokens.push(token.id);
        counters.completion_tokens += 1;
        match self.moments.last_token.replace(now) {
            Some(last) => {
                let gap = now.saturating_duration_since(last);
                counters.token_gap_time += gap;
                self.meter.token(Some(gap));
            }
            None => {
                let after = now.saturating_duration_since(self.moments.arrived);
                self.moments.first_token = Some(now);
                counters.first_tokens += 1;
                counters.first_token_time += after;
                self.meter.first_token(after);
                self.meter.token(None);
            }
        }
        self.events.send(Event::Token(token));
    }

    /// Ends it in order. Its state must have been released.
    pub(crate) fn finish(self, reason: FinishReason, now: Instant, counters: &mut Counters) {
        // A deadline that passed before anything was done is a failure of ours, not a short answer.
        if reason == FinishReason::Deadline && !self.is_started() {
            let waited = now.saturating_duration_since(self.moments.arrived);
            return self.fail(EngineError::DeadlineExceeded { waited }, now, counters);
        }
        counters.finished += 1;
        let cached_tokens = self.report.map_or(0, |report| report.resumed);
        let usage = Usage {
            prompt_tokens: self.prompt_tokens,
            cached_tokens,
            evaluated_tokens: self.evaluated - cached_tokens,
            completion_tokens: self.completion_tokens(),
        };
        let timings = self.moments.timings(now);
        self.measure(reason.into(), now);
        tracing::debug!(request_id = %self.request_id, ?reason, ?usage, cache = ?self.report, "finished");
        self.events.end(Event::Finished(Finished { reason, usage, timings }));
    }

    /// Ends it with an error. Its state must have been released.
    pub(crate) fn fail(self, error: EngineError, now: Instant, counters: &mut Counters) {
        counters.failed += 1;
        let end = match error {
            EngineError::DeadlineExceeded { .. } => End::Deadline,
            _ => End::Failed,
        };
        self.measure(end, now);
        tracing::debug!(request_id = %self.request_id, %error, "failed");
        self.events.end(Event::Failed(error));
    }

    /// Ends it without a word, for its caller went away. Its state must have been released.
    pub(crate) fn cancel(self, now: Instant, counters: &mut Counters) {
        counters.cancelled += 1;
        self.measure(End::Cancelled, now);
        tracing::debug!(request_id = %self.request_id, "cancelled");
    }
}

impl Sequence {
    /// Counts its end.
    fn measure(&self, end: End, now: Instant) {
        if !self.is_started() {
            self.meter.ended_waiting(end);
            return;
        }
        let total = now.saturating_duration_since(self.moments.arrived);
        self.meter.ended(end, &self.moments.timings(now), total, self.completion_tokens());
    }
}

impl Moments {
    /// Durations up to `now` for a sequence that ends; phases that were not reached take no time.
    fn timings(&self, now: Instant) -> Timings {
        let between = |from: Option<Instant>, to: Instant| {
            from.map_or(Duration::ZERO, |from| to.saturating_duration_since(from))
        };
        Timings {
            queue: between(Some(self.arrived), self.admitted.unwrap_or(now)),
            prefill: between(self.admitted, self.prompt_done.unwrap_or(now)),
            decode: self.last_token.map_or(Duration::ZERO, |last| between(self.prompt_done, last)),
            first_token: self.first_token.map(|first| between(Some(self.arrived), first)),
        }
    }
}
