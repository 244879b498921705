//! A gate before each step of a simulated model, for tests that have to look while a step runs.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::model::Batch;

/// Steps of which the gate remembers the batch; older ones are forgotten.
const RECORDED_STEPS_MAX: usize = 4096;

/// Holds every step until it is let through, and remembers what was in it. Clones are the same gate.
#[derive(Debug, Clone, Default)]
pub struct Gate(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    open: bool,
    /// Steps that came to the gate, and how many may go through.
    arrived: u64,
    allowed: u64,
    batches: VecDeque<Batch>,
}

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets `steps` more steps through: those that wait, or those to come.
    pub fn pass(&self, steps: u64) {
        self.lock().allowed += steps;
        self.0.changed.notify_all();
    }

    /// Lets every step through from now on.
    pub fn open(&self) {
        self.lock().open = true;
        self.0.changed.notify_all();
    }

    /// Waits until step `number`, from 1, has come to the gate, and returns its batch; `None` if it
    /// has not come after `patience`, or is older than what is remembered.
    pub fn arrival(&self, number: u64, patience: Duration) -> Option<Batch> {
        let until = Instant::now() + patience;
        let mut state = self.lock();
        while state.arrived < number {
            let left = until.checked_duration_since(Instant::now())?;
            let waited = self.0.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let first = state.arrived - state.batches.len() as u64 + 1;
        let index = usize::try_from(number.checked_sub(first)?).ok()?;
        state.batches.get(index).cloned()
    }

    /// How many steps have come to the gate.
    pub fn arrived(&self) -> u64 {
        self.lock().arrived
    }

    /// Called by the model: records the step and waits until it may go through.
    pub(super) fn enter(&self, batch: &Batch) {
        let mut state = self.lock();
        state.arrived += 1;
        if state.batches.len() == RECORDED_STEPS_MAX {
            state.batches.pop_front();
        }
        state.batches.push_back(batch.clone());
        let number = state.arrived;
        self.0.changed.notify_all();
        while !state.open && state.allowed < number {
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Every statement under the lock leaves the state whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
