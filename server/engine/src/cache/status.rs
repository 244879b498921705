//! What the cache did, in numbers: the hooks of metrics.

use sconce_cache::disk::DiskCounters;
use sconce_cache::{Budgets, DomainKey, Event, Reason, Tier, TrieCounters};

use crate::event::CacheReport;

/// Totals since the engine started, and what is held now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheStatus {
    /// Prompts that were looked up, those that bypassed the cache included.
    pub lookups: u64,
    /// Tokens that were found.
    pub matched_tokens: u64,
    /// Prompt tokens that had to be computed.
    pub recomputed_tokens: u64,
    /// One entry for each [`Tier`], fastest first.
    pub tiers: [CacheTierStatus; Tier::ALL.len()],
    /// Prompts by the reason why no more of them was resumed, in the order of [`Reason::ALL`].
    pub reasons: [u64; Reason::ALL.len()],
    /// Restore points that were not made for want of room.
    pub points_skipped: u64,
    /// Requests that asked to be pinned and were not, for want of room.
    pub pins_refused: u64,
    /// What the trie did and holds.
    pub trie: TrieCounters,
    /// The number of the next event: whoever follows
    /// [`cache_events`](crate::EngineHandle::cache_events) looks again when it has grown.
    pub events: u64,
    /// What the disk tier did; nothing where it is off.
    pub disk: DiskCounters,
}

/// What happened to what is remembered since a subscriber looked last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheEvents {
    /// Oldest first.
    pub events: Vec<Event>,
    /// The number of the event after these: where to go on.
    pub next: u64,
    /// Whether events before these are forgotten, so that a picture made from them is not whole; it
    /// starts again from [`cache_picture`](crate::EngineHandle::cache_picture).
    pub lagged: bool,
}

/// All that is remembered for a model without a salt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CachePicture {
    /// Whose state it is, as events call it; `None` where nothing is ever remembered.
    pub domain: Option<DomainKey>,
    /// Whether a prompt can be resumed only where there is a point.
    pub needs_points: bool,
    /// The events that would tell of it; what comes before comes first.
    pub events: Vec<Event>,
    /// The number of the event after these.
    pub next: u64,
}

/// One tier of the cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheTierStatus {
    /// Most bytes of cached state; 0 where the tier is off.
    pub limit_bytes: u64,
    /// Bytes of cached state.
    pub used_bytes: u64,
    /// Prompt tokens that were resumed and needed this tier, and no slower one.
    pub resumed_tokens: u64,
}

impl CacheStatus {
    /// Nothing done yet, within `limits`.
    pub(super) fn new(limits: Budgets) -> Self {
        let tier = |limit_bytes| CacheTierStatus { limit_bytes, ..CacheTierStatus::default() };
        let tiers = [limits.device, limits.host, limits.disk].map(tier);
        Self { tiers, ..Self::default() }
    }

    /// Counts what was found for a prompt.
    pub(super) fn count(&mut self, report: &CacheReport) {
        self.lookups += 1;
        self.matched_tokens += report.matched as u64;
        self.recomputed_tokens += report.recomputed as u64;
        if let Some(tier) = report.tier {
            self.tiers[tier as usize].resumed_tokens += report.resumed as u64;
        }
        self.reasons[report.reason as usize] += 1;
    }
}
