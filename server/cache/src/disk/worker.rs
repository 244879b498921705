//! The I/O thread: does the operations of the queue one after another, finds out that the disk does
//! not write and that it does again, and says so once. A panic in it ends the tier, not the server.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::codec;
use super::directory::{Directory, RecordId};
use super::error::{DiskError, RecordFault};
use super::queue::{Broken, Done, Job, Queue};
use super::record::EncodedHeader;

/// Called after an operation is done, from the I/O thread.
pub type Notify = Arc<dyn Fn() + Send + Sync>;

/// What the I/O thread works with.
pub(super) struct Worker {
    pub(super) directory: Arc<Directory>,
    pub(super) queue: Arc<Queue>,
    pub(super) notify: Notify,
    pub(super) retry_after: Duration,
}

impl Worker {
    /// Starts the thread. It ends when the queue is closed.
    ///
    /// # Errors
    /// [`std::io::Error`] if the system has no thread for us.
    pub(super) fn start(self) -> std::io::Result<JoinHandle<()>> {
        // Its lines go where those of the thread that opened the tier go.
        let log = tracing::dispatcher::get_default(tracing::Dispatch::clone);
        std::thread::Builder::new().name("sconce-disk".into()).spawn(move || {
            let _log = tracing::dispatcher::set_default(&log);
            let ended = catch_unwind(AssertUnwindSafe(|| self.run()));
            match ended {
                Ok(()) => self.queue.stop("it was closed"),
                Err(panic) => {
                    let cause = format!("the I/O thread panicked: {}", panic_message(&*panic));
                    tracing::error!(%cause, "disk cache: off until the server restarts");
                    self.queue.stop(&cause);
                    // The owner must learn of it even if it was the callback that panicked.
                    let _ = catch_unwind(AssertUnwindSafe(|| (self.notify)()));
                }
            }
        })
    }

    fn run(&self) {
        while let Some(job) = self.queue.next() {
            let done = self.execute(&job);
            // The payload goes before its end is told, so that the memory is free by then.
            drop(job);
            self.queue.finish(done);
            (self.notify)();
        }
    }

    fn execute(&self, job: &Job) -> Option<Done> {
        match job {
            Job::Write { id, header, payload } => {
                let mut left = false;
                let result = self.attempt(|| {
                    self.write(*id, header, payload).inspect_err(|_| {
                        left = self.directory.remove_record(*id).is_err();
                    })
                });
                Some(Done::Write { id: *id, result, left })
            }
            Job::Read { id, ticket, head } => Some(self.read(*id, *ticket, *head)),
            Job::Remove { id } => {
                let result = self.directory.remove_record(*id);
                if let Err(error) = &result {
                    self.found_broken(error);
                }
                Some(Done::Remove { id: *id, result })
            }
            Job::Manifest { bytes } => {
                let result = self.attempt(|| self.directory.write_manifest(bytes));
                if let Err(error) = result {
                    tracing::warn!(%error, "disk cache: names of snapshots not written");
                }
                None
            }
        }
    }

    fn write(
        &self,
        id: RecordId,
        header: &EncodedHeader,
        payload: &[Bytes],
    ) -> Result<(), DiskError> {
        let trailer = codec::trailer(header.head.checksum, payload);
        let mut pieces: Vec<&[u8]> = Vec::with_capacity(payload.len() + 2);
        pieces.push(&header.bytes);
        pieces.extend(payload.iter().map(|piece| &**piece));
        pieces.push(&trailer);
        self.directory.write_record(id, &pieces)
    }

    fn read(&self, id: RecordId, ticket: u64, head: u128) -> Done {
        let result = self.directory.read_payload(id, head);
        let mut removed = false;
        if let Err(error) = &result {
            removed = refuse(&self.directory, id, error);
        }
        Done::Read { id, ticket, result, removed }
    }

    /// Writes something, unless the tier is known not to write.
    fn attempt(&self, write: impl FnOnce() -> Result<(), DiskError>) -> Result<(), DiskError> {
        let broken = self.queue.broken();
        if let Some(broken) = &broken {
            if !broken.is_over() {
                return Err(broken.error());
            }
            // The directory may have gone and come back, and then it may be somebody else's.
            if let Err(error) = self.directory.prepare() {
                self.found_broken(&error);
                return Err(error);
            }
        }
        let result = write();
        match &result {
            Err(error) => self.found_broken(error),
            Ok(()) if broken.is_some() => {
                self.queue.set_broken(None);
                tracing::info!("disk cache: writing again");
            }
            Ok(()) => {}
        }
        result
    }

    fn found_broken(&self, error: &DiskError) {
        set_broken(&self.queue, error, self.retry_after);
    }
}

/// Stops writes for a while; says so if they were not stopped before.
pub(super) fn set_broken(queue: &Queue, error: &DiskError, retry_after: Duration) {
    let now = Instant::now();
    // A time that the clock cannot tell is as good as never.
    let retry_at =
        now.checked_add(retry_after).unwrap_or(now + Duration::from_secs(u32::MAX.into()));
    let broken = Broken { cause: error.to_string(), retry_at };
    if queue.set_broken(Some(broken)).is_none() {
        tracing::warn!(%error, ?retry_after, "disk cache: not writing for now");
    }
}

/// Says that a record is refused and removes it; true if it takes no room of ours any more. Where
/// the disk could not be read, the record may be fine and stays.
pub(super) fn refuse(directory: &Directory, id: RecordId, error: &DiskError) -> bool {
    if !error.is_lost() {
        tracing::warn!(%error, "disk cache: record that cannot be read left alone");
        return false;
    }
    if matches!(error, DiskError::Record { fault: RecordFault::Replaced { .. }, .. }) {
        // The directory went and came back as another server's.
        tracing::warn!(%error, "disk cache: record refused, left to whoever wrote it");
        return true;
    }
    match directory.remove_record(id) {
        Ok(()) => {
            tracing::warn!(%error, "disk cache: record refused and removed");
            true
        }
        Err(failed) => {
            tracing::warn!(%error, %failed, "disk cache: record refused but not removed");
            false
        }
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
