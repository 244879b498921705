//! A fork-join pool for loops inside operators: a few hundred short forks for each token, so a fork
//! allocates nothing and its workers spin for a moment before they sleep. Not for waiting on
//! anything.

mod shared;
#[cfg(test)]
mod tests;
mod topology;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;

use self::shared::Shared;

/// Most threads a pool may have, the caller included.
pub const MAX_THREADS: usize = 1024;

/// Threads that run the tasks of one fork at a time, together with the thread that forks.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    submit: Mutex<()>,
}

/// The global pool already runs, with another number of threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the pool already runs with {running} threads, asked for {asked}")]
pub struct AlreadyRunning {
    /// Threads it has.
    pub running: usize,
    /// Threads asked for.
    pub asked: usize,
}

static GLOBAL: OnceLock<Arc<Pool>> = OnceLock::new();

thread_local! {
    /// Set while this thread runs a task: forks inside run inline.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
    /// The pool operators called from this thread use, where not the global one.
    static OVERRIDE: RefCell<Option<Arc<Pool>>> = const { RefCell::new(None) };
}

impl Pool {
    /// A pool of `threads`, of which one is whoever forks; 0 counts as 1.
    ///
    /// # Errors
    /// The operating system refused a thread.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let threads = threads.clamp(1, MAX_THREADS);
        let shared = Arc::new(Shared::new());
        let mut pool = Self { shared, workers: Vec::new(), submit: Mutex::new(()) };
        for index in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let worker =
                std::thread::Builder::new().name(format!("kernels-{index}")).spawn(move || {
                    INSIDE.set(true);
                    shared.work();
                })?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Sets how many threads the global pool has; call it before the first operator runs.
    ///
    /// # Errors
    /// [`AlreadyRunning`], if the pool runs with another number.
    pub fn configure(threads: usize) -> Result<(), AlreadyRunning> {
        let pool = GLOBAL.get_or_init(|| Arc::new(Self::or_single(threads)));
        let asked = threads.clamp(1, MAX_THREADS);
        match pool.threads() == asked {
            true => Ok(()),
            false => Err(AlreadyRunning { running: pool.threads(), asked }),
        }
    }

    /// The pool of the process: as many threads as [`configure`](Self::configure) said, else one
    /// for each physical core this process may use.
    pub fn global() -> &'static Self {
        GLOBAL.get_or_init(|| Arc::new(Self::or_single(topology::physical_cores())))
    }

    /// Runs `body` with operators called from this thread on `pool`.
    pub fn with<R>(pool: &Arc<Self>, body: impl FnOnce() -> R) -> R {
        struct Restore(Option<Arc<Pool>>);
        impl Drop for Restore {
            fn drop(&mut self) {
                OVERRIDE.set(self.0.take());
            }
        }
        let _restore = Restore(OVERRIDE.replace(Some(Arc::clone(pool))));
        body()
    }

    /// Hands the pool that operators called from this thread use to `body`.
    pub(crate) fn current<R>(body: impl FnOnce(&Self) -> R) -> R {
        let pool = OVERRIDE.with_borrow(Clone::clone);
        body(pool.as_deref().unwrap_or_else(|| Self::global()))
    }

    /// Number of threads, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `task(0)` to `task(tasks - 1)`, each once, on any thread and in any order, and returns
    /// when all are done.
    ///
    /// A fork inside a task, and a fork while another thread's is under way, runs inline. A panic
    /// in a task is raised here after the other threads have stopped; tasks not yet begun are not
    /// run then.
    pub fn run(&self, tasks: usize, task: impl Fn(usize) + Sync) {
        if tasks <= 1 || self.workers.is_empty() || INSIDE.get() {
            return (0..tasks).for_each(task);
        }
        let Ok(turn) = self.submit.try_lock() else {
            return (0..tasks).for_each(task);
        };
        let payload = self.fork(tasks, &task);
        // The turn must end before a panic goes on, or its lock would be poisoned.
        drop(turn);
        if let Some(payload) = payload {
            resume_unwind(payload);
        }
    }

    /// One fork; the caller holds the turn. Returns what a task panicked with.
    fn fork(
        &self,
        tasks: usize,
        task: &(dyn Fn(usize) + Sync),
    ) -> Option<Box<dyn std::any::Any + Send>> {
        INSIDE.set(true);
        // SAFETY: `close` below is reached before `task` goes out of scope: nothing in between
        // unwinds, as the caller's own share runs under `catch_unwind`.
        unsafe { self.shared.open(tasks, task) };
        let outcome = catch_unwind(AssertUnwindSafe(|| self.shared.take_tasks(tasks, task)));
        if outcome.is_err() {
            self.shared.skip_rest(tasks);
        }
        self.shared.close();
        INSIDE.set(false);
        outcome.err().or_else(|| self.shared.take_panic())
    }

    /// Runs `task(index, chunk)` for each run of `chunk_len` elements of `data`, the last of which
    /// may be shorter.
    pub fn run_chunks<T: Send>(
        &self,
        data: &mut [T],
        chunk_len: usize,
        task: impl Fn(usize, &mut [T]) + Sync,
    ) {
        let chunk_len = chunk_len.max(1);
        let parts = Parts::new(data);
        self.run(parts.len.div_ceil(chunk_len), |index| {
            let start = index * chunk_len;
            let len = chunk_len.min(parts.len - start);
            // SAFETY: each index comes once, and the ranges of different indices are disjoint.
            task(index, unsafe { parts.part(start, len) });
        });
    }

    /// A pool, or the calling thread alone where threads cannot be had.
    fn or_single(threads: usize) -> Self {
        Self::new(threads).unwrap_or_else(|_| Self {
            shared: Arc::new(Shared::new()),
            workers: Vec::new(),
            submit: Mutex::new(()),
        })
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish_non_exhaustive()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop();
        for worker in self.workers.drain(..) {
            // Workers catch what tasks panic with, so there is nothing left to report.
            let _ = worker.join();
        }
    }
}

/// A mutable slice that tasks write in disjoint parts.
pub(crate) struct Parts<'a, T> {
    start: *mut T,
    len: usize,
    data: PhantomData<&'a mut [T]>,
}

// SAFETY: it hands out parts only through an unsafe method whose callers promise disjointness, so
// sharing it is like sending the parts to other threads.
unsafe impl<T: Send> Sync for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    pub(crate) fn new(data: &'a mut [T]) -> Self {
        Self { start: data.as_mut_ptr(), len: data.len(), data: PhantomData }
    }

    /// Elements `start..start + len`.
    ///
    /// # Safety
    /// The range lies inside the slice, and no other part that overlaps it is alive.
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    pub(crate) unsafe fn part(&self, start: usize, len: usize) -> &mut [T] {
        debug_assert!(start + len <= self.len, "a part lies inside its slice");
        // SAFETY: in bounds and unaliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}
