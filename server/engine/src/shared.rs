//! What handles, loader threads and the device thread share: the mailbox, the catalogue of models,
//! the waiting room and the published status. No lock here is held for longer than a copy.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use sconce_cache::Ledger;
use tokio::sync::{oneshot, watch};

use crate::cache::Cache;
use crate::config::{Clock, EngineConfig};
use crate::error::EngineError;
use crate::loader::{LoadSettings, Loader};
use crate::mailbox::Mailbox;
use crate::meter::Meters;
use crate::residency::{LoadOutcome, Loading, Residency};
use crate::sequence::Sequence;
use crate::status::{DeviceStatus, LoadedModel, ModelState, Status};
use crate::steps::StepReader;

/// Loads, unloads and shutdowns that may wait for the device thread to take them up.
pub(crate) const CONTROL_COMMANDS_MAX: usize = 64;

/// Bounds of the advice when to try again.
const RETRY_AFTER_MIN: Duration = Duration::from_millis(100);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);

/// Something that only the device thread can answer; it sends the answer itself.
pub(crate) type Question = Box<dyn FnOnce(&mut Residency, &mut Cache) + Send>;

/// What the device thread is told.
pub(crate) enum Command {
    /// Queue a request.
    Submit(Box<Sequence>),
    /// Load a model, or join the load of it.
    Load {
        name: String,
        settings: LoadSettings,
        reply: oneshot::Sender<Result<Loading, EngineError>>,
    },
    /// A loader thread has ended.
    Loaded(Box<LoadOutcome>),
    /// Unload a model; answered when its memory is free.
    Unload { name: String, force: bool, reply: oneshot::Sender<Result<(), EngineError>> },
    /// Look or change something between two steps.
    Ask(Question),
    /// Finish what there is until the deadline, fail the rest, stop; answered when that is done.
    Shutdown { deadline: Instant, reply: oneshot::Sender<()> },
}

/// What a handle may know of a model without asking the device thread.
#[derive(Debug, Clone)]
pub(crate) struct CatalogueEntry {
    pub(crate) state: ModelState,
    /// `None` while it is being loaded.
    pub(crate) model: Option<Arc<LoadedModel>>,
    /// Whether it is being loaded again after a panic.
    pub(crate) restoring: bool,
}

/// What became of the device thread, besides what each look at it finds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pulse {
    /// The last time that it said that it turns.
    pub(crate) beat: Instant,
    pub(crate) restarts: u64,
    pub(crate) restarting: bool,
    pub(crate) lost: bool,
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Submit(_) => "Submit",
            Self::Load { .. } => "Load",
            Self::Loaded(_) => "Loaded",
            Self::Unload { .. } => "Unload",
            Self::Ask(_) => "Ask",
            Self::Shutdown { .. } => "Shutdown",
        })
    }
}

/// The common ground of an engine's threads.
pub(crate) struct Shared {
    pub(crate) config: EngineConfig,
    pub(crate) clock: Clock,
    /// When the engine started; the cache counts time from here.
    pub(crate) began: Instant,
    pub(crate) loader: Arc<dyn Loader>,
    pub(crate) ledger: Ledger,
    pub(crate) mailbox: Arc<Mailbox<Command>>,
    pub(crate) catalogue: RwLock<BTreeMap<String, CatalogueEntry>>,
    pub(crate) waiting_room: Arc<WaitingRoom>,
    pub(crate) meters: Meters,
    pub(crate) step_reader: StepReader,
    pub(crate) draining: AtomicBool,
    /// No handle is left.
    pub(crate) orphaned: AtomicBool,
    pub(crate) alive: AtomicBool,
    /// When the current step began.
    pub(crate) step_began: Mutex<Option<Instant>>,
    pub(crate) pulse: Mutex<Pulse>,
    pub(crate) status: watch::Sender<Arc<Status>>,
}

impl Shared {
    pub(crate) fn new(config: EngineConfig, loader: Arc<dyn Loader>, clock: Clock) -> Self {
        Self {
            ledger: Ledger::new(config.budgets),
            mailbox: Arc::new(Mailbox::new(
                config.waiting_max.saturating_add(CONTROL_COMMANDS_MAX),
            )),
            catalogue: RwLock::default(),
            waiting_room: Arc::new(WaitingRoom::new(config.waiting_max, clock.now())),
            meters: Meters::new(),
            step_reader: StepReader::default(),
            draining: AtomicBool::new(false),
            orphaned: AtomicBool::new(false),
            alive: AtomicBool::new(true),
            step_began: Mutex::new(None),
            pulse: Mutex::new(Pulse {
                beat: clock.now(),
                restarts: 0,
                restarting: false,
                lost: false,
            }),
            status: watch::Sender::new(Arc::default()),
            began: clock.now(),
            config,
            clock,
            loader,
        }
    }

