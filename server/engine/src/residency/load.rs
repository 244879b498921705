//! A load: what is told of it, and what its thread does.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sconce_cache::{Class, Reservation, Tier};
use sconce_models::{Model, ModelFootprint};
use tokio::sync::watch;

use crate::error::EngineError;
use crate::loader::{LoadLimits, LoadProgress, LoadSettings};
use crate::shared::Shared;
use crate::status::LoadedModel;

/// News of a load.
#[derive(Debug, Clone, PartialEq)]
pub enum LoadEvent {
    /// How far it is; steps may be skipped.
    Progress(LoadProgress),
    /// The model takes requests. Nothing follows.
    Ready(Arc<LoadedModel>),
    /// The load failed. Nothing follows.
    Failed(EngineError),
}

/// A load that somebody waits for. When the last one of a load is dropped, it is given up.
#[derive(Debug)]
pub struct Loading {
    events: watch::Receiver<LoadEvent>,
    first: bool,
}

impl Loading {
    pub(super) fn new(events: watch::Receiver<LoadEvent>) -> Self {
        Self { events, first: true }
    }

    /// The newest news, each at most once; [`LoadEvent::Ready`] and [`LoadEvent::Failed`] are the
    /// last, and come again if asked for.
    pub async fn next(&mut self) -> LoadEvent {
        let news = std::mem::take(&mut self.first) || self.events.has_changed().unwrap_or(true);
        let newest = self.events.borrow_and_update().clone();
        if news || !matches!(newest, LoadEvent::Progress(_)) {
            return newest;
        }
        if self.events.changed().await.is_err() {
            return LoadEvent::Failed(EngineError::Stopped);
        }
        self.events.borrow_and_update().clone()
    }

    /// Waits for the end of the load.
    ///
    /// # Errors
    /// Why it failed.
    pub async fn ready(mut self) -> Result<Arc<LoadedModel>, EngineError> {
        loop {
            match self.next().await {
                LoadEvent::Progress(_) => {}
                LoadEvent::Ready(model) => return Ok(model),
                LoadEvent::Failed(error) => return Err(error),
            }
        }
    }
}

/// A model and the bytes set aside for it.
pub(crate) struct Holding {
    pub(crate) model: Box<dyn Model>,
    _reservations: [Reservation; 3],
}

/// How a loader thread ended.
pub(crate) struct LoadOutcome {
    pub(super) name: String,
    pub(super) result: Result<Holding, EngineError>,
}

impl std::fmt::Debug for LoadOutcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LoadOutcome({:?}, {:?})", self.name, self.result.as_ref().err())
    }
}

/// Estimates, reserves, loads, and corrects the reservation; on a loader thread.
pub(super) fn load_model(
    shared: &Shared,
    name: &str,
    settings: &LoadSettings,
    events: &watch::Sender<LoadEvent>,
    cancelled: &AtomicBool,
) -> Result<Holding, EngineError> {
    let failed = |message| EngineError::LoadFailed { model: name.to_owned(), message };
    let limits = LoadLimits::of(&shared.config, &shared.ledger);
    let estimate = shared.loader.estimate(settings, &limits).map_err(failed)?;
    let mut reservations = reserve(shared, estimate.footprint, estimate.state_bytes)?;
    let mut given_up = false;
    let mut progress = |progress| {
        if events.is_closed() || cancelled.load(Ordering::Acquire) {
            given_up = true;
            return ControlFlow::Break(());
        }
        events.send_replace(LoadEvent::Progress(progress));
        // The device thread publishes the status, in which the progress shows.
        shared.mailbox.ring();
        ControlFlow::Continue(())
    };
    let model = shared.loader.load(settings, &limits, &mut progress).map_err(|message| {
        if given_up {
            EngineError::LoadCancelled { model: name.to_owned() }
        } else {
            EngineError::LoadFailed { model: name.to_owned(), message }
        }
    })?;
    let sizes = sizes(model.footprint(), model.state().layout().bytes_max());
    for (reservation, bytes) in reservations.iter_mut().zip(sizes) {
        reservation.resize(bytes)?;
    }
    Ok(Holding { model, _reservations: reservations })
}

const CLASSES: [Class; 3] = [Class::Weights, Class::Workspace, Class::LiveState];

fn sizes(footprint: ModelFootprint, state_bytes: u64) -> [u64; 3] {
    [footprint.weights_bytes, footprint.workspace_bytes, state_bytes]
}

fn reserve(
    shared: &Shared,
    footprint: ModelFootprint,
    state_bytes: u64,
) -> Result<[Reservation; 3], EngineError> {
    let [weights, workspace, state] = sizes(footprint, state_bytes);
    let reserve = |class, bytes| shared.ledger.reserve(Tier::Device, class, bytes);
    Ok([
        reserve(CLASSES[0], weights)?,
        reserve(CLASSES[1], workspace)?,
        reserve(CLASSES[2], state)?,
    ])
}
