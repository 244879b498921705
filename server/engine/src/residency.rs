//! Which models are loaded: loads on threads of their own, unloads, keep-alive, memory accounts.
//!
//! A load reserves the estimate of what it takes before it takes it. The device thread owns every
//! model that is ready; nothing here runs one.

mod listing;
mod load;
mod salvage;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use sconce_cache::DomainId;
use sconce_models::Model;
use tokio::sync::{oneshot, watch};

use self::load::load_model;
pub(crate) use self::load::{Holding, LoadOutcome};
pub use self::load::{LoadEvent, Loading};
use crate::cache::{Cache, Parting};
use crate::error::EngineError;
use crate::loader::{LoadProgress, LoadSettings};
use crate::meter::{LoadEnd, ModelMeter};
use crate::scheduler::Scheduler;
use crate::sequence::Sequence;
use crate::shared::{Command, Shared};
use crate::status::{Counters, LoadedModel, ModelState};
use crate::steps::StepWindows;

/// Loads in progress at one time.
pub(crate) const LOADS_MAX: usize = 4;

type UnloadReply = oneshot::Sender<Result<(), EngineError>>;

/// A load in progress.
struct Job {
    settings: LoadSettings,
    events: Arc<watch::Sender<LoadEvent>>,
    /// Set by an unload; the end of the last listener shows in `events`.
    cancelled: Arc<AtomicBool>,
    unloads: Vec<UnloadReply>,
    /// Held by the engine itself where it loads a model again, so that somebody waits for it.
    restores: Option<watch::Receiver<LoadEvent>>,
    began: Instant,
}

/// A model that is loaded, and its sequences.
pub(crate) struct Resident {
    pub(crate) about: Arc<LoadedModel>,
    pub(crate) holding: Holding,
    pub(crate) scheduler: Scheduler,
    pub(crate) state: ModelState,
    /// Its part of the cache; `None` where nothing is remembered.
    pub(crate) domain: Option<DomainId>,
    /// Steps that panicked or failed, and not for what was asked of them, without a good one between
    /// them.
    pub(crate) failures: u32,
    /// Where its steps are counted.
    pub(crate) meter: Arc<ModelMeter>,
    /// Of which of its steps samples are told.
    pub(crate) steps: StepWindows,
    idle_since: Instant,
    unloads: Vec<UnloadReply>,
}

enum Slot {
    Loading(Job),
    Loaded(Box<Resident>),
}

/// Every model the engine has or is getting.
pub(crate) struct Residency {
    shared: Arc<Shared>,
    slots: BTreeMap<String, Slot>,
    /// Whether a model that a panic took could not be loaded again, and no other is there.
    bereft: bool,
    /// What is told once the status shows it; at most one for each load and each order to unload.
    news: Vec<News>,
}

/// The end of a load or of a model, for whoever waits for it.
enum News {
    Load(Arc<watch::Sender<LoadEvent>>, LoadEvent),
    Gone(UnloadReply),
}

