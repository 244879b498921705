//! What the owner of the disk tier and its I/O thread share: the operations that wait, what became
//! of those that are done, and whether the tier can write. No files here.
//!
//! Operations are done in the order in which they were asked for. What waits is bounded by the
//! owner (`tier`), which knows sizes; what is done is bounded by what was asked for.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::directory::RecordId;
use super::error::DiskError;
use super::record::EncodedHeader;

/// An operation for the I/O thread.
pub(super) enum Job {
    Write { id: RecordId, header: EncodedHeader, payload: Vec<Bytes> },
    Read { id: RecordId, ticket: u64, head: u128 },
    Remove { id: RecordId },
    Manifest { bytes: Vec<u8> },
}

impl Job {
    /// Memory that waits with the operation.
    fn bytes(&self) -> u64 {
        match self {
            Self::Write { header, payload, .. } => {
                let payload: usize = payload.iter().map(|piece| piece.len()).sum();
                (header.bytes.len() + payload) as u64
            }
            Self::Manifest { bytes } => bytes.len() as u64,
            Self::Read { .. } | Self::Remove { .. } => 0,
        }
    }

    /// What becomes of it when it fails before anything was done.
    pub(super) fn failed(&self, error: DiskError) -> Option<Done> {
        match *self {
            Self::Write { id, .. } => Some(Done::Write { id, result: Err(error), left: false }),
            Self::Read { id, ticket, .. } => {
                Some(Done::Read { id, ticket, result: Err(error), removed: false })
            }
            Self::Remove { id } => Some(Done::Remove { id, result: Err(error) }),
            Self::Manifest { .. } => None,
        }
    }
}

/// What became of an operation.
#[derive(Debug)]
pub(super) enum Done {
    /// `left`: it failed, and something of it may be on the disk.
    Write {
        id: RecordId,
        result: Result<(), DiskError>,
        left: bool,
    },
    /// `removed`: the record was refused and takes no room any more.
    Read {
        id: RecordId,
        ticket: u64,
        result: Result<Bytes, DiskError>,
        removed: bool,
    },
    Remove {
        id: RecordId,
        result: Result<(), DiskError>,
    },
}

/// Why nothing is written, and until when.
#[derive(Debug, Clone)]
pub(super) struct Broken {
    pub(super) cause: String,
    pub(super) retry_at: Instant,
}

impl Broken {
    /// Whether a write may be tried again.
    pub(super) fn is_over(&self) -> bool {
        Instant::now() >= self.retry_at
    }

    pub(super) fn error(&self) -> DiskError {
        DiskError::Broken { cause: self.cause.clone() }
    }
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    /// Bytes of `jobs` and of the job under way.
    bytes: u64,
    /// What the thread has to account for, should it end in the middle.
    under_way: Option<(Option<Done>, u64)>,
    done: VecDeque<Done>,
    broken: Option<Broken>,
    breaks: u64,
    closed: bool,
    stopped: Option<String>,
}

/// The queue; one owner, one I/O thread.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

impl Queue {
    /// Puts an operation behind the others.
    pub(super) fn push(&self, job: Job) -> Result<(), DiskError> {
        let mut state = self.lock();
        check_running(&state)?;
        if matches!(job, Job::Manifest { .. }) {
            // Only the last manifest counts.
            let mut dropped = 0;
            state.jobs.retain(|job| {
                let keep = !matches!(job, Job::Manifest { .. });
                dropped += if keep { 0 } else { job.bytes() };
                keep
            });
            state.bytes -= dropped;
        }
        state.bytes += job.bytes();
        state.jobs.push_back(job);
        self.changed.notify_all();
        Ok(())
    }

    /// Waits until `bytes` more fit within `most`, or nothing is queued; false if they do not
    /// within `wait`.
    pub(super) fn wait_for_room(&self, bytes: u64, most: u64, wait: Duration) -> bool {
        let fits = |state: &State| {
            state.bytes == 0 || state.bytes.saturating_add(bytes) <= most || state.stopped.is_some()
        };
        self.wait(Instant::now().checked_add(wait), fits)
    }

    /// Waits until everything is done; false if it is not by `deadline`.
    pub(super) fn wait_until_idle(&self, deadline: Instant) -> bool {
        let idle = |state: &State| state.jobs.is_empty() && state.under_way.is_none();
        self.wait(Some(deadline), idle)
    }

    /// Waits until an operation is done that nobody has taken notice of; false at `deadline`.
    pub(super) fn wait_until_done(&self, deadline: Instant) -> bool {
        self.wait(Some(deadline), |state| !state.done.is_empty() || state.stopped.is_some())
    }

    /// The oldest operation that is done and not taken notice of.
    pub(super) fn take_done(&self) -> Option<Done> {
        self.lock().done.pop_front()
    }

    /// Bytes that wait or are being written.
    pub(super) fn bytes(&self) -> u64 {
        self.lock().bytes
    }

    /// Whether operations are accepted.
    pub(super) fn check_running(&self) -> Result<(), DiskError> {
        check_running(&self.lock())
    }

    /// Why nothing is written now.
    pub(super) fn broken(&self) -> Option<Broken> {
        self.lock().broken.clone()
    }

    /// How often the tier stopped writing.
    pub(super) fn breaks(&self) -> u64 {
        self.lock().breaks
    }

    /// Says whether the tier can write, and tells what was said before.
    pub(super) fn set_broken(&self, broken: Option<Broken>) -> Option<Broken> {
        let mut state = self.lock();
        let before = std::mem::replace(&mut state.broken, broken);
        state.breaks += u64::from(before.is_none() && state.broken.is_some());
        before
    }

    /// Asks the thread to end after the operation under way; what waits is dropped.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// For the thread: the next operation, or `None` when it should end.
    pub(super) fn next(&self) -> Option<Job> {
        let mut state = self.lock();
        while state.jobs.is_empty() && !state.closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.closed {
            return None;
        }
        let job = state.jobs.pop_front()?;
        let failed = job.failed(stopped("the I/O thread ended in the middle of it"));
        state.under_way = Some((failed, job.bytes()));
        Some(job)
    }

    /// For the thread: what became of the operation under way.
    pub(super) fn finish(&self, done: Option<Done>) {
        let mut state = self.lock();
        if let Some((_, bytes)) = state.under_way.take() {
            state.bytes -= bytes;
        }
        state.done.extend(done);
        self.changed.notify_all();
    }

    /// The thread has ended: fails what waits, and everything from now on.
    pub(super) fn stop(&self, cause: &str) {
        let mut state = self.lock();
        let under_way = state.under_way.take().and_then(|(failed, _)| failed);
        let waiting = std::mem::take(&mut state.jobs);
        let failed = waiting.iter().filter_map(|job| job.failed(stopped(cause)));
        state.done.extend(under_way.into_iter().chain(failed));
        state.bytes = 0;
        state.stopped.get_or_insert_with(|| cause.into());
        self.changed.notify_all();
    }

    fn wait(&self, deadline: Option<Instant>, over: impl Fn(&State) -> bool) -> bool {
        let mut state = self.lock();
        while !over(&state) {
            let now = Instant::now();
            let left = deadline.map_or(Duration::MAX, |deadline| deadline.duration_since(now));
            if left.is_zero() {
                return false;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// The state is whole between any two statements that could panic.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn check_running(state: &State) -> Result<(), DiskError> {
    state.stopped.as_deref().map_or(Ok(()), |cause| Err(stopped(cause)))
}

fn stopped(cause: &str) -> DiskError {
    DiskError::Stopped { cause: cause.into() }
}
