//! The disk tier as its owner sees it: which records there are, how many bytes they take, and an
//! I/O thread that reads and writes them while the owner does something else.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;

use super::codec;
use super::directory::{Directory, RecordId};
use super::error::{DiskError, RecordFault};
use super::files::{Files, RealFiles};
use super::index::{Entry, Holds, Index};
use super::manifest::{self, ManifestEntry};
use super::queue::{Done, Job, Queue};
use super::record::{EncodedHeader, RecordHeader, round_to_blocks};
use super::report::{Completion, DiskCounters, DiskStatus, Ticket};
use super::worker::{Notify, Worker, refuse, set_broken};

/// Most writes and reads that are queued, or done and not polled.
pub const OPERATIONS_MAX: usize = 1 << 16;

/// Where the disk tier lies and what it may take.
#[derive(Debug, Clone)]
pub struct DiskConfig {
    /// The cache directory; created if it does not exist.
    pub directory: PathBuf,
    /// Most bytes of records, those of models that are not loaded included.
    pub bytes_max: u64,
    /// Most bytes that wait to be written. A record that is larger goes alone.
    pub queue_bytes_max: u64,
    /// Most bytes of reads that were asked for and not handed out. A record that is larger goes
    /// alone.
    pub read_bytes_max: u64,
    /// Longest that [`DiskTier::write`] waits for room in the queue.
    pub queue_wait_max: Duration,
    /// After a failed write, how long it is before the next one is tried.
    pub retry_after: Duration,
}

impl DiskConfig {
    /// A tier of `bytes_max` bytes: at most 256 MiB wait to be written and 2 GiB to be taken, writes
    /// wait for 2 s, and a disk that failed is tried again after 30 s.
    pub fn new(directory: impl Into<PathBuf>, bytes_max: u64) -> Self {
        Self {
            directory: directory.into(),
            bytes_max,
            queue_bytes_max: 256 << 20,
            read_bytes_max: 2 << 30,
            queue_wait_max: Duration::from_secs(2),
            retry_after: Duration::from_secs(30),
        }
    }
}

/// Records on disk; one owner, one I/O thread. Dropping it ends the thread after the operation
/// under way; see [`DiskTier::flush`].
pub struct DiskTier {
    config: DiskConfig,
    directory: Arc<Directory>,
    queue: Arc<Queue>,
    thread: Option<JoinHandle<()>>,
    index: Index,
    /// Bytes of the reads that were not handed out.
    reads: BTreeMap<Ticket, u64>,
    /// Writes and reads that were not handed out.
    operations: usize,
    ready: VecDeque<Completion>,
    counters: DiskCounters,
    next_id: u64,
    next_ticket: u64,
}

impl DiskTier {
    /// Opens a cache directory: creates and locks it, reads the heads of its records, removes what a
    /// killed process has left, what is damaged and the oldest that does not fit `bytes_max`, and
    /// starts the I/O thread. `notify` is called
    /// from that thread whenever [`DiskTier::poll`] may have something new.
    ///
    /// A directory that can be read but not written is opened for reading.
    ///
    /// # Errors
    /// [`DiskError::Locked`] if another process uses the directory, [`DiskError::Io`] if it can
    /// neither be created nor read.
    pub fn open(config: DiskConfig, notify: Notify) -> Result<Self, DiskError> {
        Self::open_with(Arc::new(RealFiles), config, notify)
    }

    pub(super) fn open_with(
        files: Arc<dyn Files>,
        config: DiskConfig,
        notify: Notify,
    ) -> Result<Self, DiskError> {
        let directory = Arc::new(Directory::new(files, config.directory.clone()));
        let queue = Arc::new(Queue::default());
        let prepared = directory.prepare();
        if let Err(locked @ DiskError::Locked { .. }) = prepared {
            return Err(locked);
        }
        // What cannot be listed either is no directory to read from, and the first error says more.
        let (found, temporary) = match (directory.list(), prepared) {
            (Ok(listed), prepared) => {
                if let Err(error) = prepared {
                    set_broken(&queue, &error, config.retry_after);
                }
                listed
            }
            (Err(error), prepared) => return Err(prepared.err().unwrap_or(error)),
        };
        let retry_after = config.retry_after;
        let mut tier = Self {
            config,
            directory: Arc::clone(&directory),
            queue: Arc::clone(&queue),
            thread: None,
            index: Index::default(),
            reads: BTreeMap::new(),
            operations: 0,
            ready: VecDeque::new(),
            counters: DiskCounters { temporary: temporary as u64, ..DiskCounters::default() },
            next_id: found.iter().map(|file| file.id.0 + 1).max().unwrap_or(0),
            next_ticket: 0,
        };
        for file in found {
            if let Some(holds) = tier.examine(file.id) {
                tier.index
                    .insert(file.id, Entry { bytes: file.bytes, modified: file.modified, holds });
            }
        }
        tier.log_opened();
        let worker = Worker { directory, queue, notify, retry_after };
        let io = |error| DiskError::io("start a thread for", &tier.config.directory, &error);
        tier.thread = Some(worker.start().map_err(io)?);
        tier.fit_budget();
        Ok(tier)
    }

