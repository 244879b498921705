//! What of the models outlives a panic of the device thread; why is told in `restart.rs`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;

use super::{Job, LoadEvent, Residency, Resident, Slot, panic_message};
use crate::cache::{Cache, Parting};
use crate::error::EngineError;
use crate::loader::{LoadProgress, LoadSettings};
use crate::scheduler::Scheduler;
use crate::status::{Counters, ModelState};

/// The models after a panic, none of which has a sequence any more.
pub(crate) struct Salvaged {
    /// Found whole; nothing of them is remembered on the device.
    pub(crate) kept: Vec<(String, Box<Resident>)>,
    /// Not to be trusted, and to be loaded again. They are dropped when the cache that remembers state
    /// in their pools has gone: it counts bytes that they have reserved.
    pub(crate) lost: Vec<(String, Box<Resident>)>,
}

impl Residency {
    /// Ends every sequence and takes every model out. Loads in progress are not touched, for they run
    /// on threads of their own.
    pub(crate) fn salvage(&mut self, cache: &mut Cache, counters: &mut Counters) -> Salvaged {
        let now = self.shared.clock.now();
        let mut salvaged = Salvaged { kept: Vec::new(), lost: Vec::new() };
        let loaded = self.slots.extract_if(.., |_, slot| matches!(slot, Slot::Loaded(_)));
        for (name, slot) in loaded.collect::<Vec<_>>() {
            let Slot::Loaded(mut resident) = slot else { continue };
            let vacated = catch_unwind(AssertUnwindSafe(|| resident.vacate(cache, now, counters)));
            let problem = match vacated {
                Ok(Ok(())) => {
                    salvaged.kept.push((name, resident));
                    continue;
                }
                Ok(Err(problem)) => problem,
                Err(panic) => format!("it panicked again: {}", panic_message(&*panic)),
            };
            tracing::error!(model = %name, problem, "the model is not sound");
            resident.end_sequences(now, counters);
            salvaged.lost.push((name, resident));
        }
        salvaged
    }

    /// Goes on with what was salvaged: models that were kept take requests again, those that were
    /// lost are being loaded.
    pub(crate) fn resume(&mut self, salvaged: Salvaged, cache: &mut Cache) {
        // What was on its way from one state to another when the panic came is listed nowhere.
        self.shared.catalogue.write().retain(|name, _| self.slots.contains_key(name));
        for (name, mut resident) in salvaged.kept {
            let fingerprint = resident.about.info.fingerprint;
            let pool = resident.holding.model.state_mut();
            resident.domain = cache.open_domain(&name, fingerprint, pool);
            resident.idle_since = self.shared.clock.now();
            self.list(&name, resident.state, Some(resident.about.clone()));
            self.slots.insert(name, Slot::Loaded(resident));
        }
        for (name, resident) in salvaged.lost {
            if let Some(settings) = resident.dismiss() {
                self.restore(name, settings);
            }
        }
        // One that could not be begun may not have been the last.
        self.bereft &= self.slots.is_empty();
    }

    /// Loads a model again. There are no more of these loads than there were models.
    fn restore(&mut self, name: String, settings: LoadSettings) {
        let (events, listener) = watch::channel(LoadEvent::Progress(LoadProgress::default()));
        let job = Job {
            settings,
            events: Arc::new(events),
            cancelled: Arc::default(),
            unloads: Vec::new(),
            restores: Some(listener),
            began: self.shared.clock.now(),
        };
        match self.spawn(&name, &job) {
            Ok(()) => {
                self.list_restoring(&name);
                self.slots.insert(name, Slot::Loading(job));
            }
            Err(error) => {
                tracing::error!(model = %name, %error, "not loaded again");
                self.bereft = self.slots.is_empty();
            }
        }
    }

    /// Whether a panic has left the engine without any model, although it had some.
    pub(crate) fn is_bereft(&self) -> bool {
        self.bereft
    }
}

impl Resident {
    /// Ends every sequence, moves what is remembered out of the pool, and verifies that nothing is
    /// left in it.
    fn vacate(
        &mut self,
        cache: &mut Cache,
        now: Instant,
        counters: &mut Counters,
    ) -> Result<(), String> {
        // Between a forward and its account a sequence's state is ahead of the tokens it is said to
        // stand for, so that none of it is remembered.
        self.fail_all(cache, Parting::Failed, now, counters, |sequence| {
            match sequence.is_started() {
                true => EngineError::Panicked,
                // It has lost nothing but its place.
                false => EngineError::Restarting,
            }
        });
        let pool = self.holding.model.state_mut();
        pool.check_invariants()?;
        cache.leave(self.domain.take(), pool);
        let pool = self.holding.model.state();
        pool.check_invariants()?;
        let left = (pool.sequences(), pool.pages_used(), pool.points_used());
        match left {
            (0, 0, 0) => Ok(()),
            (sequences, pages, points) => Err(format!(
                "expected an empty pool of state, found {sequences} sequences, {pages} pages and \
                 {points} points in use"
            )),
        }
    }

    /// Ends sequences that are left after [`vacate`](Self::vacate) has failed, without giving
    /// anything back, for the pool will go.
    fn end_sequences(&mut self, now: Instant, counters: &mut Counters) {
        let scheduler = std::mem::replace(&mut self.scheduler, Scheduler::new(1));
        scheduler.into_sequences().for_each(|one| one.fail(EngineError::Panicked, now, counters));
    }

    /// Drops the model; what is to be loaded again, unless it was to go.
    fn dismiss(mut self: Box<Self>) -> Option<LoadSettings> {
        let settings = self.about.settings.clone();
        let unloads = std::mem::take(&mut self.unloads);
        let leaves = self.state == ModelState::Unloading;
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(self))) {
            tracing::error!(panic = panic_message(&*panic), "the model panicked when dropped");
        }
        unloads.into_iter().for_each(|reply| drop(reply.send(Ok(()))));
        (!leaves).then_some(settings)
    }
}
