//! The account of the tier's files: what each holds and takes, and which may go first. No files are
//! touched here.

use std::collections::{BTreeMap, HashSet};
use std::time::SystemTime;

use super::directory::RecordId;
use super::record::{Head, RecordKind};

/// One file of the tier.
pub(super) struct Entry {
    /// What it takes, in whole blocks.
    pub(super) bytes: u64,
    pub(super) modified: SystemTime,
    pub(super) holds: Holds,
}

/// What a file is good for.
pub(super) enum Holds {
    /// A record; `found`: it was there when the tier was opened.
    Record { head: Head, found: bool },
    /// Something that nobody can read and that takes room.
    Leftover,
}

impl Entry {
    fn head(&self) -> Option<&Head> {
        match &self.holds {
            Holds::Record { head, .. } => Some(head),
            Holds::Leftover => None,
        }
    }

    fn is_foreign(&self, keep: &HashSet<u64>) -> bool {
        self.head().is_none_or(|head| !keep.contains(&head.fingerprint))
    }
}

/// The files of the tier, those that are queued to be written included.
#[derive(Default)]
pub(super) struct Index {
    entries: BTreeMap<RecordId, Entry>,
    /// Sum of the bytes of `entries`.
    bytes: u64,
    /// Bytes of the files whose removal is queued.
    removing: BTreeMap<RecordId, u64>,
}

impl Index {
    /// Counts a file; numbers are never given twice.
    pub(super) fn insert(&mut self, id: RecordId, entry: Entry) {
        self.bytes += entry.bytes;
        self.entries.insert(id, entry);
    }

    /// Bytes of all files.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many files hold a record.
    pub(super) fn records(&self) -> usize {
        self.entries.values().filter(|entry| entry.head().is_some()).count()
    }

    /// The head of a record.
    pub(super) fn head(&self, id: RecordId) -> Option<&Head> {
        self.entries.get(&id).and_then(Entry::head)
    }

    /// What a file takes, or took before its removal was queued.
    pub(super) fn bytes_of(&self, id: RecordId) -> u64 {
        let bytes = self.entries.get(&id).map(|entry| entry.bytes);
        bytes.or_else(|| self.removing.get(&id).copied()).unwrap_or_default()
    }

    /// Records and bytes of each fingerprint.
    pub(super) fn models(&self) -> BTreeMap<u64, (usize, u64)> {
        let mut models: BTreeMap<u64, (usize, u64)> = BTreeMap::new();
        for entry in self.entries.values() {
            if let Some(head) = entry.head() {
                let (records, bytes) = models.entry(head.fingerprint).or_default();
                *records += 1;
                *bytes += entry.bytes;
            }
        }
        models
    }

    /// The records of a model that were there at the start, what is above before what is below.
    pub(super) fn found(&self, fingerprint: u64) -> Vec<(RecordId, Head)> {
        let found = self.entries.iter().filter_map(|(id, entry)| match &entry.holds {
            Holds::Record { head, found: true } => Some((*id, head)),
            _ => None,
        });
        let mut found: Vec<(RecordId, Head)> = found
            .filter(|(_, head)| head.fingerprint == fingerprint)
            .map(|(id, head)| (id, head.clone()))
            .collect();
        found.sort_by(|(_, a), (_, b)| sort_key(a).cmp(&sort_key(b)));
        found
    }

    /// Takes a file out, whose removal is to be queued; false if there is none.
    pub(super) fn begin_removal(&mut self, id: RecordId) -> bool {
        let Some(entry) = self.entries.remove(&id) else { return false };
        self.bytes -= entry.bytes;
        self.removing.insert(id, entry.bytes);
        true
    }

    /// A removal that was begun is over. A file that could not be removed counts again.
    pub(super) fn end_removal(&mut self, id: RecordId, gone: bool) {
        if let Some(bytes) = self.removing.remove(&id).filter(|_| !gone) {
            let (modified, holds) = (SystemTime::UNIX_EPOCH, Holds::Leftover);
            self.insert(id, Entry { bytes, modified, holds });
        }
    }

    /// A record is lost. Its bytes count on if its file is not gone.
    pub(super) fn give_up(&mut self, id: RecordId, gone: bool) {
        if !gone {
            if let Some(entry) = self.entries.get_mut(&id) {
                entry.holds = Holds::Leftover;
            }
        } else if let Some(entry) = self.entries.remove(&id) {
            self.bytes -= entry.bytes;
        }
    }

    /// Bytes of records of models that are not in `keep`, and of leftovers.
    pub(super) fn foreign_bytes(&self, keep: &HashSet<u64>) -> u64 {
        self.entries.values().filter(|entry| entry.is_foreign(keep)).map(|entry| entry.bytes).sum()
    }

    /// Files of models that are not in `keep`, and leftovers, least recently written first: as many
    /// as together have `bytes`, or all.
    pub(super) fn oldest_foreign(&self, bytes: u64, keep: &HashSet<u64>) -> Vec<RecordId> {
        let mut foreign: Vec<(SystemTime, RecordId, u64)> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.is_foreign(keep))
            .map(|(id, entry)| (entry.modified, *id, entry.bytes))
            .collect();
        foreign.sort_unstable();
        let mut sum = 0;
        let enough = foreign.into_iter().take_while(|(_, _, size)| {
            let wanted = sum < bytes;
            sum += size;
            wanted
        });
        enough.map(|(_, id, _)| id).collect()
    }
}

/// By where it starts: a span builds on one that starts before it, and a point lies behind the start
/// of the span that it belongs to, perhaps in its middle.
fn sort_key(head: &Head) -> (u32, Option<&str>, u32, RecordKind, u32) {
    (head.instance, head.salt.as_deref(), head.start, head.kind, head.end)
}