    /// What a record takes on disk, in whole blocks; for the ledger.
    pub fn file_bytes(header: &RecordHeader) -> u64 {
        round_to_blocks(header.record_bytes())
    }

    /// What is on the disk, by model: records and bytes of each fingerprint.
    pub fn fingerprints(&self) -> BTreeMap<u64, (usize, u64)> {
        self.index.models()
    }

    /// Visits the records of a model that were there when the tier was opened, by instance, salt
    /// and where they start, so that what is above comes before what is below. Only the tokens of
    /// one record are in memory at a time. A record that turns out to be damaged is removed and
    /// not visited.
    pub fn scan(&mut self, fingerprint: u64, visit: &mut dyn FnMut(RecordId, RecordHeader)) {
        for (id, head) in self.index.found(fingerprint) {
            match self.directory.read_header(id, head.checksum) {
                Ok(header) => visit(id, header),
                Err(error) => {
                    let removed = refuse(&self.directory, id, &error);
                    self.count_unread(&error);
                    self.index.give_up(id, removed);
                }
            }
        }
    }

    /// Queues a record to be written and counts it as there. The pieces of the payload follow one
    /// another; they are kept until they are written, and not copied.
    ///
    /// # Errors
    /// [`DiskError::Full`] if it does not fit, [`DiskError::QueueFull`] if the disk does not keep up
    /// or nobody polls, [`DiskError::Broken`] and [`DiskError::Stopped`] at once if the tier does
    /// not write, [`DiskError::Header`]. Nothing has changed then.
    pub fn write(
        &mut self,
        header: RecordHeader,
        payload: Vec<Bytes>,
    ) -> Result<RecordId, DiskError> {
        self.absorb();
        self.check_writes()?;
        codec::check_payload(&header, &payload).map_err(|fault| DiskError::Header { fault })?;
        let EncodedHeader { bytes, head } =
            header.encode().map_err(|fault| DiskError::Header { fault })?;
        let (wanted, budget) = (Self::file_bytes(&header), self.config.bytes_max);
        let free = budget.saturating_sub(self.index.bytes());
        if wanted > free {
            return Err(DiskError::Full { wanted, free, budget });
        }
        self.check_operations()?;
        let most = self.config.queue_bytes_max;
        let queued = header.record_bytes();
        if !self.queue.wait_for_room(queued, most, self.config.queue_wait_max) {
            return Err(DiskError::QueueFull { most, found: self.queue.bytes(), unit: "bytes" });
        }
        // While it waited, the tier may have found out that it cannot write.
        self.check_writes()?;
        let id = RecordId(self.next_id);
        let header = EncodedHeader { bytes, head: head.clone() };
        self.queue.push(Job::Write { id, header, payload })?;
        self.next_id += 1;
        self.operations += 1;
        let holds = Holds::Record { head, found: false };
        self.index.insert(id, Entry { bytes: wanted, modified: SystemTime::now(), holds });
        Ok(id)
    }

    /// Queues a record to be read, behind what was queued before.
    ///
    /// # Errors
    /// [`DiskError::Unknown`] if there is no such record, [`DiskError::QueueFull`] if too much was
    /// read and not polled, [`DiskError::Stopped`].
    pub fn read(&mut self, id: RecordId) -> Result<Ticket, DiskError> {
        self.absorb();
        let head = self.index.head(id).ok_or(DiskError::Unknown { id: id.0 })?;
        let (checksum, bytes) = (head.checksum, head.payload_bytes);
        self.check_operations()?;
        let (found, most) = (self.reads.values().sum::<u64>(), self.config.read_bytes_max);
        if found > 0 && found.saturating_add(bytes) > most {
            return Err(DiskError::QueueFull { most, found, unit: "bytes read" });
        }
        let ticket = Ticket(self.next_ticket);
        self.queue.push(Job::Read { id, ticket: ticket.0, head: checksum })?;
        self.next_ticket += 1;
        self.operations += 1;
        self.reads.insert(ticket, bytes);
        Ok(ticket)
    }

