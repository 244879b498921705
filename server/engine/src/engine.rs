//! The device thread: commands in, steps of one model after another, events out.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sconce_cache::disk::DiskError;
use tokio::sync::oneshot;

use crate::cache::Cache;
use crate::error::EngineError;
use crate::executor::Executor;
use crate::residency::{Residency, panic_message};
use crate::restart::Restarts;
use crate::sequence::Sequence;
use crate::shared::{Command, Shared};
use crate::status::{Counters, ModelState, Status};

/// How often a device thread that sleeps says that it could wake.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);

/// What the device thread owns.
pub(crate) struct Engine {
    pub(crate) shared: Arc<Shared>,
    pub(crate) residency: Residency,
    pub(crate) executor: Executor,
    pub(crate) cache: Cache,
    pub(crate) counters: Counters,
    arrivals: u64,
    /// Commands that were taken and not carried out yet; they outlive a panic.
    inbox: VecDeque<Command>,
    shutdown: Option<Shutdown>,
    pub(crate) restarts: Restarts,
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
        // Its reader hears that there are no more.
        self.0.step_reader.lock().take();
        self.0.mailbox.close();
    }
}

impl Engine {
    /// An engine without models.
    ///
    /// # Errors
    /// The directory of the cache cannot be had.
    pub(crate) fn new(shared: Arc<Shared>) -> Result<Self, DiskError> {
        Ok(Self {
            cache: Self::new_cache(&shared)?,
            residency: Residency::new(shared.clone()),
            executor: Executor::new(shared.clone()),
            shared,
            counters: Counters::default(),
            arrivals: 0,
            inbox: VecDeque::new(),
            shutdown: None,
            restarts: Restarts::default(),
            spare: Arc::default(),
        })
    }

    /// A cache as it is at the start.
    ///
    /// # Errors
    /// The directory cannot be had.
    pub(crate) fn new_cache(shared: &Arc<Shared>) -> Result<Cache, DiskError> {
        let mailbox = shared.mailbox.clone();
        let notify = Arc::new(move || mailbox.ring());
        Cache::new(&shared.config.cache, &shared.ledger, shared.began, notify)
    }

    /// Runs until the engine is shut down, no handle is left, it has panicked too often, or its GPU is
    /// lost.
    ///
    /// After a panic the thread goes on from here, with an empty stack, as a new one would.
    pub(crate) fn run(mut self) {
        let farewell = Farewell(self.shared.clone());
        while let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.serve())) {
            if !self.restart(panic_message(&*panic)) {
                break;
            }
        }
        // Whatever fails now, the process must hear of the end.
        let ended = catch_unwind(AssertUnwindSafe(|| {
            self.residency.stop(&mut self.cache, &mut self.counters);
            self.cache.stop(self.shared.clock.now());
            self.publish();
        }));
        if let Err(panic) = ended {
            tracing::error!(panic = panic_message(&*panic), "the engine panicked while it stopped");
        }
        drop(farewell);
        // Whoever hears of the end may start another engine on the same directory.
        drop(self.cache);
        for reply in self.shutdown.into_iter().flat_map(|shutdown| shutdown.replies) {
            // Nobody may be waiting any more.
            let _unheard = reply.send(());
        }
    }

    /// Turns until there is an end.
    fn serve(&mut self) {
        loop {
            self.shared.beat();
            let told = self.take_commands();
            let now = self.shared.clock.now();
            self.tend_cache(now);
            self.sweep(now);
            if self.is_over(now) {
                return;
            }
            // A step may take seconds; what was just ordered shows before.
            if told {
                self.publish();
            }
            let stepped =
                self.executor.step(&mut self.residency, &mut self.cache, &mut self.counters);
            // Before anything else is asked of a driver that may not answer.
            if self.executor.has_lost_gpu() && self.is_over(self.shared.clock.now()) {
                return;
            }
            self.residency.let_go(self.shared.clock.now(), &mut self.cache);
            self.publish();
            // No slower step follows soon in a model that lies idle while others go on.
            let rest = self.residency.loaded().filter(|one| !stepped || one.scheduler.is_empty());
            rest.for_each(|resident| resident.steps.close());
            if !stepped {
                self.wait();
            }
        }
    }

    /// Carries out what was ordered; whether there was anything.
    fn take_commands(&mut self) -> bool {
        self.shared.mailbox.take(&mut self.inbox);
        self.cache.turn_to(self.shared.clock.now());
        let told = !self.inbox.is_empty();
        while let Some(command) = self.inbox.pop_front() {
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
        told
    }

    fn submit(&mut self, mut sequence: Sequence) {
        self.counters.accepted += 1;
        self.arrivals += 1;
        sequence.arrive(self.arrivals);
        // It was ready when the handle looked; it may have gone since.
        let model = sequence.model.clone();
        let now = self.shared.clock.now();
        match self.residency.get(&model) {
            Some(resident) if resident.state == ModelState::Ready => {
                resident.scheduler.enqueue(sequence);
            }
            Some(resident) => {
                let error = EngineError::ModelNotReady { model, state: resident.state };
                sequence.fail(error, now, &mut self.counters);
            }
            None => {
                let found = self.shared.ready(&model).err();
                let error = found.unwrap_or(EngineError::ModelNotFound { model });
                sequence.fail(error, now, &mut self.counters);
            }
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
        if self.residency.is_bereft() || self.executor.has_lost_gpu() {
            self.shared.pulse.lock().lost = true;
            // Heard of before memory is freed, for which a lost GPU may let one wait for ever.
            self.publish();
            return true;
        }
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
        loop {
            self.shared.beat();
            let now = self.shared.clock.now();
            let left = timer.map(|timer| timer.saturating_duration_since(now));
            let nap = left.map_or(HEARTBEAT_INTERVAL, |left| left.min(HEARTBEAT_INTERVAL));
            if self.shared.mailbox.wait(nap) || left.is_some_and(|left| left <= nap) {
                return;
            }
        }
    }

    /// Allocates nothing where nobody holds the status before the last.
    pub(crate) fn publish(&mut self) {
        let status = Arc::make_mut(&mut self.spare);
        self.residency.status(self.shared.clock.now(), &mut status.models);
        status.running = status.models.iter().map(|model| model.running).sum();
        status.waiting = self.shared.waiting_room.waiting();
        status.waiting_tokens = self.shared.waiting_room.tokens();
        status.waiting_max = self.shared.config.waiting_max;
        status.draining = self.shared.draining.load(Ordering::Acquire);
        status.memory = self.shared.ledger.snapshot();
        status.counters = self.counters;
        status.cache = self.cache.status();
        status.device = self.shared.device();
        self.spare = self.shared.status.send_replace(self.spare.clone());
        self.residency.announce();
    }
}
