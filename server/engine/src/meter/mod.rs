//! What the engine counts and measures for each model, for as long as the engine lives: a model that
//! is unloaded and loaded again goes on where it was.
//!
//! The device thread writes with single atomic additions; whoever asks reads what is there.

pub mod bounds;
mod histogram;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use sconce_cache::{Reason, Tier};

pub use self::histogram::{Histogram, HistogramReading};
use crate::event::{CacheReport, FinishReason, Timings};
use crate::steps::Step;

/// Models counted apart, by name. Names come from clients that load models, so that what they can
/// make us keep has a bound; those after the first so many are counted together as [`OTHERS`].
pub const MODELS_METERED_MAX: usize = 32;

/// Where models beyond [`MODELS_METERED_MAX`] are counted. No model can have this name.
pub const OTHERS: &str = "(others)";

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The model's own end, or a stop token.
    Stop,
    /// Its caller said stop, as for a stop string or at the end of the server.
    Stopped,
    /// As long as it was allowed to be.
    Length,
    /// Its deadline passed.
    Deadline,
    /// An error.
    Failed,
    /// Its caller went away.
    Cancelled,
}

impl End {
    /// Every end.
    pub const ALL: [Self; 6] =
        [Self::Stop, Self::Stopped, Self::Length, Self::Deadline, Self::Failed, Self::Cancelled];
}

impl From<FinishReason> for End {
    fn from(reason: FinishReason) -> Self {
        match reason {
            FinishReason::EndOfSequence(_) | FinishReason::StopToken(_) => Self::Stop,
            FinishReason::Stopped => Self::Stopped,
            FinishReason::Length => Self::Length,
            FinishReason::Deadline => Self::Deadline,
        }
    }
}

/// What a step evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Parts of prompts.
    Prefill,
    /// A token of each sequence.
    Decode,
    /// Both.
    Mixed,
}

impl Phase {
    /// Every phase.
    pub const ALL: [Self; 3] = [Self::Prefill, Self::Decode, Self::Mixed];

    /// Its name in metrics and traces.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
            Self::Mixed => "mixed",
        }
    }
}

