//! What a payload is worth, and whether it may leave its tier: the order in which room is made.
//!
//! A candidate's value is (cost to compute it again from the next point that survives) divided by
//! its bytes, times how hot it is. Heat is a sum over uses that halve with age, after LRFU (Lee et
//! al., 2001); all of it as `log2`, relative to tick 0, so that no value changes with time and the
//! candidates lie in ordered sets.

use super::Trie;
use super::config::{DomainId, Policy};
use super::node::{NodeId, Usage};
use crate::ledger::Tier;

/// Which of a node's payloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Point,
    Span,
}

/// Place of a candidate: the least goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    /// What it is worth ([`ordered`]); 0 is nothing.
    pub(super) value: u64,
    /// Deeper goes first.
    shallowness: u64,
    /// Larger goes first, where the policy says so.
    smallness: u64,
    pub(super) kind: Kind,
    pub(super) node: NodeId,
}

/// A number that orders as `value` does; more than 0.
pub(super) fn ordered(value: f64) -> u64 {
    let bits = value.to_bits();
    if bits >> 63 == 1 { !bits } else { bits | 1 << 63 }
}

impl<A, B> Trie<A, B> {
    /// Brings the candidates up to date with a node, after anything that could matter changed:
    /// its payloads, use, locks, pins, or the tiers of its children.
    pub(super) fn refresh(&mut self, id: NodeId) {
        let span = self.span_candidate(id);
        let point = self.point_candidate(id);
        let node = &mut self.nodes[id];
        let domain = self.namespaces[node.namespace].domain;
        if let Some(held) = &mut node.span
            && held.rank != span
        {
            let before = std::mem::replace(&mut held.rank, span);
            self.candidates.replace(domain, held.tier, before, span);
        }
        if let Some(held) = &mut node.point
            && held.rank != point
        {
            let before = std::mem::replace(&mut held.rank, point);
            self.candidates.replace(domain, held.tier, before, point);
        }
    }

    /// The rank of a node's span, if the span may leave its tier.
    pub(super) fn span_candidate(&self, id: NodeId) -> Option<Rank> {
        let node = &self.nodes[id];
        let held = node.span.as_ref()?;
        let stuck = node.has_child_within(held.tier)
            || self.free_from(id)? >= node.end()
            || (node.pins > 0 && !self.has_tier_below(held.tier));
        (!stuck).then(|| self.rank(id, Kind::Span))
    }

    /// The rank of a node's point, if the point may leave its tier: no lease stands on it.
    pub(super) fn point_candidate(&self, id: NodeId) -> Option<Rank> {
        let node = &self.nodes[id];
        let held = node.point.as_ref()?;
        let stuck = node.anchored.iter().any(|lease| self.leases[lease].offset == node.end())
            || (self.is_pinned_at(id) && !self.has_tier_below(held.tier));
        (!stuck).then(|| self.rank(id, Kind::Point))
    }

    /// The offset from which on no lease needs the node, on the page grid; `None` if a lease goes
    /// on below it.
    pub(super) fn free_from(&self, id: NodeId) -> Option<usize> {
        let node = &self.nodes[id];
        if node.locks as usize > node.anchored.len() {
            return None;
        }
        let leased = node.anchored.iter().map(|lease| self.leases[lease].offset).max();
        Some(leased.map_or(node.start, |offset| {
            offset.next_multiple_of(self.domain_of(id).shape.page_tokens)
        }))
    }

    /// The rank of a payload, candidate or not.
    pub(super) fn rank(&self, id: NodeId, kind: Kind) -> Rank {
        let node = &self.nodes[id];
        let (usage, bytes) = match kind {
            Kind::Span => (node.span_use, node.span.as_ref().map_or(0, |held| held.bytes)),
            Kind::Point => (node.point_use, node.point.as_ref().map_or(0, |held| held.bytes)),
        };
        let own = match self.config.policy {
            Policy::CostToLose => ordered(self.density(id, kind).log2() + usage.heat),
            Policy::Lru | Policy::OldestDeepestLargest => ordered(usage.last as f64),
        };
        let smallness = match self.config.policy {
            Policy::OldestDeepestLargest => !bytes,
            Policy::CostToLose | Policy::Lru => 0,
        };
        let value = if kind == Kind::Span { own.max(node.below) } else { own };
        Rank { value, shallowness: !(node.end() as u64), smallness, kind, node: id }
    }

