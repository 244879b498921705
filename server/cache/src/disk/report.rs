//! What the disk tier tells its owner: operations that have come to their end, counters, status.

use bytes::Bytes;

use super::directory::RecordId;
use super::error::DiskError;

/// A read that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub(super) u64);

/// An operation that has come to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Completion {
    /// The record lies on the disk and outlives a loss of power.
    Written {
        /// Which record.
        id: RecordId,
    },
    /// The record was not written and is not in the tier.
    WriteFailed {
        /// Which record.
        id: RecordId,
        /// Why.
        error: DiskError,
    },
    /// A read is done.
    Read {
        /// Which read.
        ticket: Ticket,
        /// Which record.
        id: RecordId,
        /// The payload; or why there is none. After [`DiskError::Record`] the record is no longer in
        /// the tier, after other errors it is.
        result: Result<Bytes, DiskError>,
    },
}

/// What has happened since the tier was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskCounters {
    /// Records written.
    pub written: u64,
    /// Bytes of the records written, in whole blocks.
    pub written_bytes: u64,
    /// Records that could not be written.
    pub write_failures: u64,
    /// Records read and verified.
    pub read: u64,
    /// Bytes of the payloads read.
    pub read_bytes: u64,
    /// Records that could not be read for want of a working disk.
    pub read_failures: u64,
    /// Records that were damaged, replaced or missing.
    pub refused: u64,
    /// Records removed at their owner's wish.
    pub removed: u64,
    /// Temporary files of a process that was killed, removed at the start.
    pub temporary: u64,
    /// Records of another version of the format, left alone at the start.
    pub other_version: u64,
    /// How often the tier had to stop writing for a while.
    pub breaks: u64,
}

/// The disk tier as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskStatus {
    /// Records in the tier.
    pub records: usize,
    /// Bytes they take, in whole blocks, with those that are still to be written.
    pub bytes: u64,
    /// Most bytes they may take.
    pub bytes_max: u64,
    /// Bytes that wait to be written.
    pub pending_bytes: u64,
    /// Why nothing is written at the moment.
    pub broken: Option<String>,
}
