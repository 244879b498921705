//! One model's part of the cache: its pool, the trie, room in the one at the expense of the other,
//! and what is told of both. How a sequence starts from it is `resume.rs`, what it leaves `keep.rs`.

use std::sync::Arc;

use sconce_cache::{DomainId, LeaseId, Match, NodeView, Reason, What};
use sconce_models::{PointId, StatePool};

use super::Cache;
use super::payload::Record;
use crate::event::CacheReport;
use crate::request::CacheUse;
use crate::sequence::Sequence;

/// Where a sequence stands in the cache.
#[derive(Debug)]
pub(crate) struct Footing {
    /// What it resumed from and has left behind since.
    pub(super) lease: Option<LeaseId>,
    /// What was found when the lease began.
    pub(super) found: Match,
    /// Files that are being read for it.
    pub(super) reading: Vec<Arc<Record>>,
    /// Whether files are still to be read for it, when others have used theirs.
    pub(super) postponed: bool,
    /// Whether another model was asked for room for it.
    pub(super) asked: bool,
    /// Offsets at which its state is to be kept, ascending; those behind it are done.
    pub(super) points: Vec<usize>,
    /// States that the step at work keeps.
    pub(super) emitted: Vec<(usize, PointId)>,
    /// Bytes that were brought to the device for it.
    pub(super) restored_bytes: u64,
}

impl Default for Footing {
    fn default() -> Self {
        Self {
            lease: None,
            found: Match::nothing(Reason::Disabled),
            reading: Vec::new(),
            postponed: false,
            asked: false,
            points: Vec::new(),
            emitted: Vec::new(),
            restored_bytes: 0,
        }
    }
}

impl Footing {
    /// Whether it keeps anything from being evicted.
    pub(crate) fn is_held(&self) -> bool {
        self.lease.is_some()
    }
}

/// One model's state, and what is remembered for it.
pub(crate) struct Memory<'a> {
    pub(crate) pool: &'a mut StatePool,
    pub(super) cache: &'a mut Cache,
    /// `None` for a model that nothing is remembered for.
    pub(super) domain: Option<DomainId>,
}

/// How a sequence lets its state go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parting {
    /// A step has failed, or a panic came, and nobody knows what it has left.
    Failed,
    /// To come back.
    Paused,
    /// For good.
    Done,
}

/// Whether a sequence could be opened now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Preparation {
    /// Files have to be read first, or another model has to give up some of its room.
    Reading,
    /// It takes so many free pages.
    Ready { pages: usize },
}

impl<'a> Memory<'a> {
    pub(super) fn new(
        cache: &'a mut Cache,
        pool: &'a mut StatePool,
        domain: Option<DomainId>,
    ) -> Self {
        let domain = domain.filter(|_| cache.on);
        Self { pool, cache, domain }
    }

    /// What the caller is told of the sequence's start.
    pub(crate) fn report(&mut self, sequence: &Sequence, resumed: usize) -> CacheReport {
        let found = match (self.domain, sequence.cache.bypass) {
            (None, _) => Match::nothing(Reason::Disabled),
            (_, true) => Match::nothing(Reason::Bypassed),
            _ => sequence.footing.found,
        };
        let restored_bytes = sequence.footing.restored_bytes;
        let report =
            CacheReport { restored_bytes, ..report(&found, resumed, sequence.prompt_tokens) };
        self.cache.status.count(&report);
        report
    }

    pub(super) fn make_room_for_point(&mut self) -> bool {
        self.evict(What::Points, |pool| pool.points_free() > 0)
    }

    /// Has at least `pages` pages free, at the expense of what is remembered; whether it has.
    pub(crate) fn free_pages(&mut self, pages: usize) -> bool {
        self.evict(What::Pages, |pool| pool.pages_free() >= pages)
    }

    /// Gives up what is worth least of what is remembered on the device, until it is `bytes` less.
    pub(crate) fn give_bytes(&mut self, bytes: u64) {
        let layout = self.pool.layout();
        let (page, point) = (layout.bytes_per_page(), layout.bytes_per_sequence());
        let free =
            |pool: &StatePool| pool.pages_free() as u64 * page + pool.points_free() as u64 * point;
        let wanted = free(self.pool).saturating_add(bytes);
        // Points leave with their spans, and alone only where that is not enough.
        for what in [What::Pages, What::Points] {
            if self.evict(what, |pool| free(pool) >= wanted) {
                return;
            }
        }
    }

    fn evict(&mut self, what: What, enough: impl Fn(&StatePool) -> bool) -> bool {
        if enough(self.pool) {
            return true;
        }
        let Some(domain) = self.domain else { return false };
        let (trie, mut hands) = self.cache.with_hands(Some(self.pool));
        trie.evict(&mut hands, domain, what, &mut |hands| {
            hands.pool.as_deref().is_some_and(&enough)
        })
    }
}

impl Cache {
    /// What a prompt would resume now.
    pub(crate) fn look(
        &self,
        domain: Option<DomainId>,
        used: &CacheUse,
        prompt: &[u32],
    ) -> CacheReport {
        let found = match domain.filter(|_| self.on) {
            None => Match::nothing(Reason::Disabled),
            Some(_) if used.bypass => Match::nothing(Reason::Bypassed),
            Some(domain) => self.trie.lookup(domain, used.salt.as_deref(), prompt),
        };
        report(&found, found.resumed, prompt.len())
    }

    /// What is remembered for a model under the salts that are `told`, as a tree.
    pub(crate) fn describe(
        &self,
        domain: Option<DomainId>,
        told: impl Fn(Option<&str>) -> bool,
    ) -> Vec<NodeView> {
        domain.map_or_else(Vec::new, |domain| self.trie.describe_where(domain, told))
    }
}

fn report(found: &Match, resumed: usize, prompt_tokens: usize) -> CacheReport {
    CacheReport {
        matched: found.matched,
        resumed,
        recomputed: prompt_tokens - resumed,
        tier: found.tier.filter(|_| resumed > 0),
        // Some of what was found could not be brought in.
        reason: if resumed < found.resumed { Reason::Evicted } else { found.reason },
        divergence: found.divergence,
        restored_bytes: 0,
    }
}
