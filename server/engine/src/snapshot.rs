//! Snapshots as a caller sees them: restore points with a name, made, listed, dropped and moved to
//! another server.

use std::time::Duration;

use bytes::Bytes;
use sconce_cache::Tier;

use crate::request::Request;

/// What is to be remembered, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct SnapshotRequest {
    /// Whose prompt is remembered; what it says of the completion means nothing.
    pub request: Request,
    /// The name; a snapshot of the same model that has it already is replaced.
    pub name: String,
    /// Never evicts it.
    pub pinned: bool,
    /// Lets it go after so long; `None` for never.
    pub ttl: Option<Duration>,
}

/// A snapshot that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Identity, made by the engine.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Name of the model it belongs to.
    pub model: String,
    /// Requests of which salt resume from it.
    pub salt: Option<String>,
    /// Tokens it covers.
    pub tokens: usize,
    /// Bytes of the state of all of its tokens, shared with others or not.
    pub bytes: u64,
    /// The slowest tier in which a part of it lies.
    pub tier: Tier,
    /// Whether it is never evicted.
    pub pinned: bool,
    /// What is left of its life; `None` for no end.
    pub ttl: Option<Duration>,
}

/// A snapshot on its way between servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotFile {
    /// Which weights computed it.
    pub fingerprint: u64,
    /// Tokens it covers.
    pub tokens: usize,
    /// The name it had.
    pub name: String,
    /// Whether it was never evicted.
    pub pinned: bool,
    /// What was left of its life; `None` for no end.
    pub ttl: Option<Duration>,
    /// Bytes of `content`.
    pub bytes: u64,
    /// Records as on disk: one or more of spans in order, then the state at the end, if the model
    /// has such.
    pub content: Vec<Bytes>,
}
