//! What an engine tells about itself: models, sequences, memory, counters, the device thread.

use std::fmt;
use std::time::Duration;

use sconce_cache::Snapshot;
use sconce_models::{ModelFootprint, ModelInfo};

use crate::cache::CacheStatus;
use crate::loader::LoadSettings;

/// What a model is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelState {
    /// Being loaded.
    Loading,
    /// Takes requests.
    Ready,
    /// Finishes its requests and takes no more.
    Unloading,
    /// Its steps kept panicking or failing; takes no requests until it is unloaded and loaded again.
    Failed,
}

impl fmt::Display for ModelState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Loading => "loading",
            Self::Ready => "ready",
            Self::Unloading => "unloading",
            Self::Failed => "failed",
        })
    }
}

/// A model as it was loaded; does not change while it is.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadedModel {
    /// The name it is served under.
    pub name: String,
    /// What the load asked for.
    pub settings: LoadSettings,
    /// What the checkpoint says.
    pub info: ModelInfo,
    /// Bytes besides sequence state.
    pub footprint: ModelFootprint,
    /// Bytes of the whole pool of sequence state.
    pub state_bytes: u64,
    /// Pages of the pool.
    pub pages_max: usize,
    /// Tokens of a page.
    pub page_tokens: usize,
}

/// One model at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelStatus {
    /// The name it is served under.
    pub name: String,
    /// What it is doing.
    pub state: ModelState,
    /// How far the load is, while [`ModelState::Loading`].
    pub progress: crate::loader::LoadProgress,
    /// Requests that wait for admission, preempted ones included.
    pub waiting: usize,
    /// Requests that hold state, paused ones included.
    pub running: usize,
    /// Running requests whose reader has not made room for more events.
    pub paused: usize,
    /// State pages in use.
    pub pages_used: usize,
    /// State pages there are.
    pub pages_max: usize,
    /// State pages of requests that hold state, a shared one counted once; what is only remembered
    /// is not among them.
    pub pages_running: usize,
    /// Places for recurrent state that such requests take, and how many there are; both 0 for a
    /// model without recurrent layers.
    pub slots_running: usize,
    /// See [`slots_running`](Self::slots_running).
    pub slots_max: usize,
    /// Bytes of the pages in use.
    pub state_bytes_used: u64,
    /// How long it has had no request.
    pub idle: Duration,
}

/// Totals since the engine started; they only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests that were queued.
    pub accepted: u64,
    /// Requests that ended in order.
    pub finished: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Requests whose caller went away.
    pub cancelled: u64,
    /// Times a running sequence gave its pages to an older one.
    pub preemptions: u64,
    /// Steps.
    pub steps: u64,
    /// Tokens evaluated in steps, those recomputed after a preemption included.
    pub step_tokens: u64,
    /// Prompt tokens evaluated, each counted once.
    pub prompt_tokens: u64,
    /// Completion tokens sent.
    pub completion_tokens: u64,
    /// Time that steps took.
    pub step_time: Duration,
    /// Completions that sent a token.
    pub first_tokens: u64,
    /// From the arrival of each of these to its first token, together.
    pub first_token_time: Duration,
    /// Between the tokens that follow each other in a completion, together; there are
    /// `completion_tokens - first_tokens` such gaps.
    pub token_gap_time: Duration,
}

/// The device thread at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceStatus {
    /// Whether the thread runs.
    pub alive: bool,
    /// How long it has been inside the current step; `None` between steps. A watchdog compares this
    /// with the longest step it believes in.
    pub in_step: Option<Duration>,
    /// How long ago it last said that it turns; it does so between steps, and while it sleeps.
    pub beat: Duration,
    /// How often it panicked and was put in order again.
    pub restarts: u64,
    /// Whether it is just being put in order; requests are refused meanwhile.
    pub restarting: bool,
    /// Whether it has ended for good: it panicked too often, or so that no model came back, or the GPU
    /// failed step after step.
    pub lost: bool,
}

/// The engine at one moment, taken between two steps (in the answer of
/// [`EngineHandle::status`](crate::EngineHandle::status), `device` is of now).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Status {
    /// Models, by name.
    pub models: Vec<ModelStatus>,
    /// Requests that wait, over all models, those not yet seen by the device thread included.
    pub waiting: usize,
    /// Tokens of their prompts: no fewer than will be computed, for what they resume is known when they
    /// are admitted.
    pub waiting_tokens: usize,
    /// Most that may wait.
    pub waiting_max: usize,
    /// Requests that hold state, over all models.
    pub running: usize,
    /// Whether new requests are refused.
    pub draining: bool,
    /// Budgets and what is held against them.
    pub memory: Snapshot,
    /// Totals.
    pub counters: Counters,
    /// What the cache did and holds.
    pub cache: CacheStatus,
    /// The device thread.
    pub device: DeviceStatus,
}
