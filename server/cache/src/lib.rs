//! What is remembered, in which tier, within which budget: the ledger of bytes and the trie of
//! prefixes.
//!
//! Holds no tensors and knows no model: what it keeps is opaque and says only how big it is.
#![forbid(unsafe_code)]

pub mod disk;
mod error;
mod footprint;
mod ledger;
mod storage;
mod trie;

pub use error::Error;
pub use footprint::Footprint;
pub use ledger::{Budgets, Class, Ledger, Reclassified, Reservation, Snapshot, Tier, TierSnapshot};
pub use storage::{Place, Refused, Storage};
pub use trie::{
    Adopted, CostModel, DomainId, DomainKey, DomainShape, Event, EventLog, Lagged, Landmark,
    LeaseId, Lost, MEDIA_BIT, Match, NodeView, PageStart, Policy, Reason, SnapshotId, SnapshotSpec,
    SnapshotView, Stretch, Trie, TrieConfig, TrieCounters, What, is_media, media_symbol,
};
