//! The device thread: commands in, steps of one model after another, events out.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use sconce_cache::disk::DiskError;
use tokio::sync::oneshot;

use crate::cache::Cache;
use crate::error::EngineError;
use crate::executor::Executor;
use crate::residency::Residency;
use crate::sequence::Sequence;
use crate::shared::{Command, Shared};
use crate::status::{Counters, ModelState, Status};

/// What the device thread owns.
pub(crate) struct Engine {
    shared: Arc<Shared>,
    residency: Residency,
    executor: Executor,
    cache: Cache,
    counters: Counters,
    arrivals: u64,
    inbox: Vec<Command>,
    shutdown: Option<Shutdown>,
    /// The status published before the last, whose memory the next one takes.
    spare: Arc<Status>,
}

struct Shutdown {
    deadline: Instant,
    replies: Vec<oneshot::Sender<()>>,
}

/// Lets go of the mailbox when the thread ends, however it ends.
struct Farewell(Arc<Shared>);

impl Drop for Farewell {
    fn drop(&mut self) {
        self.0.alive.store(false, Ordering::Release);
        self.0.catalogue.write().clear();
        self.0.mailbox.close();
    }
}

impl Engine {
    /// An engine without models.
    ///
    /// # Errors
    /// The directory of the cache cannot be had.
    pub(crate) fn new(shared: Arc<Shared>) -> Result<Self, DiskError> {
        let mailbox = shared.mailbox.clone();
        let notify = Arc::new(move || mailbox.ring());
        let (config, began) = (&shared.config.cache, shared.began);
        Ok(Self {
            cache: Cache::new(config, &shared.ledger, began, notify)?,
            residency: Residency::new(shared.clone()),
            executor: Executor::new(shared.clone()),
            shared,
            counters: Counters::default(),
            arrivals: 0,
            inbox: Vec::new(),
            shutdown: None,
            spare: Arc::default(),
        })
    }

    /// Runs until the engine is shut down or no handle is left.
    pub(crate) fn run(mut self) {
        let farewell = Farewell(self.shared.clone());
        loop {
            let told = self.take_commands();
            let now = self.shared.clock.now();
            self.tend_cache(now);
            self.sweep(now);
            if self.is_over(now) {
                break;
            }
            // A step may take seconds; what was just ordered shows before.
            if told {
                self.publish();
            }
            let stepped =
                self.executor.step(&mut self.residency, &mut self.cache, &mut self.counters);
            self.residency.let_go(self.shared.clock.now(), &mut self.cache);
            self.publish();
            if !stepped {
                self.wait();
            }
        }
        self.residency.stop(&mut self.cache, &mut self.counters);
        self.cache.stop(self.shared.clock.now());
        self.publish();
        drop(farewell);
        // Whoever hears of the end may start another engine on the same directory.
        drop(self.cache);
        for reply in self.shutdown.into_iter().flat_map(|shutdown| shutdown.replies) {
            // Nobody may be waiting any more.
            let _unheard = reply.send(());
        }
    }

    /// Carries out what was ordered; whether there was anything.
    fn take_commands(&mut self) -> bool {
        let mut inbox = std::mem::take(&mut self.inbox);
        self.shared.mailbox.take(&mut inbox);
        self.cache.turn_to(self.shared.clock.now());
        let told = !inbox.is_empty();
        for command in inbox.drain(..) {
            match command {
                Command::Submit(sequence) => self.submit(*sequence),
                // Dropping an answer that nobody waits for gives the load up.
                Command::Load { name, settings, reply } => {
                    drop(reply.send(self.residency.load(name, settings)));
                }
                Command::Loaded(outcome) => {
                    self.residency.loaded_from(*outcome, &mut self.cache);
                }
                Command::Unload { name, force, reply } => {
                    let ground = (&mut self.cache, &mut self.counters);
                    self.residency.unload(name, force, reply, ground);
                }
                Command::Ask(question) => question(&mut self.residency, &mut self.cache),
                Command::Shutdown { deadline, reply } => self.begin_shutdown(deadline, reply),
            }
        }
        self.inbox = inbox;
        told
    }