/// Counts and histograms in one shape: atomics where they are written, plain numbers where they are
/// read.
macro_rules! meters {
    (
        counters { $($(#[$counter_doc:meta])* $counter:ident: $len:expr,)* }
        histograms { $($(#[$histogram_doc:meta])* $histogram:ident: $new:ident($bounds:ident),)* }
    ) => {
        /// The counters and histograms of a model.
        #[derive(Debug)]
        pub(crate) struct ModelMeter {
            $($counter: [AtomicU64; $len],)*
            $($histogram: Histogram,)*
            steps: [Histogram; Phase::ALL.len()],
        }

        /// What was counted of a model.
        #[derive(Debug, Clone, PartialEq)]
        pub struct ModelReading {
            /// Its name, or [`OTHERS`].
            pub model: String,
            $($(#[$counter_doc])* pub $counter: [u64; $len],)*
            $($(#[$histogram_doc])* pub $histogram: HistogramReading,)*
            /// Seconds of steps from their composition to the last token sent, by [`Phase`].
            pub steps: [HistogramReading; Phase::ALL.len()],
        }

        impl ModelMeter {
            fn new() -> Self {
                Self {
                    $($counter: [const { AtomicU64::new(0) }; $len],)*
                    $($histogram: Histogram::$new(bounds::$bounds),)*
                    steps: Phase::ALL.map(|_| Histogram::of_seconds(bounds::STEP)),
                }
            }

            fn read(&self, model: String) -> ModelReading {
                ModelReading {
                    model,
                    $($counter: std::array::from_fn(|i| self.$counter[i].load(Ordering::Relaxed)),)*
                    $($histogram: self.$histogram.read(),)*
                    steps: std::array::from_fn(|phase| self.steps[phase].read()),
                }
            }
        }
    };
}

meters! {
    counters {
        /// Requests that ended, by [`End`].
        ended: End::ALL.len(),
        /// Prompts that were looked up in the cache, by [`Reason`].
        lookups: Reason::ALL.len(),
        /// Tokens of prompts that were admitted.
        prompt_tokens: 1,
        /// Of these, tokens that the cache had state of, by the slowest [`Tier`] it lay in.
        resumed_tokens: Tier::ALL.len(),
        /// Of these, tokens that had to be computed, by the [`Reason`] why no more was resumed.
        recomputed_tokens: Reason::ALL.len(),
        /// Tokens generated.
        completion_tokens: 1,
        /// Times a running sequence gave its pages to another.
        preemptions: 1,
    }
    histograms {
        /// Seconds from arrival to the first token.
        first_token: of_seconds(FIRST_TOKEN),
        /// Seconds between two tokens of a completion.
        inter_token: of_seconds(TOKEN),
        /// Of each completion of at least two tokens, seconds of decode by tokens after the first.
        token_time: of_seconds(TOKEN),
        /// Seconds from arrival to admission.
        queue: of_seconds(REQUEST),
        /// Seconds from admission to the end of the prompt.
        prefill: of_seconds(REQUEST),
        /// Seconds from the end of the prompt to the last token.
        decode: of_seconds(REQUEST),
        /// Seconds from admission to the end.
        inference: of_seconds(REQUEST),
        /// Seconds from arrival to the end.
        request: of_seconds(REQUEST),
        /// Tokens of each prompt.
        prompt_length: of_counts(REQUEST_TOKENS),
        /// Tokens of each completion.
        completion_length: of_counts(REQUEST_TOKENS),
        /// Most tokens that each request asked for, where it did.
        max_tokens: of_counts(REQUEST_TOKENS),
        /// Tokens of each step.
        step_tokens: of_counts(STEP_TOKENS),
    }
}

fn add(counter: &AtomicU64, more: usize) {
    // No other memory hangs on these numbers.
    counter.fetch_add(more as u64, Ordering::Relaxed);
}

impl ModelMeter {
    /// A request was admitted for the first time.
    pub(crate) fn admitted(
        &self,
        prompt_tokens: usize,
        max_tokens: Option<usize>,
        cache: &CacheReport,
    ) {
        add(&self.lookups[cache.reason as usize], 1);
        add(&self.prompt_tokens[0], prompt_tokens);
        if let Some(tier) = cache.tier {
            add(&self.resumed_tokens[tier as usize], cache.resumed);
        }
        add(&self.recomputed_tokens[cache.reason as usize], cache.recomputed);
        self.prompt_length.observe_count(prompt_tokens);
        if let Some(max_tokens) = max_tokens {
            self.max_tokens.observe_count(max_tokens);
        }
    }

    /// A token was sent, so long after the one before; the first after nothing.
    pub(crate) fn token(&self, gap: Option<Duration>) {
        add(&self.completion_tokens[0], 1);
        if let Some(gap) = gap {
            self.inter_token.observe(gap);
        }
    }

    /// The first token was sent, so long after its request had arrived.
    pub(crate) fn first_token(&self, after: Duration) {
        self.first_token.observe(after);
    }

    /// A sequence gave its pages away.
    pub(crate) fn preempted(&self) {
        add(&self.preemptions[0], 1);
    }

    /// A request ended without having been admitted.
    pub(crate) fn ended_waiting(&self, end: End) {
        add(&self.ended[end as usize], 1);
    }

    /// A request ended that was admitted.
    pub(crate) fn ended(&self, end: End, timings: &Timings, total: Duration, tokens: usize) {
        add(&self.ended[end as usize], 1);
        self.queue.observe(timings.queue);
        self.prefill.observe(timings.prefill);
        self.decode.observe(timings.decode);
        self.inference.observe(total.saturating_sub(timings.queue));
        self.request.observe(total);
        self.completion_length.observe_count(tokens);
        if let Some(after_first) = u32::try_from(tokens.saturating_sub(1)).ok().filter(|n| *n > 0) {
            self.token_time.observe(timings.decode / after_first);
        }
    }

    /// A step was done.
    pub(crate) fn step(&self, step: &Step) {
        self.step_tokens.observe_count(step.tokens);
        self.steps[step.phase as usize].observe(step.time);
    }
}

/// Loads of models by how they ended.
#[derive(Debug)]
struct LoadMeter {
    ready: AtomicU64,
    failed: AtomicU64,
    cancelled: AtomicU64,
    seconds: Histogram,
}

/// Loads of models that have ended.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadReading {
    /// Those that gave a model.
    pub ready: u64,
    /// Those that did not.
    pub failed: u64,
    /// Those that nobody waited for any more.
    pub cancelled: u64,
    /// Seconds of those that gave a model.
    pub seconds: HistogramReading,
}

/// How a load ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LoadEnd {
    Ready(Duration),
    Failed,
    Cancelled,
}

/// All meters of an engine.
#[derive(Debug)]
pub(crate) struct Meters {
    models: Mutex<BTreeMap<String, Arc<ModelMeter>>>,
    loads: LoadMeter,
}

/// All that was counted by model, and of loads.
#[derive(Debug, Clone, PartialEq)]
pub struct Readings {
    /// Models that were ever loaded, by name.
    pub models: Vec<ModelReading>,
    /// Loads.
    pub loads: LoadReading,
}

impl Meters {
    /// Nothing counted yet.
    pub(crate) fn new() -> Self {
        let count = || AtomicU64::new(0);
        let seconds = Histogram::of_seconds(bounds::LOAD);
        let loads = LoadMeter { ready: count(), failed: count(), cancelled: count(), seconds };
        Self { models: Mutex::default(), loads }
    }

    /// The meter of a model that is loaded.
    pub(crate) fn of(&self, model: &str) -> Arc<ModelMeter> {
        let mut models = self.models.lock();
        if let Some(meter) = models.get(model) {
            return meter.clone();
        }
        let name = if models.len() < MODELS_METERED_MAX { model } else { OTHERS };
        let new = || Arc::new(ModelMeter::new());
        models.entry(name.to_owned()).or_insert_with(new).clone()
    }

    /// A load came to its end.
    pub(crate) fn load_ended(&self, end: LoadEnd) {
        match end {
            LoadEnd::Ready(time) => {
                add(&self.loads.ready, 1);
                self.loads.seconds.observe(time);
            }
            LoadEnd::Failed => add(&self.loads.failed, 1),
            LoadEnd::Cancelled => add(&self.loads.cancelled, 1),
        }
    }

    /// What was counted.
    pub(crate) fn read(&self) -> Readings {
        let meters: Vec<_> =
            self.models.lock().iter().map(|(name, meter)| (name.clone(), meter.clone())).collect();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Readings {
            models: meters.into_iter().map(|(name, meter)| meter.read(name)).collect(),
            loads: LoadReading {
                ready: count(&self.loads.ready),
                failed: count(&self.loads.failed),
                cancelled: count(&self.loads.cancelled),
                seconds: self.loads.seconds.read(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart_up_to_a_bound() {
        let meters = Meters::new();
        for name in 0..MODELS_METERED_MAX + 10 {
            meters.of(&format!("m{name:02}")).preempted();
        }
        meters.of("m00").preempted();
        let models = meters.read().models;
        assert_eq!(models.len(), MODELS_METERED_MAX + 1);
        let of = |name: &str| {
            let found = models.iter().find(|reading| reading.model == name);
            found.map(|reading| reading.preemptions[0])
        };
        assert_eq!(
            (of("m00"), of("m31"), of("m32"), of(OTHERS)),
            (Some(2), Some(1), None, Some(10))
        );
    }

    #[test]
    fn the_time_of_a_token_is_that_of_decode_by_those_after_the_first() {
        let meter = ModelMeter::new();
        let timings = Timings { decode: Duration::from_secs(6), ..Timings::default() };
        for tokens in [0, 1, 4] {
            meter.ended(End::Length, &timings, Duration::from_secs(7), tokens);
        }
        let reading = meter.read("m".to_owned());
        assert_eq!((reading.token_time.count(), reading.token_time.sum), (1, 2.0));
        assert_eq!((reading.request.count(), reading.ended[End::Length as usize]), (3, 3));
    }
}
