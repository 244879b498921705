//! What the engine remembers: the trie over all models, the tiers under it, and what each sequence
//! has to do with both.
//!
//! The device thread owns it. A model's own part of it is reached through [`Memory`], which borrows
//! the model's pool for as long as something is moved.

mod disk;
mod domains;
mod hands;
#[cfg(test)]
mod hands_tests;
mod keep;
mod memory;
mod offsets;
mod payload;
mod resume;
mod snapshots;
mod status;
mod transfer;

use std::time::{Duration, Instant};

use sconce_cache::disk::{DiskError, Notify};
use sconce_cache::{DomainId, Ledger, Lost, Trie, TrieConfig};
use sconce_models::StatePool;

use self::disk::Disk;
use self::domains::Domains;
use self::hands::{Hands, Sizes};
pub(crate) use self::memory::{Footing, Memory, Parting, Preparation};
pub use self::offsets::Spacing;
use self::payload::{Point, Span};
pub use self::status::{CacheEvents, CachePicture, CacheStatus, CacheTierStatus};
pub(crate) use self::transfer::{Export, Import};
use crate::config::CacheConfig;

/// See the module.
pub(crate) struct Cache {
    trie: Trie<Span, Point>,
    disk: Option<Disk>,
    domains: Domains,
    spacing: Spacing,
    save_time_max: Duration,
    /// Whether any tier keeps anything.
    on: bool,
    status: CacheStatus,
    /// Times of the trie count from here.
    began: Instant,
    /// The last time that the device thread looked.
    now: Instant,
    exports: Vec<Export>,
    /// What the first event of the trie is numbered: above all events of a cache before this one.
    first_event: u64,
}

impl Cache {
    /// An empty cache, with what an earlier server left in `config.directory`. `notify` is called
    /// when a file was read or written.
    ///
    /// # Errors
    /// The directory cannot be had.
    pub(crate) fn new(
        config: &CacheConfig,
        ledger: &Ledger,
        began: Instant,
        notify: Notify,
    ) -> Result<Self, DiskError> {
        let mut disk = domains::open_disk(config, notify)?;
        let limits = config.limits(disk.is_some());
        let domains = Domains::new(disk.as_mut());
        let trie_config = TrieConfig { policy: config.policy, ..TrieConfig::new(limits) };
        Ok(Self {
            trie: Trie::new(trie_config, ledger),
            disk,
            domains,
            spacing: config.spacing,
            save_time_max: config.save_time_max,
            on: [limits.device, limits.host, limits.disk].into_iter().any(|bytes| bytes > 0),
            status: CacheStatus::new(limits),
            began,
            now: began,
            exports: Vec::new(),
            first_event: 0,
        })
    }

    /// What was counted so far, for a cache that takes this one's place.
    pub(crate) fn counted(&self) -> CacheStatus {
        self.status
    }

    /// Goes on counting from what another cache of the same settings has counted.
    pub(crate) fn count_from(&mut self, counted: CacheStatus) {
        self.status = counted;
    }

    /// Takes the place of a cache whose next event would have been number `next`: whoever followed
    /// that is told that he lags.
    pub(crate) fn succeed(&mut self, next: u64) {
        self.first_event = next + 1;
    }

    /// The number of the next event.
    pub(crate) fn next_event(&self) -> u64 {
        self.first_event + self.trie.events().next()
    }