impl Residency {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, slots: BTreeMap::new(), bereft: false, news: Vec::new() }
    }

    /// Tells of loads and models that have ended. To be called when the status shows it, so that who
    /// hears of it and asks for the status finds it there.
    pub(crate) fn announce(&mut self) {
        for news in self.news.drain(..) {
            match news {
                News::Load(events, event) => drop(events.send_replace(event)),
                // Nobody may be waiting any more.
                News::Gone(reply) => drop(reply.send(Ok(()))),
            }
        }
    }

    /// Models that are loaded.
    pub(crate) fn loaded(&mut self) -> impl Iterator<Item = &mut Resident> {
        self.slots.values_mut().filter_map(|slot| match slot {
            Slot::Loaded(resident) => Some(&mut **resident),
            Slot::Loading(_) => None,
        })
    }

    /// The loaded model whose turn it is after that of the model `name`, by name and in a ring.
    pub(crate) fn loaded_after(&mut self, name: &str) -> Option<&mut Resident> {
        let mut first = None;
        for resident in self.loaded() {
            if *resident.about.name > *name {
                return Some(resident);
            }
            first = first.or(Some(resident));
        }
        first
    }

    /// The model `name`, if it is loaded.
    pub(crate) fn get(&mut self, name: &str) -> Option<&mut Resident> {
        match self.slots.get_mut(name) {
            Some(Slot::Loaded(resident)) => Some(resident),
            _ => None,
        }
    }

    /// Starts a load, or joins one with the same settings.
    pub(crate) fn load(
        &mut self,
        name: String,
        settings: LoadSettings,
    ) -> Result<Loading, EngineError> {
        let (known, state) = match self.slots.get(&name) {
            None => return self.start(name, settings),
            Some(Slot::Loading(job)) if job.cancelled.load(Ordering::Acquire) => {
                (&job.settings, ModelState::Unloading)
            }
            Some(Slot::Loading(job)) => (&job.settings, ModelState::Loading),
            Some(Slot::Loaded(resident)) => (&resident.about.settings, resident.state),
        };
        if let Some(difference) = known.difference(&settings) {
            return Err(EngineError::AlreadyLoaded { model: name, difference });
        }
        match (state, &self.slots[&name]) {
            (ModelState::Loading, Slot::Loading(job)) => Ok(Loading::new(job.events.subscribe())),
            (ModelState::Ready, Slot::Loaded(resident)) => {
                Ok(Loading::new(watch::channel(LoadEvent::Ready(resident.about.clone())).1))
            }
            _ => Err(EngineError::ModelNotReady { model: name, state }),
        }
    }

    fn start(&mut self, name: String, settings: LoadSettings) -> Result<Loading, EngineError> {
        let loads = self.slots.values().filter(|slot| matches!(slot, Slot::Loading(_))).count();
        if loads >= LOADS_MAX {
            return Err(EngineError::Busy { operations: "loads", limit: LOADS_MAX });
        }
        let (events, listener) = watch::channel(LoadEvent::Progress(LoadProgress::default()));
        let job = Job {
            settings,
            events: Arc::new(events),
            cancelled: Arc::default(),
            unloads: Vec::new(),
            restores: None,
            began: self.shared.clock.now(),
        };
        self.spawn(&name, &job)?;
        self.list(&name, ModelState::Loading, None);
        self.slots.insert(name, Slot::Loading(job));
        Ok(Loading::new(listener))
    }

    fn spawn(&self, name: &str, job: &Job) -> Result<(), EngineError> {
        let (shared, settings) = (self.shared.clone(), job.settings.clone());
        let (events, cancelled) = (job.events.clone(), job.cancelled.clone());
        let model = name.to_owned();
        let work = move || {
            let run = || load_model(&shared, &model, &settings, &events, &cancelled);
            let result = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
                let message = format!("the loader panicked: {}", panic_message(&*panic));
                Err(EngineError::LoadFailed { model: model.clone(), message })
            });
            let outcome = Box::new(LoadOutcome { name: model, result });
            // At most LOADS_MAX of these. After the engine's end it is dropped, memory and all.
            let _stopped = shared.mailbox.push_above_capacity(Command::Loaded(outcome));
        };
        let spawned = std::thread::Builder::new().name("load".into()).spawn(work);
        spawned.map(drop).map_err(|error| EngineError::LoadFailed {
            model: name.to_owned(),
            message: format!("no thread: {error}"),
        })
    }

    /// Takes in what a loader thread made, or makes known why it failed.
    pub(crate) fn loaded_from(&mut self, outcome: LoadOutcome, cache: &mut Cache) {
        let LoadOutcome { name, result } = outcome;
        let Some(Slot::Loading(job)) = self.slots.remove(&name) else { return };
        let unloaded = job.cancelled.load(Ordering::Acquire);
        let wanted = !unloaded && job.events.receiver_count() > 0;
        let result = match result {
            // Somebody joined after the loader thread had seen that nobody waits.
            Err(EngineError::LoadCancelled { .. }) if wanted => match self.spawn(&name, &job) {
                Ok(()) => {
                    self.slots.insert(name, Slot::Loading(job));
                    return;
                }
                Err(error) => Err(error),
            },
            Ok(_) if !wanted => Err(EngineError::LoadCancelled { model: name.clone() }),
            result => result,
        };
        let now = self.shared.clock.now();
        self.shared.meters.load_ended(match &result {
            Ok(_) => LoadEnd::Ready(now.saturating_duration_since(job.began)),
            Err(EngineError::LoadCancelled { .. }) => LoadEnd::Cancelled,
            Err(_) => LoadEnd::Failed,
        });
        match result {
            Ok(mut holding) => {
                let fingerprint = holding.model.info().fingerprint;
                let domain = cache.open_domain(&name, fingerprint, holding.model.state_mut());
                let about = Arc::new(describe(&name, job.settings, &*holding.model));
                self.list(&name, ModelState::Ready, Some(about.clone()));
                tracing::info!(model = %name, architecture = %about.info.architecture, "loaded");
                let scheduler = Scheduler::new(self.shared.config.running_max);
                let resident = Resident {
                    about: about.clone(),
                    holding,
                    scheduler,
                    state: ModelState::Ready,
                    domain,
                    failures: 0,
                    meter: self.shared.meters.of(&name),
                    steps: StepWindows::new(&name, self.shared.step_reader.clone()),
                    idle_since: now,
                    unloads: Vec::new(),
                };
                self.slots.insert(name, Slot::Loaded(Box::new(resident)));
                self.news.push(News::Load(job.events, LoadEvent::Ready(about)));
            }
            Err(error) => {
                self.shared.catalogue.write().remove(&name);
                if job.restores.is_some() && !unloaded {
                    tracing::error!(model = %name, %error, "not loaded again");
                    self.bereft = self.slots.is_empty();
                } else {
                    tracing::info!(model = %name, %error, "not loaded");
                }
                self.news.push(News::Load(job.events, LoadEvent::Failed(error)));
            }
        }
        self.news.extend(job.unloads.into_iter().map(News::Gone));
    }

    /// Begins to unload a model; `reply` is answered when its memory is free.
    pub(crate) fn unload(
        &mut self,
        name: String,
        force: bool,
        reply: UnloadReply,
        (cache, counters): (&mut Cache, &mut Counters),
    ) {
        match self.slots.get_mut(&name) {
            None => drop(reply.send(Err(EngineError::ModelNotFound { model: name }))),
            Some(Slot::Loading(job)) => {
                job.cancelled.store(true, Ordering::Release);
                job.unloads.push(reply);
            }
            Some(Slot::Loaded(resident)) => {
                resident.state = ModelState::Unloading;
                resident.unloads.push(reply);
                if force {
                    let now = self.shared.clock.now();
                    let error = EngineError::ModelUnloaded { model: name.clone() };
                    resident.fail_all(cache, Parting::Done, now, counters, |_| error.clone());
                }
                let about = Some(resident.about.clone());
                self.list(&name, ModelState::Unloading, about);
            }
        }
    }

    /// Marks a model as failed: it takes no requests any more, and those it has fail.
    pub(crate) fn fail(
        &mut self,
        name: &str,
        error: &EngineError,
        cache: &mut Cache,
        counters: &mut Counters,
    ) {
        let now = self.shared.clock.now();
        let Some(resident) = self.get(name) else { return };
        resident.state = ModelState::Failed;
        resident.fail_all(cache, Parting::Done, now, counters, |_| error.clone());
        let about = Some(resident.about.clone());
        self.list(name, ModelState::Failed, about);
    }

    /// Lets models go that are to be unloaded or were idle for their keep-alive, once they have no
    /// sequences.
    pub(crate) fn let_go(&mut self, now: Instant, cache: &mut Cache) {
        for resident in self.loaded() {
            if !resident.scheduler.is_empty() {
                resident.idle_since = now;
            }
        }
        let over = |slot: &Slot| match slot {
            Slot::Loading(_) => false,
            Slot::Loaded(resident) => {
                resident.scheduler.is_empty()
                    && (resident.state == ModelState::Unloading
                        || resident.expires().is_some_and(|expiry| expiry <= now))
            }
        };
        // What is remembered leaves while the model is listed here still: a panic on the way finds both.
        for resident in self.slots.values_mut().filter(|slot| over(slot)) {
            if let Slot::Loaded(resident) = resident {
                cache.leave(resident.domain.take(), resident.holding.model.state_mut());
            }
        }
        let gone = self.slots.extract_if(.., |_, slot| over(slot));
        for (name, slot) in gone {
            self.shared.catalogue.write().remove(&name);
            if let Slot::Loaded(resident) = slot {
                let Resident { holding, unloads, .. } = *resident;
                drop(holding);
                self.news.extend(unloads.into_iter().map(News::Gone));
            }
            tracing::info!(model = %name, "unloaded");
        }
    }

    /// The earliest moment at which something is to be done without being told.
    pub(crate) fn next_timer(&self) -> Option<Instant> {
        let residents = self.slots.values().filter_map(|slot| match slot {
            Slot::Loaded(resident) => Some(resident),
            Slot::Loading(_) => None,
        });
        residents.filter_map(|r| r.scheduler.next_deadline().or_else(|| r.expires())).min()
    }

    /// Fails every sequence and every load, and frees every model.
    pub(crate) fn stop(&mut self, cache: &mut Cache, counters: &mut Counters) {
        self.shared.catalogue.write().clear();
        let now = self.shared.clock.now();
        for resident in self.loaded() {
            resident.fail_all(cache, Parting::Done, now, counters, |_| EngineError::Stopped);
            cache.leave(resident.domain.take(), resident.holding.model.state_mut());
        }
        for slot in std::mem::take(&mut self.slots).into_values() {
            if let Slot::Loading(job) = slot {
                job.cancelled.store(true, Ordering::Release);
                job.events.send_replace(LoadEvent::Failed(EngineError::Stopped));
            }
        }
    }
}

impl Resident {
    /// When it is to be let go, if it stays without requests until then.
    fn expires(&self) -> Option<Instant> {
        let keep_alive = self.about.settings.keep_alive.filter(|_| self.scheduler.is_empty())?;
        self.idle_since.checked_add(keep_alive)
    }

    fn fail_all(
        &mut self,
        cache: &mut Cache,
        parting: Parting,
        now: Instant,
        counters: &mut Counters,
        error: impl Fn(&Sequence) -> EngineError,
    ) {
        let memory = &mut cache.memory(self.holding.model.state_mut(), self.domain);
        self.scheduler.fail_all(memory, parting, now, counters, error);
    }
}

fn describe(name: &str, settings: LoadSettings, model: &dyn Model) -> LoadedModel {
    let layout = model.state().layout();
    LoadedModel {
        name: name.to_owned(),
        settings,
        info: model.info().clone(),
        footprint: model.footprint(),
        state_bytes: layout.bytes_max(),
        pages_max: layout.pages_max,
        page_tokens: layout.page_tokens,
    }
}

/// What a panic said, where it said something.
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