    /// Notes that the device thread turns.
    pub(crate) fn beat(&self) {
        self.pulse.lock().beat = self.clock.now();
    }

    /// The device thread at this moment.
    pub(crate) fn device(&self) -> DeviceStatus {
        let (began, now) = (*self.step_began.lock(), self.clock.now());
        let Pulse { beat, restarts, restarting, lost } = *self.pulse.lock();
        DeviceStatus {
            alive: self.alive.load(Ordering::Acquire),
            in_step: began.map(|began| now.saturating_duration_since(began)),
            beat: now.saturating_duration_since(beat),
            restarts,
            restarting,
            lost,
        }
    }

    /// What is known of the model `name`.
    pub(crate) fn entry(&self, name: &str) -> Result<CatalogueEntry, EngineError> {
        let found = self.catalogue.read().get(name).cloned();
        found.ok_or_else(|| EngineError::ModelNotFound { model: name.to_owned() })
    }

    /// The model `name`, if it takes requests.
    pub(crate) fn ready(&self, name: &str) -> Result<Arc<LoadedModel>, EngineError> {
        if self.pulse.lock().restarting {
            return Err(EngineError::Restarting);
        }
        let entry = self.entry(name)?;
        if entry.restoring {
            return Err(EngineError::Restarting);
        }
        let state = entry.state;
        entry
            .model
            .filter(|_| state == ModelState::Ready)
            .ok_or_else(|| EngineError::ModelNotReady { model: name.to_owned(), state })
    }
}

/// Counts the requests between submission and admission.
#[derive(Debug)]
pub(crate) struct WaitingRoom {
    waiting: AtomicUsize,
    /// Tokens of their prompts.
    tokens: AtomicUsize,
    limit: usize,
    /// Smoothed time between two departures.
    interval_nanos: AtomicU64,
    last_departure: Mutex<Instant>,
}

/// One request's place in the [`WaitingRoom`], given back when dropped.
#[derive(Debug)]
pub(crate) struct WaitingPlace {
    room: Arc<WaitingRoom>,
    tokens: usize,
}

impl WaitingRoom {
    fn new(limit: usize, now: Instant) -> Self {
        Self {
            waiting: AtomicUsize::new(0),
            tokens: AtomicUsize::new(0),
            limit,
            interval_nanos: AtomicU64::new(0),
            last_departure: Mutex::new(now),
        }
    }

    /// Takes a place, for a prompt of `tokens` tokens.
    ///
    /// # Errors
    /// [`EngineError::QueueFull`].
    pub(crate) fn enter(self: &Arc<Self>, tokens: usize) -> Result<WaitingPlace, EngineError> {
        self.waiting
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |waiting| {
                (waiting < self.limit).then_some(waiting + 1)
            })
            .map(|_| {
                self.tokens.fetch_add(tokens, Ordering::AcqRel);
                WaitingPlace { room: self.clone(), tokens }
            })
            .map_err(|_| EngineError::QueueFull {
                limit: self.limit,
                retry_after: self.retry_after(),
            })
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }

    /// Tokens of the prompts that wait.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens.load(Ordering::Acquire)
    }

    /// Notes that a request was admitted, for the advice when to try again.
    pub(crate) fn departed(&self, now: Instant) {
        /// One new interval weighs an eighth.
        const SMOOTHING: u64 = 8;
        let since = {
            let mut last = self.last_departure.lock();
            let since = now.saturating_duration_since(*last);
            *last = now;
            since
        };
        let since = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        let smoothed = self.interval_nanos.load(Ordering::Relaxed);
        let smoothed = smoothed - smoothed / SMOOTHING + since / SMOOTHING;
        self.interval_nanos.store(smoothed, Ordering::Relaxed);
    }

    fn retry_after(&self) -> Duration {
        let interval = Duration::from_nanos(self.interval_nanos.load(Ordering::Relaxed));
        interval.clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX)
    }
}

impl Drop for WaitingPlace {
    fn drop(&mut self) {
        self.room.tokens.fetch_sub(self.tokens, Ordering::AcqRel);
        self.room.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}