    /// Cost of losing a payload, for each byte of it.
    fn density(&self, id: NodeId, kind: Kind) -> f64 {
        let node = &self.nodes[id];
        let shape = &self.domain_of(id).shape;
        let point = node.point.as_ref().map_or(0, |held| held.weight);
        let span = node.span.as_ref().map_or(0, |held| held.weight);
        let (from, bytes) = match kind {
            Kind::Point => (self.point_above(id), point),
            Kind::Span if !shape.needs_points => (node.start, span),
            // A span is of use only up to a point, and is lost with it.
            Kind::Span if node.point.is_some() => (self.point_above(id), span + point),
            Kind::Span => return 0.0,
        };
        shape.cost.of(from, node.end()) / bytes.max(1) as f64
    }

    /// Offset of the next point above the end of a node; 0 if there is none.
    fn point_above(&self, id: NodeId) -> usize {
        let above = self.nodes.upwards(id).skip(1);
        above
            .map(|id| &self.nodes[id])
            .find(|node| node.point.is_some())
            .map_or(0, |node| node.end())
    }

    /// Whether a payload that leaves `tier` may go to a slower one.
    pub(super) fn has_tier_below(&self, tier: Tier) -> bool {
        Tier::ALL.into_iter().any(|other| other > tier && self.limit(other) > 0)
    }

    /// Counts a use of the span of a node.
    pub(super) fn touch_span(&mut self, id: NodeId, tick: u64, continues: bool) {
        let half_life = self.config.half_life;
        let usage = &mut self.nodes[id].span_use;
        if usage.last < tick {
            usage.touch(tick, half_life, continues);
            self.refresh(id);
        }
    }

    /// Counts a use of the point of a node.
    pub(super) fn touch_point(&mut self, id: NodeId, tick: u64, continues: bool) {
        let half_life = self.config.half_life;
        let usage = &mut self.nodes[id].point_use;
        if usage.last < tick {
            usage.touch(tick, half_life, continues);
            self.refresh(id);
        }
    }

    /// The usage of something made now.
    pub(super) fn first_use(&self) -> Usage {
        Usage::first(self.tick, self.config.half_life, false)
    }
}

/// Payloads that may leave their tier, least valuable first: on the device by domain and kind,
/// below all together.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    device: std::collections::BTreeMap<DomainId, [std::collections::BTreeSet<Rank>; 2]>,
    below: [std::collections::BTreeSet<Rank>; 2],
}

impl Candidates {
    pub(super) fn replace(
        &mut self,
        domain: DomainId,
        tier: Tier,
        before: Option<Rank>,
        after: Option<Rank>,
    ) {
        let mut apply = |rank: Rank, add: bool| {
            let set = match tier {
                Tier::Device => &mut self.device.entry(domain).or_default()[rank.kind as usize],
                Tier::Host => &mut self.below[0],
                Tier::Disk => &mut self.below[1],
            };
            let changed = if add { set.insert(rank) } else { set.remove(&rank) };
            debug_assert!(changed, "a payload knows whether it is a candidate");
        };
        if let Some(rank) = before {
            apply(rank, false);
        }
        if let Some(rank) = after {
            apply(rank, true);
        }
    }

    /// The first candidate of a kind on the device, after `after`.
    pub(super) fn on_device(
        &self,
        domain: DomainId,
        kind: Kind,
        after: Option<Rank>,
    ) -> Option<Rank> {
        first(&self.device.get(&domain)?[kind as usize], after)
    }

    /// The first candidate of a tier, after `after`; on the device, of one domain.
    pub(super) fn of_tier(
        &self,
        tier: Tier,
        domain: Option<DomainId>,
        after: Option<Rank>,
    ) -> Option<Rank> {
        match tier {
            Tier::Device => [Kind::Point, Kind::Span]
                .into_iter()
                .filter_map(|kind| self.on_device(domain?, kind, after))
                .min(),
            Tier::Host => first(&self.below[0], after),
            Tier::Disk => first(&self.below[1], after),
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        let device = self.device.values().flatten();
        device.chain(&self.below).map(std::collections::BTreeSet::len).sum()
    }
}

fn first(set: &std::collections::BTreeSet<Rank>, after: Option<Rank>) -> Option<Rank> {
    use std::ops::Bound::{Excluded, Unbounded};
    let from = after.map_or(Unbounded, Excluded);
    set.range((from, Unbounded)).next().copied()
}
