//! The engine as the rest of the program sees it. Every call checks what can be checked without the
//! device thread, so that a refusal comes before a stream has begun.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use sconce_cache::Ledger;
use tokio::sync::{mpsc, oneshot, watch};

use crate::config::{Clock, EngineConfig};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::generation::{Generation, channel};
use crate::loader::{Estimate, LoadLimits, LoadSettings, Loader};
use crate::mailbox::Refused;
use crate::meter::Readings;
use crate::request::Request;
use crate::residency::Loading;
use crate::sequence::{Keep, Sequence};
use crate::shared::{CONTROL_COMMANDS_MAX, Command, Shared};
use crate::status::{DeviceStatus, LoadedModel, Status};
use crate::steps::{STEP_SAMPLES_MAX, StepSample};

/// A running engine; clones are the same one. When the last is dropped, the engine fails what still
/// runs with [`EngineError::Stopped`] and ends.
#[derive(Clone)]
pub struct EngineHandle {
    owner: Arc<Owner>,
}

struct Owner {
    shared: Arc<Shared>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.orphaned.store(true, Ordering::Release);
        self.shared.mailbox.ring();
    }
}

impl fmt::Debug for EngineHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineHandle").field("config", &self.shared().config).finish()
    }
}

impl EngineHandle {
    /// Starts the device thread of a new engine without models.
    ///
    /// # Errors
    /// If the system gives no thread, or the directory of the cache cannot be had.
    pub fn start(config: EngineConfig, loader: Arc<dyn Loader>) -> std::io::Result<Self> {
        Self::start_with_clock(config, loader, Clock::default())
    }

