//! The trie: what is remembered of which prefix, in which tier, and what makes room for what.
//!
//! A compressed trie over symbols for each namespace (a model and a salt). An edge carries a *span*
//! (state per token), the end of an edge may carry a *point* (state at one offset). The payloads
//! are opaque: the trie is told their sizes and tells a [`Storage`](crate::Storage) what to do.
//!
//! What is true after every operation ([`Trie::check_invariants`]):
//! - siblings differ in their first symbol, and spans are contiguous;
//! - no span is in a faster tier than the span before it, no point in a faster one than its span;
//! - what lies in a tier is within its limit, and in the ledger to the byte;
//! - leased and pinned state is there.

mod account;
mod adopt;
mod attach;
mod check;
mod close;
mod config;
mod describe;
mod domain;
mod events;
mod extend;
mod find;
mod lease;
mod leave;
mod node;
mod notes;
mod page_in;
mod room;
mod shape;
mod snapshots;
mod symbol;
mod value;

use std::collections::{BTreeMap, BTreeSet};

use account::Accounts;
use domain::{Domain, Namespaces};
use lease::Lease;
use node::{Arena, NodeId};
use snapshots::Snapshots;
use value::Candidates;

use crate::ledger::Ledger;

pub use adopt::{Adopted, Lost};
pub use config::{CostModel, DomainId, DomainKey, DomainShape, Policy, TrieConfig};
pub use describe::{NodeView, TrieCounters};
pub use events::{Event, EventLog, Lagged, Landmark, PageStart, Stretch};
pub use find::{Match, Reason};
pub use lease::LeaseId;
pub use room::What;
pub use snapshots::{SnapshotId, SnapshotSpec, SnapshotView};
pub use symbol::{MEDIA_BIT, is_media, media_symbol};

/// Remembers state of type `A` along edges and of type `B` at offsets.
///
/// One thread owns it. Operations that move or free payloads are lent a
/// [`Storage`](crate::Storage); on the device they touch payloads of the domain that they are
/// called for and of no other, so that the storage needs to know the pool of one model only.
pub struct Trie<A, B> {
    config: TrieConfig,
    nodes: Arena<A, B>,
    domains: Vec<Domain>,
    namespaces: Namespaces,
    leases: BTreeMap<LeaseId, Lease>,
    leases_made: u64,
    /// Grows with each lease: the clock by which uses age.
    tick: u64,
    candidates: Candidates,
    accounts: Accounts,
    /// Nodes below the device that may have become a chain with their only child.
    chains: BTreeSet<NodeId>,
    /// Ghosts without children, oldest first.
    ghosts: BTreeSet<(u64, NodeId)>,
    ghosts_made: u64,
    /// What all ghosts together count; see [`TrieConfig::ghost_tokens_max`].
    ghost_tokens: usize,
    snapshots: Snapshots,
    /// Who found no room on the device last, and for how many bytes.
    shortage: Option<(DomainId, u64)>,
    log: EventLog,
    counters: TrieCounters,
}

impl<A, B> Trie<A, B> {
    /// An empty trie. Cached bytes of host and disk are reserved in `ledger`; those of the device
    /// are taken out of what is reserved there as [`LiveState`](crate::Class::LiveState), the pools
    /// that they lie in.
    pub fn new(config: TrieConfig, ledger: &Ledger) -> Self {
        Self {
            config,
            nodes: Arena::new(),
            domains: Vec::new(),
            namespaces: Namespaces::default(),
            leases: BTreeMap::new(),
            leases_made: 0,
            tick: 0,
            candidates: Candidates::default(),
            accounts: Accounts::new(ledger),
            chains: BTreeSet::new(),
            ghosts: BTreeSet::new(),
            ghosts_made: 0,
            ghost_tokens: 0,
            snapshots: Snapshots::default(),
            shortage: None,
            log: EventLog::new(config.events_max, config.event_tokens_max),
            counters: TrieCounters::default(),
        }
    }

    /// How it was configured.
    pub fn config(&self) -> &TrieConfig {
        &self.config
    }

    /// What happened, for subscribers.
    pub fn events(&self) -> &EventLog {
        &self.log
    }
}