    /// The part of a model whose state is in `pool`.
    pub(crate) fn memory<'a>(
        &'a mut self,
        pool: &'a mut StatePool,
        domain: Option<DomainId>,
    ) -> Memory<'a> {
        Memory::new(self, pool, domain)
    }

    /// Tells it the time, as of which it answers, and lets snapshots go whose time is over.
    pub(crate) fn turn_to(&mut self, now: Instant) {
        self.now = now;
        self.expire(now);
    }

    /// Takes in what was read and written.
    pub(crate) fn poll(&mut self) {
        if let Some(disk) = self.disk.as_mut() {
            disk.poll();
        }
    }

    /// Whether files turned out to be lost. Whoever has found something must look again then, after
    /// [`forget_lost`](Self::forget_lost).
    pub(crate) fn has_lost(&self) -> bool {
        self.disk.as_ref().is_some_and(Disk::has_lost)
    }

    /// Forgets what lay in files that are lost, with what follows it.
    pub(crate) fn forget_lost(&mut self) {
        let Some(disk) = self.disk.as_mut() else { return };
        let lost = disk.take_lost();
        let (trie, mut hands) = self.with_hands(None);
        let forgotten = trie.forget(&mut hands, &mut |payload| match payload {
            Lost::Span(span) => span.lies_in(&lost),
            Lost::Point(point) => point.lies_in(&lost),
        });
        tracing::warn!(files = lost.len(), forgotten, "remembered state was lost");
    }

    /// After a panic, when every model has left: lets go of what was on its way to requests that are
    /// gone, and verifies the rest.
    ///
    /// # Errors
    /// A rule that does not hold any more.
    pub(crate) fn recover(&mut self) -> Result<(), String> {
        if let Some(disk) = self.disk.as_mut() {
            disk.unstage_all();
        }
        let (trie, hands) = self.with_hands(None);
        trie.check_invariants(&hands)
    }

    /// What happened from event number `since` on.
    pub(crate) fn events(&self, since: u64) -> CacheEvents {
        let log = self.trie.events();
        let own = since.checked_sub(self.first_event);
        let (lagged, from) = match log.since(own.unwrap_or(0)) {
            Ok(_) => (own.is_none(), own.unwrap_or(0)),
            Err(lag) => (true, lag.oldest),
        };
        let events = log.since(from).map_or_else(|_| Vec::new(), |kept| kept.cloned().collect());
        CacheEvents { events, next: self.next_event(), lagged }
    }

    /// All that is remembered for a model without a salt, as the events that would tell of it.
    pub(crate) fn picture(&self, domain: Option<DomainId>) -> CachePicture {
        let next = self.next_event();
        let Some(domain) = domain else { return CachePicture { next, ..CachePicture::default() } };
        CachePicture {
            domain: Some(self.trie.domain_key(domain)),
            needs_points: self.trie.needs_points(domain),
            events: self.trie.picture(domain, None),
            next,
        }
    }

    /// Forgets what is remembered for a model, but for what running requests and snapshots need.
    pub(crate) fn flush(&mut self, domain: Option<DomainId>, pool: &mut StatePool) {
        let Some(domain) = domain else { return };
        let (trie, mut hands) = self.with_hands(Some(pool));
        trie.flush(&mut hands, domain);
    }

    /// Whose state on the device stands in the way of a model that holds less of it, and how many
    /// bytes of it do.
    pub(crate) fn take_shortage(&mut self) -> Option<(DomainId, u64)> {
        self.trie.take_shortage()
    }

    /// Whether [`take_shortage`](Self::take_shortage) has something to say.
    pub(crate) fn has_shortage(&self) -> bool {
        self.trie.has_shortage()
    }

    /// What the cache did, and holds.
    pub(crate) fn status(&self) -> CacheStatus {
        let mut status = CacheStatus {
            trie: self.trie.counters(),
            events: self.next_event(),
            disk: self.disk.as_ref().map_or_else(Default::default, Disk::counters),
            ..self.status
        };
        for (tier, bytes) in status.tiers.iter_mut().zip(status.trie.bytes) {
            tier.used_bytes = bytes;
        }
        status
    }

    /// The trie, and hands for a model.
    fn with_hands<'a>(
        &'a mut self,
        pool: Option<&'a mut StatePool>,
    ) -> (&'a mut Trie<Span, Point>, Hands<'a>) {
        let sizes = pool.as_ref().map_or_else(Sizes::default, |pool| Sizes::of(pool));
        (&mut self.trie, Hands { pool, disk: self.disk.as_mut(), sizes })
    }
}