    /// Waits for one read; the other completions are left for [`DiskTier::poll`]. `None` if it is
    /// not done by `deadline`, or was handed out before.
    pub fn wait(&mut self, ticket: Ticket, deadline: Instant) -> Option<Result<Bytes, DiskError>> {
        loop {
            self.absorb();
            let place = self.ready.iter().position(
                |done| matches!(done, Completion::Read { ticket: found, .. } if *found == ticket),
            );
            if let Some(place) = place {
                let done = self.ready.remove(place)?;
                self.hand_out(&done);
                let Completion::Read { result, .. } = done else { return None };
                return Some(result);
            }
            if !self.reads.contains_key(&ticket) || !self.queue.wait_until_done(deadline) {
                return None;
            }
        }
    }

    /// Removes a record; its bytes are free from now on. One that is not there is removed already.
    pub fn remove(&mut self, id: RecordId) {
        // Once the thread has ended, the file stays for the next start.
        if self.index.begin_removal(id) && self.queue.push(Job::Remove { id }).is_err() {
            self.index.end_removal(id, true);
        }
    }

    /// Bytes of the records of models that are not in `keep`, and of files that nobody can read.
    pub fn foreign_bytes(&self, keep: &HashSet<u64>) -> u64 {
        self.index.foreign_bytes(keep)
    }

    /// Removes records of models that are not in `keep`, and files that nobody can read, least
    /// recently written first, until `bytes` are freed or none is left. Returns the bytes freed.
    pub fn remove_oldest_foreign(&mut self, bytes: u64, keep: &HashSet<u64>) -> u64 {
        self.absorb();
        let before = self.index.bytes();
        for id in self.index.oldest_foreign(bytes, keep) {
            self.remove(id);
        }
        before - self.index.bytes()
    }

    /// The oldest completion that was not handed out.
    pub fn poll(&mut self) -> Option<Completion> {
        self.absorb();
        let done = self.ready.pop_front()?;
        self.hand_out(&done);
        Some(done)
    }

    /// Waits until everything that was queued is done; false if it is not by `deadline`, or will
    /// never be. Completions are left for [`DiskTier::poll`].
    pub fn flush(&mut self, deadline: Instant) -> bool {
        let idle = self.queue.wait_until_idle(deadline);
        self.absorb();
        idle && self.queue.check_running().is_ok()
    }

    /// Bytes that wait to be written.
    pub fn pending_bytes(&self) -> u64 {
        self.queue.bytes()
    }

    /// What has happened since the tier was opened, as far as it was polled.
    pub fn counters(&self) -> DiskCounters {
        DiskCounters { breaks: self.queue.breaks(), ..self.counters }
    }

    /// How the tier stands now.
    pub fn status(&self) -> DiskStatus {
        let stopped = self.queue.check_running().err().map(|error| error.to_string());
        DiskStatus {
            records: self.index.records(),
            bytes: self.index.bytes(),
            bytes_max: self.config.bytes_max,
            pending_bytes: self.queue.bytes(),
            broken: stopped.or_else(|| self.queue.broken().map(|broken| broken.cause)),
        }
    }

    /// The snapshots that were named; none if there is no manifest.
    ///
    /// # Errors
    /// [`DiskError::Manifest`] if it is damaged, [`DiskError::Io`] if it cannot be read.
    pub fn read_manifest(&self) -> Result<Vec<ManifestEntry>, DiskError> {
        let Some(bytes) = self.directory.read_manifest()? else { return Ok(Vec::new()) };
        let path = self.directory.manifest_path();
        manifest::decode(&bytes).map_err(|reason| DiskError::Manifest { path, reason })
    }

    /// Queues the manifest to be replaced. Only the last one that waits is written.
    ///
    /// # Errors
    /// [`DiskError::Manifest`] if it is too long, [`DiskError::Broken`] and [`DiskError::Stopped`]
    /// if the tier does not write.
    pub fn write_manifest(&mut self, snapshots: &[ManifestEntry]) -> Result<(), DiskError> {
        self.check_writes()?;
        let path = self.directory.manifest_path();
        let bytes =
            manifest::encode(snapshots).map_err(|reason| DiskError::Manifest { path, reason })?;
        self.queue.push(Job::Manifest { bytes })
    }

