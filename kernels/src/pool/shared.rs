//! What the forking thread and the workers share: one word that says whether a fork is open and how
//! many workers are in it.
//!
//! The word is `generation (32 bits) | STOP | OPEN | workers inside (30 bits)`. A worker enters by
//! raising the count while OPEN is set, in one compare-and-swap; the forking thread closes by
//! clearing OPEN and waits until the count is zero. A worker that overslept finds the fork closed
//! and touches nothing, so a fork never waits for a thread to wake up.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

/// How often a worker looks for the next fork before it sleeps: some tens of microseconds, longer
/// than the pause between two operators of a step, shorter than a time slice.
const WORKER_SPINS: u32 = 4_000;
/// How often the forking thread looks whether the last worker left before it yields its core.
const CLOSE_SPINS: u32 = 2_000;

const GENERATION: u64 = 1 << 32;
const STOP: u64 = 1 << 31;
const OPEN: u64 = 1 << 30;
const INSIDE: u64 = OPEN - 1;

type Task = *const (dyn Fn(usize) + Sync);
type Panic = Box<dyn Any + Send>;

pub(super) struct Shared {
    word: AtomicU64,
    next: AtomicUsize,
    job: UnsafeCell<Option<(usize, Task)>>,
    panic: Mutex<Option<Panic>>,
    sleepers: AtomicUsize,
    asleep: Mutex<()>,
    wake: Condvar,
}

// SAFETY: `job` is written only by the thread that holds the pool's turn while no worker is inside,
// and read only by workers inside; the word orders the two. The task it points to is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer is dereferenced only between `open` and `close`.
unsafe impl Send for Shared {}

impl Shared {
    pub(super) fn new() -> Self {
        Self {
            word: AtomicU64::new(0),
            next: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            panic: Mutex::new(None),
            sleepers: AtomicUsize::new(0),
            asleep: Mutex::new(()),
            wake: Condvar::new(),
        }
    }

    /// Lets the workers at a fork's tasks.
    ///
    /// # Safety
    /// One thread at a time opens, and `close` must return before `task` is dropped.
    pub(super) unsafe fn open(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        // SAFETY: only the lifetime is erased; by contract the task outlives the fork.
        let task: Task = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), Task>(task) };
        self.next.store(0, Ordering::Relaxed);
        // SAFETY: the fork before this one is closed, so no worker is inside.
        unsafe { *self.job.get() = Some((tasks, task)) };
        // Sequentially consistent, as is the sleepers' side: either this thread sees a sleeper, or
        // the sleeper sees the new generation before it sleeps.
        self.word.fetch_add(GENERATION | OPEN, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            let _guard = self.asleep.lock().unwrap_or_else(PoisonError::into_inner);
            self.wake.notify_all();
        }
    }

    /// Runs tasks until none is left.
    pub(super) fn take_tasks(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= tasks {
                return;
            }
            task(index);
        }
    }

    /// Makes the tasks that nobody has begun count as taken.
    pub(super) fn skip_rest(&self, tasks: usize) {
        self.next.store(tasks, Ordering::Relaxed);
    }

    /// Ends a fork: no worker is inside, nor will be, when it returns.
    pub(super) fn close(&self) {
        self.word.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0;
        while self.word.load(Ordering::Acquire) & INSIDE != 0 {
            spins += 1;
            match spins < CLOSE_SPINS {
                true => std::hint::spin_loop(),
                // The worker may be waiting for this very core.
                false => std::thread::yield_now(),
            }
        }
    }

    /// What a worker's task panicked with during the fork that was just closed.
    pub(super) fn take_panic(&self) -> Option<Panic> {
        self.panic.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Workers that have given up spinning.
    #[cfg(test)]
    pub(super) fn sleepers(&self) -> usize {
        self.sleepers.load(Ordering::SeqCst)
    }

    /// Ends the workers.
    pub(super) fn stop(&self) {
        self.word.fetch_or(STOP, Ordering::SeqCst);
        let _guard = self.asleep.lock().unwrap_or_else(PoisonError::into_inner);
        self.wake.notify_all();
    }

    /// The life of a worker.
    pub(super) fn work(&self) {
        let mut seen = 0;
        loop {
            let word = self.await_fork(seen);
            if word & STOP != 0 {
                return;
            }
            seen = word / GENERATION;
            if self.enter(word) {
                self.work_inside();
                self.word.fetch_sub(1, Ordering::Release);
            }
        }
    }

    /// Waits for a generation other than `seen`, or for the end; returns the word.
    fn await_fork(&self, seen: u64) -> u64 {
        let news = |word: u64| word / GENERATION != seen || word & STOP != 0;
        for _ in 0..WORKER_SPINS {
            let word = self.word.load(Ordering::Acquire);
            if news(word) {
                return word;
            }
            std::hint::spin_loop();
        }
        let mut guard = self.asleep.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let word = loop {
            let word = self.word.load(Ordering::SeqCst);
            if news(word) {
                break word;
            }
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        };
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        word
    }

    /// Joins the open fork, if it is still that of `word` and open.
    fn enter(&self, mut word: u64) -> bool {
        let generation = word / GENERATION;
        while word & OPEN != 0 && word / GENERATION == generation {
            match self.word.compare_exchange_weak(
                word,
                word + 1,
                Ordering::Acquire,
                Ordering::Acquire,
            ) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
        false
    }

    /// A worker's share of the fork it is in.
    fn work_inside(&self) {
        // SAFETY: this worker is counted as inside, so the job is set and nobody writes it.
        let Some((tasks, task)) = (unsafe { *self.job.get() }) else { return };
        // SAFETY: the forking thread waits for this worker to leave before it drops the task.
        let task = unsafe { &*task };
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| self.take_tasks(tasks, task))) {
            self.skip_rest(tasks);
            let mut slot = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
            slot.get_or_insert(payload);
        }
    }
}
