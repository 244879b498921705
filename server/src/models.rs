//! The models of a server: the engine that runs them, and for each the text that goes with it.
//!
//! The engine decides what is loaded; this keeps tokenizers and chat templates beside it, and what
//! the edge asks of both together.

mod files;
mod follow;
mod load;
mod ready;
mod roots;
mod sim;
mod state;
mod text;
mod workers;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sconce_cache::Tier;
use sconce_engine::{
    DeviceStatus, EngineHandle, Estimate, LoadSettings, LoadedModel, ModelState, Readings, Started,
    Status, StepSample,
};
use sconce_models::Precision;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::caller::Caller;
use crate::completion::{self, CallContext, Completion, CompletionCall, Prompt};
use crate::error::CallError;
use crate::layer::access_log::Phases;
use crate::quota::{Place, Quota};
use crate::serve::{CachePlan, EnginePlan};
pub use files::TextFile;
pub use load::{Load, LoadNews, LoadStep, Stage};
pub use ready::ReadyModel;
pub use roots::ModelRoots;
pub use state::{PrefixCall, SNAPSHOT_BYTES_MAX, SnapshotCall, Transfer};
pub use text::{EncodedPrompt, ModelText};
use workers::Workers;

/// When one of an identity's waiting requests may have been admitted.
const WAITING_RETRY_AFTER: Duration = Duration::from_secs(1);

/// What requests may ask of the models of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelGuard {
    /// Paths that a request may have loaded.
    pub roots: ModelRoots,
    /// Most requests of one identity that wait for admission.
    pub waiting_per_identity_max: usize,
}

impl Default for ModelGuard {
    /// Any path, and as many waiting requests as the queue holds.
    fn default() -> Self {
        Self { roots: ModelRoots::anything(), waiting_per_identity_max: usize::MAX }
    }
}

/// All models of a server; clones are the same.
#[derive(Clone)]
pub struct Models {
    inner: Arc<Inner>,
}

struct Inner {
    engine: EngineHandle,
    precision: Precision,
    context_length_max: usize,
    texts: Mutex<HashMap<String, TextEntry>>,
    workers: Workers,
    /// Requests of each identity that wait for admission.
    waiting: Quota<Arc<str>>,
    roots: ModelRoots,
    transfers: state::Transfers,
    draining: AtomicBool,
    cut_off: CancellationToken,
    began: Instant,
}

/// What of the engine decides whether it is ready.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Condition {
    /// A model takes requests.
    pub ready: bool,
    /// How often the device thread was put in order after a panic.
    pub restarts: u64,
    /// It has ended for good: it kept panicking, or its GPU is lost.
    pub lost: bool,
}

impl Condition {
    fn of(status: &Status) -> Self {
        let device = &status.device;
        let mut models = status.models.iter();
        let ready = models.any(|model| model.state == ModelState::Ready) && !device.restarting;
        Self { ready, restarts: device.restarts, lost: device.lost }
    }
}

/// The text of a model, and of which load of it.
struct TextEntry {
    model: Arc<LoadedModel>,
    text: Arc<ModelText>,
}

impl fmt::Debug for Models {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Models").field("engine", &self.inner.engine).finish_non_exhaustive()
    }
}

impl Models {
    /// Starts the engine, without a model.
    ///
    /// # Errors
    /// If the system gives no thread, or another number of threads computes already.
    pub fn start(
        plan: &EnginePlan,
        cache: &CachePlan,
        precision: Precision,
    ) -> Result<Self, CallError> {
        Self::start_guarded(plan, cache, precision, ModelGuard::default())
    }