    /// [`start`](Self::start), with another clock than the system's.
    ///
    /// # Errors
    /// If the system gives no thread, or the directory of the cache cannot be had.
    pub fn start_with_clock(
        config: EngineConfig,
        loader: Arc<dyn Loader>,
        clock: Clock,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::new(config, loader, clock));
        let engine = Engine::new(shared.clone()).map_err(std::io::Error::other)?;
        thread::Builder::new().name("device".into()).spawn(move || engine.run())?;
        Ok(Self { owner: Arc::new(Owner { shared }) })
    }

    /// Queues a request. Dropping the generation cancels it.
    ///
    /// # Errors
    /// Whatever can be known before the request is queued: draining, a model that is not ready, a
    /// prompt or an option out of range, a full queue, a deadline that has passed.
    pub fn generate(&self, request: Request) -> Result<Generation, EngineError> {
        self.submit(request, None)
    }

    /// Queues a request, or what is to be remembered of it.
    pub(crate) fn submit(
        &self,
        request: Request,
        keep: Option<Keep>,
    ) -> Result<Generation, EngineError> {
        let shared = self.shared();
        self.refuse_if_draining()?;
        let model = shared.ready(&request.model)?;
        request.check(&model)?;
        let now = shared.clock.now();
        if request.deadline.is_some_and(|deadline| deadline <= now) {
            let waited = now.saturating_duration_since(request.arrived);
            return Err(EngineError::DeadlineExceeded { waited });
        }
        let place = shared.waiting_room.enter(request.prompt.len())?;
        let (events, generation) = channel(shared.mailbox.clone());
        let mut sequence = Sequence::new(request, place, events, shared.meters.of(&model.name));
        sequence.keep = keep;
        self.push(Command::Submit(Box::new(sequence)))?;
        Ok(generation)
    }

    /// Loads a model under `name`, or joins a load of it. The load is given up when every
    /// [`Loading`] of it is dropped before it is done.
    ///
    /// # Errors
    /// [`EngineError::AlreadyLoaded`] if the name is taken by other settings,
    /// [`EngineError::ModelNotReady`] if it is being unloaded, [`EngineError::Busy`],
    /// [`EngineError::Draining`], [`EngineError::Stopped`]. Failures of the load itself come as
    /// [`LoadEvent::Failed`](crate::LoadEvent::Failed).
    pub async fn load(&self, name: &str, settings: LoadSettings) -> Result<Loading, EngineError> {
        self.refuse_if_draining()?;
        let (reply, answer) = oneshot::channel();
        self.push(Command::Load { name: name.to_owned(), settings, reply })?;
        answer.await.map_err(|_| self.unanswered())?
    }

    /// Unloads a model and returns when its memory is free. Requests that it already has are run to
    /// their end first, or failed with [`EngineError::ModelUnloaded`] if `force`; new ones are
    /// refused at once. A load in progress is cancelled.
    ///
    /// # Errors
    /// [`EngineError::ModelNotFound`], [`EngineError::Stopped`].
    pub async fn unload(&self, name: &str, force: bool) -> Result<(), EngineError> {
        let (reply, answer) = oneshot::channel();
        self.push(Command::Unload { name: name.to_owned(), force, reply })?;
        answer.await.map_err(|_| self.unanswered())?
    }

    /// What a load would take; reads the checkpoint's headers on a thread for blocking work. Must be
    /// called within a tokio runtime.
    ///
    /// # Errors
    /// [`EngineError::LoadFailed`] naming the path.
    pub async fn estimate(&self, settings: LoadSettings) -> Result<Estimate, EngineError> {
        let loader = self.shared().loader.clone();
        let limits = LoadLimits::of(&self.shared().config, &self.shared().ledger);
        let path = settings.path.clone();
        let estimate =
            tokio::task::spawn_blocking(move || loader.estimate(&settings, &limits)).await;
        estimate
            .unwrap_or_else(|panic| Err(panic.to_string()))
            .map_err(|message| EngineError::LoadFailed { model: path, message })
    }

    /// The model `name`, if it takes requests.
    ///
    /// # Errors
    /// [`EngineError::ModelNotFound`], [`EngineError::ModelNotReady`].
    pub fn model(&self, name: &str) -> Result<Arc<LoadedModel>, EngineError> {
        self.shared().ready(name)
    }

    /// Every model that is loaded, by name; those in the middle of their load are not among them.
    pub fn models(&self) -> Vec<Arc<LoadedModel>> {
        self.shared().catalogue.read().values().filter_map(|entry| entry.model.clone()).collect()
    }

    /// The engine as of the last step's end. Does not wait for the device thread.
    pub fn status(&self) -> Status {
        let shared = self.shared();
        let mut status = Status::clone(&shared.status.borrow());
        status.waiting_max = shared.config.waiting_max;
        status.draining = shared.draining.load(Ordering::Acquire);
        status.memory = shared.ledger.snapshot();
        status.device = shared.device();
        status
    }

    /// The device thread at this moment. Does not wait for it.
    pub fn device(&self) -> DeviceStatus {
        self.shared().device()
    }

    /// What was counted of every model so far, and of loads.
    pub fn readings(&self) -> Readings {
        self.shared().meters.read()
    }

    /// Samples of the steps that requests with a [`trace`](Request::trace) are in, from now on until the
    /// engine ends. It has one reader: the next call takes its place.
    pub fn step_samples(&self) -> mpsc::Receiver<StepSample> {
        let (sender, samples) = mpsc::channel(STEP_SAMPLES_MAX);
        let shared = self.shared();
        let mut reader = shared.step_reader.lock();
        // After the engine's end nobody would take it away again.
        *reader = shared.alive.load(Ordering::Acquire).then_some(sender);
        samples
    }

    /// A channel that holds the newest status and wakes when there is another.
    pub fn watch_status(&self) -> watch::Receiver<Arc<Status>> {
        self.shared().status.subscribe()
    }

    /// Budgets and what is held against them, for others who hold memory beside the engine.
    pub fn ledger(&self) -> &Ledger {
        &self.shared().ledger
    }

    /// Refuses requests from now on and lets those that there are run on. Final; ends with
    /// [`shutdown`](Self::shutdown).
    pub fn drain(&self) {
        self.shared().draining.store(true, Ordering::Release);
        self.shared().mailbox.ring();
    }

    /// Drains for at most `patience`, fails what is left with [`EngineError::Stopped`], unloads
    /// every model, and returns when the device thread has let go of everything.
    pub async fn shutdown(&self, patience: Duration) {
        self.drain();
        let now = self.shared().clock.now();
        let deadline = now.checked_add(patience).unwrap_or(now);
        let (reply, answer) = oneshot::channel();
        if self.push(Command::Shutdown { deadline, reply }).is_ok() {
            // An error means that the thread is gone, which is what was asked for.
            let _gone = answer.await;
        }
    }

    /// Makes the device thread look at the clock, where a test turned it.
    pub fn wake(&self) {
        self.shared().mailbox.ring();
    }

    fn refuse_if_draining(&self) -> Result<(), EngineError> {
        let draining = self.shared().draining.load(Ordering::Acquire);
        if draining { Err(EngineError::Draining) } else { Ok(()) }
    }

    /// Why the device thread dropped a command.
    pub(crate) fn unanswered(&self) -> EngineError {
        let alive = self.shared().alive.load(Ordering::Acquire);
        if alive { EngineError::Panicked } else { EngineError::Stopped }
    }

    pub(crate) fn push(&self, command: Command) -> Result<(), EngineError> {
        self.shared().mailbox.push(command).map_err(|refused| match refused {
            Refused::Closed => EngineError::Stopped,
            Refused::Full => {
                EngineError::Busy { operations: "commands", limit: CONTROL_COMMANDS_MAX }
            }
        })
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.owner.shared
    }
}
