//! A loader whose models look after their pools at each step, and wait for leave before it where a
//! test wants to decide how far a request is when something happens to it.

use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};

use sconce_engine::{CheckpointLoader, Estimate, LoadLimits, LoadProgress, LoadSettings, Loader};
use sconce_models::{Batch, Error, Logits, Model, ModelFootprint, ModelInfo, StatePool};

use super::PATIENCE;

/// The test's end of a gate. Dropped, it is open.
pub(crate) struct Permits {
    leave: SyncSender<()>,
    arrivals: Receiver<usize>,
}

impl Permits {
    /// Waits until a step is at the gate, and returns how many tokens it has.
    pub(crate) fn arrival(&self) -> usize {
        self.arrivals.recv_timeout(PATIENCE).expect("the step comes")
    }

    /// Lets the step at the gate through and waits until the next is there.
    pub(crate) fn next_step(&self) -> usize {
        self.leave.send(()).unwrap();
        self.arrival()
    }
}

/// See the module.
#[derive(Default)]
pub(crate) struct WatchedLoader {
    gate: Option<Arc<Gate>>,
}

impl WatchedLoader {
    /// A loader and the test's end of the gate of all its models.
    pub(crate) fn gated() -> (Self, Permits) {
        let ((leave, leaves), (arrived, arrivals)) = (sync_channel(1), sync_channel(1));
        let gate = Gate { leaves: Mutex::new(leaves), arrived: Mutex::new(arrived) };
        (Self { gate: Some(Arc::new(gate)) }, Permits { leave, arrivals })
    }
}

struct Gate {
    leaves: Mutex<Receiver<()>>,
    arrived: Mutex<SyncSender<usize>>,
}

impl Gate {
    /// Goes on at once where the test has dropped its end.
    fn pass(&self, tokens: usize) {
        if self.arrived.lock().unwrap().send(tokens).is_ok() {
            let _dropped = self.leaves.lock().unwrap().recv();
        }
    }
}

struct WatchedModel {
    inner: Box<dyn Model>,
    gate: Option<Arc<Gate>>,
}

impl Model for WatchedModel {
    fn info(&self) -> &ModelInfo {
        self.inner.info()
    }

    fn footprint(&self) -> ModelFootprint {
        self.inner.footprint()
    }

    fn state(&self) -> &StatePool {
        self.inner.state()
    }

    fn state_mut(&mut self) -> &mut StatePool {
        self.inner.state_mut()
    }

    fn step_tokens_max(&self) -> usize {
        self.inner.step_tokens_max()
    }

    fn forward(&mut self, batch: &Batch) -> Result<Logits<'_>, Error> {
        if let Some(gate) = &self.gate {
            gate.pass(batch.tokens.len());
        }
        // A panic fails the requests of the step, and says why.
        self.inner
            .state()
            .check_invariants()
            .expect("pages and slots are held as often as counted");
        self.inner.forward(batch)
    }
}

impl Loader for WatchedLoader {
    fn estimate(&self, settings: &LoadSettings, limits: &LoadLimits) -> Result<Estimate, String> {
        CheckpointLoader::default().estimate(settings, limits)
    }

    fn load(
        &self,
        settings: &LoadSettings,
        limits: &LoadLimits,
        progress: &mut dyn FnMut(LoadProgress) -> ControlFlow<()>,
    ) -> Result<Box<dyn Model>, String> {
        let inner = CheckpointLoader::default().load(settings, limits, progress)?;
        Ok(Box::new(WatchedModel { inner, gate: self.gate.clone() }))
    }
}
