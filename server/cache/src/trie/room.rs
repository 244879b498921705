//! Making room: the least valuable leaves first, and a long leaf only from its end.

use super::Trie;
use super::config::DomainId;
use super::lease::LeaseId;
use super::node::NodeId;
use super::value::{Kind, Rank};
use crate::ledger::Tier;
use crate::storage::Storage;

/// Pages of a span that leave at a time, where a span may be cut.
const TRIM_PAGES: usize = 16;

/// Which memory of a model's pool is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Pages, which spans lie in.
    Pages,
    /// Slots, which points lie in.
    Points,
}

impl<A, B> Trie<A, B> {
    /// Moves state of a domain off the device, or drops it, least valuable first, until `enough`
    /// says so. Whether it did; if not, all that is left is leased, or pinned with nowhere to go.
    pub fn evict<S>(
        &mut self,
        store: &mut S,
        domain: DomainId,
        what: What,
        enough: &mut dyn FnMut(&S) -> bool,
    ) -> bool
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        let kind = match what {
            What::Pages => Kind::Span,
            What::Points => Kind::Point,
        };
        let mut stuck = Stuck::default();
        let mut done = enough(store);
        while !done {
            let next = self.candidates.on_device(domain, kind, stuck.at);
            let Some(rank) = next else {
                if stuck.again() {
                    continue;
                }
                break;
            };
            stuck.note(rank, self.evict_one(store, rank, Tier::Device));
            done = enough(store);
        }
        self.tidy(store, Some(domain));
        done
    }

    /// Whether a domain has found no room on the device since the last call while another held more
    /// than it: that other one, and how many bytes of it should leave. Its state can be moved only
    /// by who has its pool at hand, with [`Self::evict`].
    pub fn take_shortage(&mut self) -> Option<(DomainId, u64)> {
        let (short, need) = self.shortage.take()?;
        Some((self.holder_against(short)?, need))
    }

    /// Whether [`Self::take_shortage`] has something to say.
    pub fn has_shortage(&self) -> bool {
        self.shortage.is_some_and(|(short, _)| self.holder_against(short).is_some())
    }

    /// Whether to bring in what a lease covers takes room on the device that another domain holds
    /// more of; then there is a shortage, which is to be ended first.
    pub fn is_short_of_room<S>(&mut self, store: &S, id: LeaseId) -> bool
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        let Some(domain) = self.lease_domain(id) else { return false };
        let below = self.spans(id).filter(|(_, tier, _)| *tier != Tier::Device);
        let need: u64 = below.map(|(_, _, span)| store.span_bytes_in(span, Tier::Device)).sum();
        let after = self.accounts.used(Tier::Device).saturating_add(need);
        if need > 0 && after > self.limit(Tier::Device) {
            self.shortage = Some((domain, need));
        }
        self.has_shortage()
    }

    /// The domain that has the most on the device, if that is more than `short` has.
    fn holder_against(&self, short: DomainId) -> Option<DomainId> {
        let used = |index: usize| self.domains[index].used[Tier::Device as usize];
        let most = (0..self.domains.len()).max_by_key(|&index| used(index))?;
        (used(most) > used(short.0 as usize)).then_some(DomainId(most as u32))
    }

    /// Counts `need` bytes that are to arrive in a tier, after making room for them at the expense
    /// of candidates that are worth no more than `value`; on the device, candidates of `home`.
    /// Whether it could: if not, nothing is counted, but something may have left.
    pub(super) fn make_room<S>(
        &mut self,
        store: &mut S,
        home: DomainId,
        tier: Tier,
        need: u64,
        value: u64,
    ) -> bool
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        if need > self.limit(tier) {
            return false;
        }
        let mut stuck = Stuck::default();
        while !self.charge(home, tier, need) {
            let next = self.candidates.of_tier(tier, Some(home), stuck.at);
            let Some(rank) = next.filter(|rank| rank.value <= value) else {
                if stuck.again() {
                    continue;
                }
                if tier == Tier::Device {
                    self.shortage = Some((home, need));
                }
                return false;
            };
            stuck.note(rank, self.evict_one(store, rank, tier));
        }
        true
    }

    /// Makes the least valuable candidate leave its tier, or the end of it.
    fn evict_one<S>(&mut self, store: &mut S, rank: Rank, from: Tier) -> Evicted
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        let id = rank.node;
        // What is above it may have changed since it was ranked.
        self.refresh(id);
        let node = &self.nodes[id];
        let now = match rank.kind {
            Kind::Span => node.span.as_ref().and_then(|held| held.rank),
            Kind::Point => node.point.as_ref().and_then(|held| held.rank),
        };
        if now != Some(rank) {
            return Evicted::Reranked;
        }
        let left = match rank.kind {
            Kind::Point => self.point_leaves(store, id, from, rank.value, false),
            Kind::Span => {
                self.trim(store, id, from);
                self.span_leaves(store, id, from, rank.value, false)
            }
        };
        if left { Evicted::Left } else { Evicted::Stuck }
    }

    /// Cuts off what need not leave: the part that a lease stands on, and all but the last pages of
    /// a span that can be resumed anywhere. The node keeps the end.
    fn trim<S>(&mut self, store: &mut S, id: NodeId, from: Tier)
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        let shape = self.domain_of(id).shape;
        let node = &self.nodes[id];
        let mut at = node.start;
        // Cutting a file is not worth it.
        if !shape.needs_points && from != Tier::Disk {
            let last = (node.end() - 1) / shape.page_tokens;
            at = at.max((last + 1).saturating_sub(TRIM_PAGES) * shape.page_tokens);
        }
        at = at.max(self.free_from(id).unwrap_or(at));
        if node.start < at && at < node.end() {
            self.split(store, id, at);
        }
    }
}

/// What came of a candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Evicted {
    Left,
    /// Its rank had changed; it waits in its new place.
    Reranked,
    /// It could not leave.
    Stuck,
}

/// How far the candidates were tried that could not leave.
#[derive(Debug, Default)]
struct Stuck {
    /// The last of them.
    at: Option<Rank>,
    /// Whether something left since it was: others may have come before it.
    left: bool,
}

impl Stuck {
    fn note(&mut self, rank: Rank, came: Evicted) {
        match came {
            Evicted::Left => self.left = true,
            Evicted::Reranked => {}
            Evicted::Stuck => self.at = Some(rank),
        }
    }

    /// Whether it is worth trying all of them again.
    fn again(&mut self) -> bool {
        self.at.take().is_some() && std::mem::take(&mut self.left)
    }
}
