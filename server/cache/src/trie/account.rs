//! Bytes: what each tier and domain holds, within limits, and in step with the ledger.
//!
//! A payload is counted before it arrives in a tier and until after it has left.

use super::Trie;
use super::config::DomainId;
use super::node::{Held, NodeId};
use crate::ledger::{Class, Ledger, Reclassified, Reservation, Tier};
use crate::storage::Storage;

/// The trie's part of the ledger. On the device cached bytes lie in pools that their owner has
/// reserved as live state, so there they only change class.
#[derive(Debug)]
pub(super) struct Accounts {
    device: Reclassified,
    host: Reservation,
    disk: Reservation,
}

impl Accounts {
    pub(super) fn new(ledger: &Ledger) -> Self {
        let none = "no bytes can be reserved in any ledger";
        let reserve = |tier| ledger.reserve(tier, Class::CachedState, 0).expect(none);
        Self {
            device: ledger.reclassify(Tier::Device, Class::LiveState, Class::CachedState),
            host: reserve(Tier::Host),
            disk: reserve(Tier::Disk),
        }
    }

    /// Bytes of all pools on the device.
    pub(super) fn pools(&self) -> u64 {
        self.device.of_both()
    }

    pub(super) fn used(&self, tier: Tier) -> u64 {
        match tier {
            Tier::Device => self.device.bytes(),
            Tier::Host => self.host.bytes(),
            Tier::Disk => self.disk.bytes(),
        }
    }

    /// Makes the account of a tier `bytes` large; whether the ledger allowed it.
    fn set(&mut self, tier: Tier, bytes: u64) -> bool {
        match tier {
            Tier::Device => self.device.resize(bytes),
            Tier::Host => self.host.resize(bytes),
            Tier::Disk => self.disk.resize(bytes),
        }
        .is_ok()
    }
}

impl<A, B> Trie<A, B> {
    /// Most bytes of cached state in a tier.
    pub(super) fn limit(&self, tier: Tier) -> u64 {
        let limits = self.config.limits;
        match tier {
            Tier::Device => limits.device,
            Tier::Host => limits.host,
            Tier::Disk => limits.disk,
        }
    }

    /// The fastest tier that is on: where new state is kept.
    pub(super) fn top(&self) -> Option<Tier> {
        Tier::ALL.into_iter().find(|&tier| self.limit(tier) > 0)
    }

    /// Counts `bytes` that are about to arrive in a tier; whether they fit.
    pub(super) fn charge(&mut self, domain: DomainId, tier: Tier, bytes: u64) -> bool {
        let after = self.accounts.used(tier).saturating_add(bytes);
        let fits = after <= self.limit(tier) && self.accounts.set(tier, after);
        if fits {
            self.domains[domain.0 as usize].used[tier as usize] += bytes;
        }
        fits
    }

    /// Counts `bytes` out that have left a tier.
    pub(super) fn discharge(&mut self, domain: DomainId, tier: Tier, bytes: u64) {
        let after = self.accounts.used(tier) - bytes;
        let shrunk = self.accounts.set(tier, after);
        debug_assert!(shrunk, "an account can always shrink");
        self.domains[domain.0 as usize].used[tier as usize] -= bytes;
    }

    /// Holds a payload that at most `charged` bytes were counted for.
    pub(super) fn hold_span<S>(
        &mut self,
        store: &S,
        domain: DomainId,
        span: A,
        tier: Tier,
        charged: u64,
    ) -> Held<A>
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        let bytes = store.span_bytes(&span);
        debug_assert!(bytes <= charged, "a span takes {bytes} bytes, announced as {charged}");
        self.discharge(domain, tier, charged.saturating_sub(bytes));
        let weight = bytes.max(store.span_bytes_in(&span, Tier::Host));
        Held { payload: span, tier, bytes, weight, rank: None }
    }

    /// Holds a point that at most `charged` bytes were counted for.
    pub(super) fn hold_point<S>(
        &mut self,
        store: &S,
        domain: DomainId,
        point: B,
        tier: Tier,
        charged: u64,
    ) -> Held<B>
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        let bytes = store.point_bytes(&point);
        debug_assert!(bytes <= charged, "a point takes {bytes} bytes, announced as {charged}");
        self.discharge(domain, tier, charged.saturating_sub(bytes));
        Held { payload: point, tier, bytes, weight: bytes, rank: None }
    }

    /// Puts a span into a node that has none. The caller refreshes.
    pub(super) fn put_span(&mut self, id: NodeId, held: Held<A>) {
        let tier = held.tier;
        self.nodes[id].span = Some(held);
        self.count_child(id, tier, true);
    }

    /// Takes the span out of a node, uncounted among candidates but still charged.
    pub(super) fn take_span(&mut self, id: NodeId) -> Option<Held<A>> {
        let mut held = self.nodes[id].span.take()?;
        let domain = self.namespaces[self.nodes[id].namespace].domain;
        self.candidates.replace(domain, held.tier, held.rank.take(), None);
        self.count_child(id, held.tier, false);
        Some(held)
    }

    /// Takes the point out of a node, uncounted among candidates but still charged.
    pub(super) fn take_point(&mut self, id: NodeId) -> Option<Held<B>> {
        let mut held = self.nodes[id].point.take()?;
        let domain = self.namespaces[self.nodes[id].namespace].domain;
        self.candidates.replace(domain, held.tier, held.rank.take(), None);
        Some(held)
    }

    fn count_child(&mut self, id: NodeId, tier: Tier, more: bool) {
        if let Some(parent) = self.nodes[id].parent {
            let parent = &mut self.nodes[parent];
            let count = &mut parent.children_in[tier as usize];
            *count = if more { *count + 1 } else { *count - 1 };
        }
    }
}
