//! The disk tier: cached state in files that a restarted server finds again.
//!
//! Knows nothing of the trie. A record is one span or point with the path it belongs to; it is whole
//! and verified, or it is refused. Losing any of it costs time, never a wrong token.

mod codec;
mod directory;
mod error;
mod files;
mod index;
mod manifest;
mod queue;
mod record;
mod report;
#[cfg(test)]
mod tests;
mod tier;
mod worker;

pub use codec::{DecodeLimits, Decoder, PIECE_BYTES, Record, encode};
pub use directory::{LOCK, MANIFEST, RECORD_EXTENSION, RECORDS, RecordId, TEMPORARY_EXTENSION};
pub use error::{DiskError, RecordFault};
pub use files::holder;
pub use manifest::{MANIFEST_BYTES_MAX, MANIFEST_VERSION, ManifestEntry};
pub use record::{
    BLOCK_BYTES, HEAD_BYTES_MAX, MAGIC, PAGE_TOKENS_MAX, PAYLOAD_BYTES_MAX, RecordHeader,
    RecordKind, SALT_BYTES_MAX, TOKENS_MAX, VERSION_MAJOR, VERSION_MINOR,
};
pub use report::{Completion, DiskCounters, DiskStatus, Ticket};
pub use tier::{DiskConfig, DiskTier, OPERATIONS_MAX};
pub use worker::Notify;
