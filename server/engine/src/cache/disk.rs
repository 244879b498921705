//! Files of the disk tier as payloads hold them: shared, read ahead of use, and gone with their
//! last holder.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use sconce_cache::disk::{Completion, DiskCounters, DiskError, DiskTier, RecordHeader, RecordId};

use super::hands::Moving;
use super::payload::Record;

/// Most bytes of files that are read and not used yet. A prompt that needs more is resumed as far as
/// they reach.
pub(crate) const STAGED_BYTES_MAX: u64 = 1 << 30;

/// Most bytes of a file besides its path and its payload, blocks that are not full included.
const HEADER_BYTES_MAX: u64 = 3 * 4096;

/// The disk tier of an engine.
pub(crate) struct Disk {
    tier: DiskTier,
    /// As of the last operation that ended, for whoever asks often.
    counters: DiskCounters,
    staged: HashMap<RecordId, Staged>,
    staged_bytes: u64,
    /// Files whose bytes cannot be had; told once.
    lost: HashSet<RecordId>,
    /// Models that were loaded since the start: files of others go first.
    loaded: HashSet<u64>,
}

/// A file that is being read, or was.
struct Staged {
    bytes: u64,
    /// How many wait for it or have yet to use it.
    wanted: usize,
    content: Option<Result<Bytes, String>>,
}

impl Disk {
    /// Longest path that a file's header is counted with.
    pub(crate) const PATH_TOKENS_MAX: usize = 1 << 20;

    /// A disk tier without anything read.
    pub(crate) fn new(tier: DiskTier) -> Self {
        Self {
            counters: tier.counters(),
            tier,
            staged: HashMap::new(),
            staged_bytes: 0,
            lost: HashSet::new(),
            loaded: HashSet::new(),
        }
    }

    /// Most bytes that a file with a path of `tokens` takes besides its payload.
    pub(crate) fn overhead(tokens: usize) -> u64 {
        tokens as u64 * size_of::<u32>() as u64 + HEADER_BYTES_MAX
    }

    /// Writes a file in the background.
    ///
    /// # Errors
    /// The tier takes no more.
    pub(crate) fn write(
        &mut self,
        header: RecordHeader,
        pieces: Vec<Bytes>,
        pages: Range<usize>,
    ) -> Result<Arc<Record>, String> {
        let bytes = DiskTier::file_bytes(&header);
        let written = match self.tier.write(header.clone(), pieces.clone()) {
            // What models have left that nobody has asked for goes first.
            Err(DiskError::Full { .. })
                if self.tier.remove_oldest_foreign(bytes, &self.loaded) > 0 =>
            {
                self.tier.write(header, pieces)
            }
            written => written,
        };
        let id = written.map_err(|error| error.to_string())?;
        Ok(Arc::new(Record { id, bytes, pages }))
    }

    /// Lets a file go; it is removed when nobody else holds it.
    pub(crate) fn release(&mut self, record: Arc<Record>) {
        if let Ok(record) = Arc::try_unwrap(record) {
            self.unstage(record.id);
            self.tier.remove(record.id);
        }
    }

    /// Whether files of so many bytes may be read ahead now; whoever is alone may read at least one.
    pub(crate) fn has_room_for(&self, bytes: u64) -> bool {
        self.staged.is_empty() || self.staged_bytes + bytes <= STAGED_BYTES_MAX
    }

    /// Has a file read; to be followed by [`unwant`](Self::unwant).
    pub(crate) fn want(&mut self, record: &Record) {
        let tier = &mut self.tier;
        let bytes = &mut self.staged_bytes;
        let staged = self.staged.entry(record.id).or_insert_with(|| {
            *bytes += record.bytes;
            let content = tier.read(record.id).err().map(|error| Err(error.to_string()));
            Staged { bytes: record.bytes, wanted: 0, content }
        });
        staged.wanted += 1;
    }

    /// Whether a wanted file was read, or could not be.
    pub(crate) fn is_read(&self, record: &Record) -> bool {
        self.staged.get(&record.id).is_none_or(|staged| staged.content.is_some())
    }

    /// Gives up one wish for a file; the last one lets its bytes go.
    pub(crate) fn unwant(&mut self, record: &Record) {
        let Some(staged) = self.staged.get_mut(&record.id) else { return };
        staged.wanted -= 1;
        if staged.wanted == 0 {
            self.unstage(record.id);
        }
    }

    /// Gives up every wish for files.
    pub(crate) fn unstage_all(&mut self) {
        self.staged.clear();
        self.staged_bytes = 0;
    }

    /// The payload of a file that was read.
    ///
    /// # Errors
    /// It was not, or could not be.
    pub(crate) fn staged(&self, record: &Record) -> Result<Bytes, Moving> {
        match self.staged.get(&record.id).and_then(|staged| staged.content.as_ref()) {
            Some(Ok(bytes)) => Ok(bytes.clone()),
            Some(Err(problem)) => Err(Moving::Stays(problem.clone())),
            None => Err(Moving::Stays("it was not read yet".to_owned())),
        }
    }

    /// Takes in what the tier has done.
    pub(crate) fn poll(&mut self) {
        let mut told = false;
        while let Some(completion) = self.tier.poll() {
            told = true;
            match completion {
                Completion::Written { .. } => {}
                Completion::WriteFailed { id, error } => {
                    tracing::warn!(%error, "remembered state was not written and is lost");
                    self.lost.insert(id);
                }
                Completion::Read { id, result, .. } => {
                    if result.as_ref().is_err_and(DiskError::is_lost) {
                        self.lost.insert(id);
                    }
                    // Gone if nobody wants it any more.
                    if let Some(staged) = self.staged.get_mut(&id) {
                        staged.content = Some(result.map_err(|error| error.to_string()));
                    }
                }
            }
        }
        if told {
            self.counters = self.tier.counters();
        }
    }

    /// What the tier has done and what went wrong, as of the last operation that ended.
    pub(crate) fn counters(&self) -> DiskCounters {
        self.counters
    }

    /// Whether a file turned out to be lost since [`take_lost`](Self::take_lost).
    pub(crate) fn has_lost(&self) -> bool {
        !self.lost.is_empty()
    }

    /// Files that turned out to be lost since the last call.
    pub(crate) fn take_lost(&mut self) -> HashSet<RecordId> {
        std::mem::take(&mut self.lost)
    }

    /// Waits until everything is written, or `deadline`; whether it is.
    pub(crate) fn flush(&mut self, deadline: Instant) -> bool {
        self.tier.flush(deadline)
    }

    /// Notes that a model was loaded, and finds what an earlier server left of it.
    pub(crate) fn find(&mut self, fingerprint: u64) -> Vec<(RecordId, RecordHeader)> {
        let mut found = Vec::new();
        if self.loaded.insert(fingerprint) {
            self.tier.scan(fingerprint, &mut |id, header| found.push((id, header)));
        }
        found
    }

    /// The tier, for what concerns no single file.
    pub(crate) fn tier(&mut self) -> &mut DiskTier {
        &mut self.tier
    }

    fn unstage(&mut self, id: RecordId) {
        if let Some(staged) = self.staged.remove(&id) {
            self.staged_bytes -= staged.bytes;
        }
    }
}
