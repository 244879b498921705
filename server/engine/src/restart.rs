//! After a panic of the device thread outside of a forward: every request ends, what is sound stays,
//! what is not is made anew.
//!
//! A panic is a mistake of ours, and what it left half done cannot be known, only checked. A model
//! stays where its pool of state is found empty and whole once every sequence and all that is
//! remembered has left it: weights do not change after a load, and a forward writes before it reads.
//! If not, it is dropped and loaded again. What is remembered stays if every model did and the trie
//! obeys all of its rules; else it is forgotten, but for what is on disk, which is read as after a
//! start. A panic inside of a forward is the executor's: it ends the sequences of that step alone.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use sconce_cache::disk::DiskError;

use crate::cache::Cache;
use crate::config::CacheConfig;
use crate::engine::Engine;
use crate::executor::Executor;
use crate::residency::panic_message;

/// Panics within [`RESTART_WINDOW`] after which the engine goes on; one more ends it, for a mistake
/// that comes again and again is in the state that survives, or is asked for on purpose.
pub(crate) const RESTARTS_MAX: usize = 3;

/// How long a panic counts.
pub(crate) const RESTART_WINDOW: Duration = Duration::from_secs(600);

/// The panics that count still.
#[derive(Debug, Default)]
pub(crate) struct Restarts(VecDeque<Instant>);

impl Restarts {
    /// Whether the engine may go on after a panic at `now`.
    fn admit(&mut self, now: Instant) -> bool {
        self.0.retain(|at| now.saturating_duration_since(*at) < RESTART_WINDOW);
        if self.0.len() >= RESTARTS_MAX {
            return false;
        }
        self.0.push_back(now);
        true
    }
}

impl Engine {
    /// Puts the engine in order after a panic; false if it must end.
    pub(crate) fn restart(&mut self, panic: &str) -> bool {
        let admitted = self.restarts.admit(self.shared.clock.now());
        tracing::error!(panic, restarts = admitted, "the device thread panicked");
        {
            let mut pulse = self.shared.pulse.lock();
            pulse.restarting = true;
            pulse.restarts += 1;
            pulse.lost = !admitted;
        }
        // Health hears of it before the work begins, which can take a while.
        self.shared.status.send_modify(|status| {
            std::sync::Arc::make_mut(status).device = self.shared.device();
        });
        let recovered = catch_unwind(AssertUnwindSafe(|| self.recover()));
        let problem = match recovered {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(panic) => Some(panic_message(&*panic).to_owned()),
        };
        if let Some(problem) = &problem {
            tracing::error!(problem, "the engine cannot be put in order");
        }
        let goes_on = admitted && problem.is_none();
        {
            let mut pulse = self.shared.pulse.lock();
            // Refuses requests to its end, if this is it.
            pulse.restarting = !goes_on;
            pulse.lost = !goes_on;
        }
        goes_on
    }

    /// Ends every request, and leaves the engine as after a start with the models it had.
    fn recover(&mut self) -> Result<(), DiskError> {
        self.executor = Executor::new(self.shared.clone());
        *self.shared.step_began.lock() = None;
        let salvaged = self.residency.salvage(&mut self.cache, &mut self.counters);
        // Those that the panic took in the middle of something have ended, and were not counted.
        let counters = &mut self.counters;
        counters.failed = counters.accepted - counters.finished - counters.cancelled;
        self.shared.beat();
        let trusted = salvaged.lost.is_empty()
            && catch_unwind(AssertUnwindSafe(|| self.cache.recover())).is_ok_and(|checked| {
                checked
                    .inspect_err(|problem| tracing::error!(problem, "the cache is not sound"))
                    .is_ok()
            });
        if !trusted {
            self.replace_cache()?;
        }
        let (kept, lost) = (salvaged.kept.len(), salvaged.lost.len());
        self.residency.resume(salvaged, &mut self.cache);
        tracing::warn!(kept, lost, remembers = trusted, "the engine goes on");
        Ok(())
    }

    /// Forgets all but what is on disk.
    fn replace_cache(&mut self) -> Result<(), DiskError> {
        // Totals since the start only grow.
        let counted = self.cache.counted();
        let off = CacheConfig { directory: None, ..CacheConfig::off() };
        let nothing =
            Cache::new(&off, &self.shared.ledger, self.shared.began, std::sync::Arc::new(|| {}))?;
        // The old one goes first, for the directory has room for one.
        let old = std::mem::replace(&mut self.cache, nothing);
        let next_event = old.next_event();
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(old))) {
            tracing::error!(panic = panic_message(&*panic), "the old cache panicked when dropped");
        }
        self.cache = Self::new_cache(&self.shared)?;
        self.cache.count_from(counted);
        self.cache.succeed(next_event);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_panics_as_may_are_survived_in_each_window() {
        let (mut restarts, began) = (Restarts::default(), Instant::now());
        for _ in 0..RESTARTS_MAX {
            assert!(restarts.admit(began));
        }
        let just_before = began + RESTART_WINDOW - Duration::from_nanos(1);
        assert!(!restarts.admit(just_before));
        assert!(restarts.admit(began + RESTART_WINDOW));
    }
}
