//! A trie with one domain and what a test needs to drive it in few words.

use sconce_cache::{
    Budgets, Class, CostModel, DomainId, DomainKey, DomainShape, LeaseId, Ledger, Match,
    Reservation, SnapshotId, SnapshotSpec, Tier, Trie, TrieConfig,
};

use crate::storage::{Integers, Owner, PAGE, Point, Span};

pub(crate) const KEY: DomainKey = DomainKey { fingerprint: 1, instance: 0 };

pub(crate) struct Rig {
    pub(crate) trie: Trie<Span, Point>,
    pub(crate) store: Integers,
    pub(crate) ledger: Ledger,
    pub(crate) domain: DomainId,
    _pools: Reservation,
}

pub(crate) fn shape(needs_points: bool) -> DomainShape {
    DomainShape { needs_points, page_tokens: PAGE, cost: CostModel::default() }
}

pub(crate) fn budgets(device: u64, host: u64, disk: u64) -> Budgets {
    Budgets { device, host, disk }
}

/// Symbols `from..to`.
pub(crate) fn run(from: u32, to: u32) -> Vec<u32> {
    (from..to).collect()
}

/// One path and then another.
pub(crate) fn then(one: &[u32], other: &[u32]) -> Vec<u32> {
    [one, other].concat()
}

impl Rig {
    pub(crate) fn new(limits: Budgets, needs_points: bool) -> Self {
        Self::with(TrieConfig::new(limits), needs_points)
    }

    pub(crate) fn with(config: TrieConfig, needs_points: bool) -> Self {
        let ledger = Ledger::new(config.limits);
        let pools = ledger
            .reserve(Tier::Device, Class::LiveState, config.limits.device)
            .expect("the ledger is empty");
        let mut trie = Trie::new(config, &ledger);
        let domain = trie.open_domain(KEY, shape(needs_points));
        Self { trie, store: Integers::new(config.limits), ledger, domain, _pools: pools }
    }

    pub(crate) fn owner(&self) -> Owner {
        Owner { domain: KEY, salt: None }
    }

    pub(crate) fn lookup(&self, symbols: &[u32]) -> Match {
        self.trie.lookup(self.domain, None, symbols)
    }

    pub(crate) fn lease(&mut self, symbols: &[u32]) -> LeaseId {
        self.trie.lease(self.domain, None, symbols).0
    }

    /// Extends a lease over all of `symbols`; returns what it covers and how many tokens were made.
    pub(crate) fn extend(&mut self, lease: LeaseId, symbols: &[u32]) -> (usize, usize) {
        let (owner, mut made) = (self.owner(), 0);
        let make = &mut |store: &mut Integers, range: std::ops::Range<usize>| {
            made += range.len();
            Some(store.make_span(&owner, &symbols[..range.end], range.start, Tier::Device))
        };
        let covered = self.trie.extend(&mut self.store, lease, symbols, symbols.len(), make);
        self.check();
        (covered, made)
    }

    pub(crate) fn attach(&mut self, lease: LeaseId, symbols: &[u32], offset: usize) -> bool {
        let point = self.store.make_point(&self.owner(), &symbols[..offset], Tier::Device);
        let kept = self.trie.attach(&mut self.store, lease, offset, point);
        self.check();
        kept
    }

    /// A request: what it found, all its symbols kept, points at the given offsets, released.
    pub(crate) fn request(&mut self, symbols: &[u32], points: &[usize]) -> Match {
        let (lease, found) = self.trie.lease(self.domain, None, symbols);
        self.trie.page_in(&mut self.store, lease);
        self.extend(lease, symbols);
        for &offset in points {
            self.attach(lease, symbols, offset);
        }
        self.trie.release(lease);
        self.check();
        found
    }

    pub(crate) fn name(&mut self, symbols: &[u32], offset: usize, pinned: bool) -> SnapshotId {
        let lease = self.lease(&then(symbols, &[u32::MAX >> 2]));
        let spec = SnapshotSpec { name: format!("{symbols:?} {offset}"), pinned, expires: None };
        let id = self.trie.name(&mut self.store, lease, offset, spec).expect("it may be named");
        self.trie.release(lease);
        self.check();
        id
    }

    /// How many leading tokens of `symbols`, all of them, are held.
    pub(crate) fn held(&self, symbols: &[u32]) -> usize {
        self.lookup(&then(symbols, &[u32::MAX >> 2])).matched
    }

    pub(crate) fn check(&self) {
        self.trie.check_invariants(&self.store).expect("every rule holds");
        self.ledger.check_invariants();
    }
}