    /// What the file of a record holds, or `None` if it was refused and removed.
    fn examine(&mut self, id: RecordId) -> Option<Holds> {
        let error = match self.directory.read_head(id) {
            Ok(head) => return Some(Holds::Record { head, found: true }),
            Err(error) => error,
        };
        if let DiskError::Record { fault: RecordFault::Version { .. }, .. } = &error {
            // An older or newer server can read it, and one may come back: it goes when the room is
            // needed, and counts until then.
            tracing::warn!(%error, "disk cache: record of another version left alone");
            self.counters.other_version += 1;
            return Some(Holds::Leftover);
        }
        self.count_unread(&error);
        let removed = refuse(&self.directory, id, &error);
        (!removed).then_some(Holds::Leftover)
    }

    /// The budget may be smaller than that of the server before us.
    fn fit_budget(&mut self) {
        let over = self.index.bytes().saturating_sub(self.config.bytes_max);
        if over > 0 {
            let freed = self.remove_oldest_foreign(over, &HashSet::new());
            tracing::info!(freed, "disk cache: oldest records removed to fit the budget");
        }
    }

    fn log_opened(&self) {
        let models = self.fingerprints().len();
        let DiskStatus { records, bytes, bytes_max, .. } = self.status();
        let DiskCounters { refused, temporary, other_version, .. } = self.counters;
        tracing::info!(
            directory = %self.config.directory.display(),
            records,
            models,
            bytes,
            bytes_max,
            refused,
            temporary,
            other_version,
            "disk cache: opened"
        );
    }

    fn check_writes(&self) -> Result<(), DiskError> {
        self.queue.check_running()?;
        match self.queue.broken() {
            Some(broken) if !broken.is_over() => Err(broken.error()),
            _ => Ok(()),
        }
    }

    fn check_operations(&self) -> Result<(), DiskError> {
        if self.operations < OPERATIONS_MAX {
            return Ok(());
        }
        let (most, found) = (OPERATIONS_MAX as u64, self.operations as u64);
        Err(DiskError::QueueFull { most, found, unit: "operations" })
    }

    /// Takes notice of what the I/O thread has done.
    fn absorb(&mut self) {
        while let Some(done) = self.queue.take_done() {
            let completion = self.settle(done);
            self.ready.extend(completion);
        }
    }

    fn settle(&mut self, done: Done) -> Option<Completion> {
        match done {
            Done::Write { id, result: Ok(()), .. } => {
                self.counters.written += 1;
                self.counters.written_bytes += self.index.bytes_of(id);
                Some(Completion::Written { id })
            }
            Done::Write { id, result: Err(error), left } => {
                self.counters.write_failures += 1;
                self.index.give_up(id, !left);
                Some(Completion::WriteFailed { id, error })
            }
            Done::Read { id, ticket, result, removed } => {
                match &result {
                    Ok(payload) => {
                        self.counters.read += 1;
                        self.counters.read_bytes += payload.len() as u64;
                    }
                    Err(error) => {
                        self.count_unread(error);
                        if error.is_lost() {
                            self.index.give_up(id, removed);
                        }
                    }
                }
                Some(Completion::Read { ticket: Ticket(ticket), id, result })
            }
            Done::Remove { id, result } => {
                self.counters.removed += u64::from(result.is_ok());
                self.index.end_removal(id, result.is_ok());
                None
            }
        }
    }

    fn count_unread(&mut self, error: &DiskError) {
        let lost = error.is_lost();
        let counter =
            if lost { &mut self.counters.refused } else { &mut self.counters.read_failures };
        *counter += 1;
    }

    fn hand_out(&mut self, done: &Completion) {
        self.operations -= 1;
        if let Completion::Read { ticket, .. } = done {
            self.reads.remove(ticket);
        }
    }
}

impl Drop for DiskTier {
    fn drop(&mut self) {
        self.queue.close();
        if let Some(thread) = self.thread.take() {
            // A panic was caught and told by the thread itself.
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for DiskTier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiskTier")
            .field("config", &self.config)
            .field("status", &self.status())
            .finish()
    }
}
