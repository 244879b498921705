//! What can go wrong with the disk tier, and why a record is refused.

use std::io;
use std::path::{Path, PathBuf};

/// Why bytes are not accepted as a record. One variant per reason; a record that is refused never
/// yields payload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordFault {
    /// The file does not begin like a record.
    #[error("not a record: expected it to begin with {expected:02x?}, found {found:02x?}")]
    Magic {
        /// The eight bytes that begin every record.
        expected: [u8; 8],
        /// The first eight bytes.
        found: [u8; 8],
    },
    /// The record is of another major version of the format.
    #[error("format version {found}.x: expected version {expected}.x")]
    Version {
        /// Major version that this program reads and writes.
        expected: u16,
        /// Major version of the record.
        found: u16,
    },
    /// A number in the head, or in a header to be written, is outside of its bounds.
    #[error("{field}: expected {expected}, found {found}")]
    Field {
        /// Which one.
        field: &'static str,
        /// What it may be.
        expected: String,
        /// What it is.
        found: u64,
    },
    /// The salt is not UTF-8.
    #[error("the salt is not UTF-8 text")]
    Salt,
    /// A part does not have the checksum that was written with it.
    #[error("checksum of the {part}: expected {expected:032x}, found {found:032x}")]
    Checksum {
        /// Which part: head, tokens or payload.
        part: &'static str,
        /// As it was written.
        expected: u128,
        /// As the bytes have it.
        found: u128,
    },
    /// The bytes end early, or go on after the end of the record.
    #[error("length of the record: expected {expected} bytes, found {found}")]
    Length {
        /// Bytes that the record has, or at least must have.
        expected: u64,
        /// Bytes that there are.
        found: u64,
    },
    /// A whole record, but not the one that was written under this name.
    #[error("another record: expected head {expected:032x}, found {found:032x}")]
    Replaced {
        /// Checksum of the head that was written.
        expected: u128,
        /// Checksum of the head that was found.
        found: u128,
    },
    /// There is no file.
    #[error("the file is missing")]
    Missing,
}

/// An operation of the disk tier that was refused or failed. Nothing of it is left on the disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// The operating system refused.
    #[error("cannot {doing} {}: {message}", path.display())]
    Io {
        /// What was tried, as a verb.
        doing: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// The kind of the system's error.
        kind: io::ErrorKind,
        /// The system's message.
        message: String,
    },
    /// Another process has the directory.
    #[error("cache directory {} is in use by {holder}: expected it to be free", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
        /// Who has it, as it says in the lock file.
        holder: String,
    },
    /// A record was refused.
    #[error("record {}: {fault}", path.display())]
    Record {
        /// Its file.
        path: PathBuf,
        /// Why.
        fault: RecordFault,
    },
    /// A record to be written has a header that does not fit it, or none that may be written.
    #[error("record not written: {fault}")]
    Header {
        /// What does not fit.
        fault: RecordFault,
    },
    /// The manifest of snapshots was refused.
    #[error("manifest {}: {reason}", path.display())]
    Manifest {
        /// Its file.
        path: PathBuf,
        /// Why: what was expected and what was found.
        reason: String,
    },
    /// The tier does not write for now; reads go on.
    #[error("the disk tier does not write since: {cause}")]
    Broken {
        /// The error that broke it.
        cause: String,
    },
    /// The I/O thread is gone; nothing is read or written until the tier is opened anew.
    #[error("the disk tier has stopped: {cause}")]
    Stopped {
        /// Why.
        cause: String,
    },
    /// There is no room for the record within the bytes that the tier may hold.
    #[error("the disk tier is full: {wanted} bytes wanted, {free} free of {budget}")]
    Full {
        /// Bytes of the record on disk.
        wanted: u64,
        /// Bytes that are free.
        free: u64,
        /// Bytes that the tier may hold.
        budget: u64,
    },
    /// Too much is waiting for the disk, or for being polled.
    #[error("the queue of the disk tier is full: expected at most {most} {unit}, found {found}")]
    QueueFull {
        /// The bound.
        most: u64,
        /// What is waiting.
        found: u64,
        /// What is counted.
        unit: &'static str,
    },
    /// A record that this tier does not hold.
    #[error("no record {id:016x} in the disk tier")]
    Unknown {
        /// The number asked for.
        id: u64,
    },
}

impl DiskError {
    /// Whether the record is gone for good: damaged, replaced or missing.
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Record { .. } | Self::Unknown { .. })
    }

    pub(super) fn io(doing: &'static str, path: &Path, error: &io::Error) -> Self {
        Self::Io { doing, path: path.into(), kind: error.kind(), message: error.to_string() }
    }

    pub(super) fn record(path: &Path, fault: RecordFault) -> Self {
        Self::Record { path: path.into(), fault }
    }
}
