//! How models are seen from outside: the status of each at a moment, and its entry in the catalogue.
//! What happens to them is `residency.rs`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{LoadEvent, Residency, Slot};
use crate::loader::LoadProgress;
use crate::shared::CatalogueEntry;
use crate::status::{LoadedModel, ModelState, ModelStatus};

impl Residency {
    /// How every model is at this moment, in the memory of `statuses`.
    pub(crate) fn status(&mut self, now: Instant, statuses: &mut Vec<ModelStatus>) {
        statuses.truncate(self.slots.len());
        for (index, (name, slot)) in self.slots.iter_mut().enumerate() {
            match statuses.get_mut(index) {
                Some(status) => {
                    let mut kept = std::mem::take(&mut status.name);
                    kept.clone_from(name);
                    *status = slot.status(kept, now);
                }
                None => statuses.push(slot.status(name.clone(), now)),
            }
        }
    }

    /// Lists a model for those who look it up without asking the device thread.
    pub(super) fn list(&self, name: &str, state: ModelState, model: Option<Arc<LoadedModel>>) {
        let entry = CatalogueEntry { state, model, restoring: false };
        self.shared.catalogue.write().insert(name.to_owned(), entry);
    }

    /// Lists a model that is being loaded again.
    pub(super) fn list_restoring(&self, name: &str) {
        let entry = CatalogueEntry { state: ModelState::Loading, model: None, restoring: true };
        self.shared.catalogue.write().insert(name.to_owned(), entry);
    }
}

impl Slot {
    fn status(&mut self, name: String, now: Instant) -> ModelStatus {
        let empty = ModelStatus {
            name,
            state: ModelState::Loading,
            progress: LoadProgress::default(),
            waiting: 0,
            running: 0,
            paused: 0,
            pages_used: 0,
            pages_max: 0,
            pages_running: 0,
            slots_running: 0,
            slots_max: 0,
            state_bytes_used: 0,
            idle: Duration::ZERO,
        };
        match self {
            Self::Loading(job) => match *job.events.borrow() {
                LoadEvent::Progress(progress) => ModelStatus { progress, ..empty },
                _ => empty,
            },
            Self::Loaded(resident) => {
                let (waiting, running) = resident.scheduler.counts();
                let pool = resident.holding.model.state();
                let recurrent = pool.layout().recurrent.is_some();
                let slots = if recurrent { pool.layout().sequences_max } else { 0 };
                let idle = resident.scheduler.is_empty().then_some(resident.idle_since);
                ModelStatus {
                    state: resident.state,
                    waiting,
                    running,
                    paused: resident.scheduler.paused(),
                    pages_used: pool.pages_used(),
                    pages_max: pool.pages_max(),
                    pages_running: resident.scheduler.pages_running(pool),
                    slots_running: if recurrent { running } else { 0 },
                    slots_max: slots,
                    state_bytes_used: pool.bytes_used(),
                    idle: idle.map_or(Duration::ZERO, |since| now.saturating_duration_since(since)),
                    ..empty
                }
            }
        }
    }
}