    fn submit(&mut self, mut sequence: Sequence) {
        self.counters.accepted += 1;
        self.arrivals += 1;
        sequence.arrive(self.arrivals);
        // It was ready when the handle looked; it may have gone since.
        let model = sequence.model.clone();
        match self.residency.get(&model) {
            Some(resident) if resident.state == ModelState::Ready => {
                resident.scheduler.enqueue(sequence);
            }
            Some(resident) => {
                let error = EngineError::ModelNotReady { model, state: resident.state };
                sequence.fail(error, &mut self.counters);
            }
            None => sequence.fail(EngineError::ModelNotFound { model }, &mut self.counters),
        }
    }

    /// Ends what was cancelled, stopped or is late, in every model.
    fn sweep(&mut self, now: Instant) {
        for resident in self.residency.loaded() {
            let pool = resident.holding.model.state_mut();
            let memory = &mut self.cache.memory(pool, resident.domain);
            resident.scheduler.sweep(memory, now, &mut self.counters);
        }
    }

    /// Takes in what the disk has done, has a model make room on the device for one that holds less
    /// there, sends the exports that were waiting, and lets snapshots go whose time is over.
    fn tend_cache(&mut self, now: Instant) {
        self.cache.turn_to(now);
        self.cache.poll();
        if self.cache.has_lost() {
            for resident in self.residency.loaded() {
                let pool = resident.holding.model.state_mut();
                let memory = &mut self.cache.memory(pool, resident.domain);
                resident.scheduler.forget_findings(memory);
            }
            self.cache.forget_lost();
        }
        if let Some((holder, bytes)) = self.cache.take_shortage() {
            let mut residents = self.residency.loaded();
            if let Some(resident) = residents.find(|resident| resident.domain == Some(holder)) {
                let pool = resident.holding.model.state_mut();
                self.cache.memory(pool, Some(holder)).give_bytes(bytes);
            }
        }
        while let Some(domain) = self.cache.export_ready() {
            let mut residents = self.residency.loaded();
            let resident = residents.find(|resident| resident.domain == Some(domain));
            let pool = resident.map(|resident| resident.holding.model.state_mut());
            self.cache.send_exports(domain, pool);
        }
    }

    fn begin_shutdown(&mut self, deadline: Instant, reply: oneshot::Sender<()>) {
        let shutdown =
            self.shutdown.get_or_insert_with(|| Shutdown { deadline, replies: Vec::new() });
        shutdown.deadline = shutdown.deadline.min(deadline);
        shutdown.replies.push(reply);
    }

    fn is_over(&mut self, now: Instant) -> bool {
        let orphaned = self.shared.orphaned.load(Ordering::Acquire);
        let Some(shutdown) = &self.shutdown else { return orphaned };
        orphaned
            || shutdown.deadline <= now
            || self.residency.loaded().all(|resident| resident.scheduler.is_empty())
    }

    /// Sleeps until there is something to do.
    fn wait(&self) {
        if self.cache.has_shortage() {
            return;
        }
        let shutdown = self.shutdown.as_ref().map(|shutdown| shutdown.deadline);
        let timers = self.residency.next_timer().into_iter().chain(self.cache.next_expiry());
        let timer = timers.chain(shutdown).min();
        let now = self.shared.clock.now();
        self.shared.mailbox.wait(timer.map(|timer| timer.saturating_duration_since(now)));
    }

    /// Allocates nothing where nobody holds the status before the last.
    fn publish(&mut self) {
        let status = Arc::make_mut(&mut self.spare);
        self.residency.status(self.shared.clock.now(), &mut status.models);
        status.running = status.models.iter().map(|model| model.running).sum();
        status.waiting = self.shared.waiting_room.waiting();
        status.waiting_max = self.shared.config.waiting_max;
        status.draining = self.shared.draining.load(Ordering::Acquire);
        status.memory = self.shared.ledger.snapshot();
        status.counters = self.counters;
        status.cache = self.cache.status();
        self.spare = self.shared.status.send_replace(self.spare.clone());
    }
}