    /// As [`start`](Self::start), for requests that may not ask everything.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_guarded(
        plan: &EnginePlan,
        cache: &CachePlan,
        precision: Precision,
        guard: ModelGuard,
    ) -> Result<Self, CallError> {
        let engine = load::start_engine(plan, cache)?;
        let inner = Inner {
            engine,
            precision,
            context_length_max: plan.context_length_max,
            texts: Mutex::default(),
            workers: Workers::new(),
            waiting: Quota::new(guard.waiting_per_identity_max),
            roots: guard.roots,
            transfers: state::Transfers::new(),
            draining: AtomicBool::new(false),
            cut_off: CancellationToken::new(),
            began: Instant::now(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The path to load for one that a request names.
    ///
    /// # Errors
    /// A path that requests may not name.
    pub fn admit_path(&self, path: &str) -> Result<String, CallError> {
        self.inner.roots.admit(path)
    }

    /// How [`admit_path`](Self::admit_path) spells a path of the configuration, so that a request for
    /// the same model finds it loaded.
    pub fn spell_path(&self, path: &str) -> String {
        self.inner.roots.spell(path)
    }

    /// How activations are computed.
    pub fn precision(&self) -> Precision {
        self.inner.precision
    }

    /// Loads a model under `name`, or joins a load of it. Dropping the load gives it up, unless
    /// others wait for it.
    ///
    /// # Errors
    /// A path without a checkpoint, a name taken by other settings, a server that drains. Failures
    /// of the load itself come from [`Load::next`].
    pub async fn load(&self, name: &str, settings: LoadSettings) -> Result<Load, CallError> {
        load::begin(self, name, settings).await
    }

    /// Unloads a model when the completions it has are done.
    ///
    /// # Errors
    /// If there is none of that name.
    pub async fn unload(&self, name: &str) -> Result<(), CallError> {
        self.inner.engine.unload(name, false).await?;
        self.forget_unloaded();
        Ok(())
    }

    /// The model `name` with its text, if it takes requests.
    ///
    /// # Errors
    /// If it is not loaded, or its tokenizer cannot be read any more.
    pub async fn ready(&self, name: &str) -> Result<ReadyModel, CallError> {
        let model = self.inner.engine.model(name)?;
        self.with_text(model).await
    }

    /// Every model that is loaded, by name.
    ///
    /// # Errors
    /// If the tokenizer of one cannot be read any more.
    pub async fn list(&self) -> Result<Vec<ReadyModel>, CallError> {
        let mut models = Vec::new();
        for model in self.inner.engine.models() {
            models.push(self.with_text(model).await?);
        }
        Ok(models)
    }

    /// What a load would take, and what is free within the budget, if there is one.
    ///
    /// # Errors
    /// If there is no checkpoint at the path, or it cannot be read.
    pub async fn estimate(
        &self,
        settings: LoadSettings,
    ) -> Result<(Estimate, Option<u64>), CallError> {
        let settings = load::within_context_limit(self, settings).await?;
        let estimate = load::estimate(self, settings).await?;
        let device = self.inner.engine.status().memory.tier(Tier::Device);
        let free = (device.budget != u64::MAX).then(|| device.free());
        Ok((estimate, free))
    }

    /// Runs a completion up to its admission.
    ///
    /// # Errors
    /// A prompt the model cannot take, a full queue, a deadline that passed in it, a drain.
    pub async fn complete(
        &self,
        mut call: CompletionCall,
        context: CallContext,
    ) -> Result<(Started, Completion), CallError> {
        let model = self.ready(&call.model).await?;
        let field = call.prompt.field();
        let prompt = std::mem::replace(&mut call.prompt, Prompt::Tokens(Vec::new()));
        let prompt = model.encode(prompt, None).await?;
        let encode = context.arrived.elapsed();
        model.check(&call, &prompt.ids, field)?;
        let output = model.text.output(&call)?;
        let defaults = model.sampling_defaults();
        call.cache.salt = context.caller.namespace().salt(call.cache.salt.as_deref());
        let request = completion::engine_request(call, prompt, defaults, &context);
        let waiting = self.wait_as(&context.caller)?;
        let mut generation = self.inner.engine.generate(request)?;
        context.facts.tell(|facts| {
            facts.phases = Some(Phases { arrived: context.arrived, encode, admitted: None });
        });
        let cut_off = self.inner.cut_off.clone();
        let started = completion::admitted(&mut generation, context.deadline, &cut_off).await?;
        drop(waiting);
        Ok((started, Completion::new(generation, started, output, &context, cut_off)))
    }

    /// A place among the waiting requests of `caller`; those without an identity share the queue.
    fn wait_as(&self, caller: &Caller) -> Result<Option<Place<Arc<str>>>, CallError> {
        let waiting = &self.inner.waiting;
        let place = caller.name().map(|name| {
            waiting.enter(name.clone()).ok_or_else(|| CallError::QueueFull {
                what: format!("the queue of `{name}`"),
                bound: waiting.max(),
                retry_after: WAITING_RETRY_AFTER,
            })
        });
        place.transpose()
    }

    /// The engine at this moment.
    pub fn status(&self) -> Status {
        self.inner.engine.status()
    }

    /// What the engine has counted of every model so far, and of loads.
    pub fn readings(&self) -> Readings {
        self.inner.engine.readings()
    }

    /// What steps with traced requests took, for one reader.
    pub fn step_samples(&self) -> mpsc::Receiver<StepSample> {
        self.inner.engine.step_samples()
    }

    /// Whether the server shuts down.
    pub fn is_draining(&self) -> bool {
        self.inner.draining.load(Ordering::Acquire)
    }

    /// Time since the server started.
    pub fn uptime(&self) -> Duration {
        self.inner.began.elapsed()
    }

    /// The device thread at this moment.
    pub fn device(&self) -> DeviceStatus {
        self.inner.engine.device()
    }

    /// Returns when the condition of the engine is no longer `known`.
    pub async fn condition_other_than(&self, known: Condition) -> Condition {
        let mut statuses = self.inner.engine.watch_status();
        loop {
            let condition = Condition::of(&statuses.borrow_and_update());
            self.forget_unloaded();
            if condition != known {
                return condition;
            }
            if statuses.changed().await.is_err() {
                // The engine is gone, and says nothing new.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Says that the server will shut down; everything still works.
    pub fn withdraw(&self) {
        self.inner.draining.store(true, Ordering::Release);
    }

    /// Refuses new work from now on.
    pub fn close(&self) {
        self.inner.engine.drain();
    }

    /// Ends what still runs, with an account of what it did.
    pub fn cut_off(&self) {
        self.inner.cut_off.cancel();
    }

    /// Unloads everything and ends the engine.
    pub async fn stop(&self) {
        self.inner.engine.shutdown(Duration::ZERO).await;
        self.inner.texts.lock().clear();
    }

    async fn with_text(&self, model: Arc<LoadedModel>) -> Result<ReadyModel, CallError> {
        let known = {
            let texts = self.inner.texts.lock();
            let entry = texts.get(&model.name).filter(|entry| Arc::ptr_eq(&entry.model, &model));
            entry.map(|entry| entry.text.clone())
        };
        let text = match known {
            Some(text) => text,
            // The one who loaded it went away before it could leave the text here.
            None => {
                let text = self.open_text(&model.settings.path).await?;
                self.remember(model.clone(), text.clone());
                text
            }
        };
        Ok(ReadyModel { model, text, workers: self.inner.workers.clone() })
    }

    async fn open_text(&self, path: &str) -> Result<Arc<ModelText>, CallError> {
        let path = path.to_owned();
        let opened = tokio::task::spawn_blocking(move || ModelText::open(&path)).await;
        opened.map_err(worker_failed)?.map(Arc::new)
    }

    fn remember(&self, model: Arc<LoadedModel>, text: Arc<ModelText>) {
        self.inner.texts.lock().insert(model.name.clone(), TextEntry { model, text });
    }

    /// Lets go of the texts of models that are gone.
    fn forget_unloaded(&self) {
        let models = self.inner.engine.models();
        let is_loaded =
            |entry: &TextEntry| models.iter().any(|model| Arc::ptr_eq(model, &entry.model));
        self.inner.texts.lock().retain(|_, entry| is_loaded(entry));
    }
}

fn worker_failed(error: tokio::task::JoinError) -> CallError {
    CallError::Internal { problem: format!("a worker thread failed: {error}") }
}
