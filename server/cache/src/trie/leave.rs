//! Payloads on their way out: down a tier if there is room, else dropped.

use super::Trie;
use super::node::{Held, NodeId};
use super::value::Kind;
use crate::ledger::Tier;
use crate::storage::{Place, Refused, Storage};

/// How far a payload got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moved {
    Yes,
    /// It is where it was.
    No,
    /// It was damaged and is gone.
    Lost,
}

impl<A, B> Trie<A, B> {
    /// Makes a span leave its tier: to the fastest slower tier from `first` on that has room for
    /// it, at the expense of what is worth no more than `value`; dropped if there is none. Whether
    /// it left: what is pinned is not dropped unless `force` says so.
    pub(super) fn span_leaves<S>(
        &mut self,
        store: &mut S,
        id: NodeId,
        first: Tier,
        value: u64,
        force: bool,
    ) -> bool
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        let from = self.nodes[id].tier().expect("only a span leaves");
        let pinned = self.nodes[id].pins > 0;
        let value = if pinned { u64::MAX } else { value };
        for to in Tier::ALL.into_iter().filter(|&to| to > from && to >= first) {
            if self.limit(to) == 0 || !self.sink_children(store, id, to, value) {
                continue;
            }
            match self.move_span(store, id, to, value) {
                Moved::Yes => return true,
                Moved::No => {}
                Moved::Lost => {
                    self.drop_below(store, id);
                    return true;
                }
            }
        }
        let drop = !pinned || force;
        if drop {
            self.drop_below(store, id);
        }
        drop
    }

    /// Makes a point leave its tier, as [`Self::span_leaves`].
    pub(super) fn point_leaves<S>(
        &mut self,
        store: &mut S,
        id: NodeId,
        first: Tier,
        value: u64,
        force: bool,
    ) -> bool
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        let from = self.nodes[id].point.as_ref().expect("only a point leaves").tier;
        let pinned = self.is_pinned_at(id);
        let value = if pinned { u64::MAX } else { value };
        for to in Tier::ALL.into_iter().filter(|&to| to > from && to >= first) {
            if self.limit(to) > 0 && self.move_point(store, id, to, value) != Moved::No {
                return true;
            }
        }
        let drop = !pinned || force;
        if drop {
            self.drop_point(store, id);
        }
        drop
    }

    /// Brings what depends on a span and lies between its tier and `to` down to `to`: the spans
    /// below it and the points of all. Whether all of it got there. Points that are not pinned are
    /// dropped rather than stand in the way.
    fn sink_children<S>(&mut self, store: &mut S, id: NodeId, to: Tier, value: u64) -> bool
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        let from = self.nodes[id].tier();
        let between = |tier| Some(tier) > from && tier < to;
        let faster = self.nodes.below(id, |node, is| node == id || is.tier().is_some_and(between));
        for &node in faster.iter().rev() {
            let point = self.nodes[node].point.as_ref().map(|held| held.tier);
            if point.is_some_and(|tier| tier < to)
                && !self.point_leaves(store, node, to, value, false)
            {
                return false;
            }
            if node == id {
                continue;
            }
            match self.move_span(store, node, to, value) {
                Moved::Yes => {}
                Moved::No => return false,
                Moved::Lost => self.drop_below(store, node),
            }
        }
        true
    }

    /// Moves a span to a tier, if room can be made there at the expense of what is worth no more
    /// than `value`. The tiers of its neighbours must allow it.
    pub(super) fn move_span<S>(&mut self, store: &mut S, id: NodeId, to: Tier, value: u64) -> Moved
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        let domain = self.domain_id_of(id);
        let held = self.nodes[id].span.as_ref().expect("only a span moves");
        let need = store.span_bytes_in(&held.payload, to);
        if !self.make_room(store, domain, to, need, value) {
            return Moved::No;
        }
        let value = self.rank(id, Kind::Span).value;
        let held = self.take_span(id).expect("making room in another tier leaves it");
        let Held { payload, tier: from, bytes, .. } = held;
        let symbols = self.path_symbols(id);
        let start = self.nodes[id].start;
        let moved =
            self.with_place(id, start, &symbols, |place| store.move_span(payload, to, place));
        match moved {
            Ok(payload) => {
                self.discharge(domain, from, bytes);
                let held = self.hold_span(store, domain, payload, to, need);
                let bytes = held.bytes;
                self.put_span(id, held);
                self.note_stored(id, to);
                self.note_removed(id, from);
                self.counters.count_span_move(from, to, bytes);
                self.after_span_move(store, id, from, to, value);
                Moved::Yes
            }
            Err(Refused::Kept(payload)) => {
                self.discharge(domain, to, need);
                let held = self.hold_span(store, domain, payload, from, bytes);
                self.put_span(id, held);
                self.refresh(id);
                Moved::No
            }
            Err(Refused::Lost) => {
                self.discharge(domain, to, need);
                self.discharge(domain, from, bytes);
                self.note_removed(id, from);
                self.counters.spans_lost += 1;
                self.hollowed(id);
                Moved::Lost
            }
        }
    }

    /// What follows from a move for the nodes around: upwards, children that stay are now charged
    /// for what they shared with it; downwards, the parent is worth what it was.
    fn after_span_move<S>(&mut self, store: &mut S, id: NodeId, from: Tier, to: Tier, value: u64)
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        if to < from {
            self.settle_children(store, id, from);
        }
        self.refresh(id);
        self.note_chain(id);
        if let Some(parent) = self.nodes[id].parent {
            if to > from {
                self.nodes[parent].below = self.nodes[parent].below.max(value);
            }
            self.refresh(parent);
            self.note_chain(parent);
        }
    }

    /// Tells the children in `tier` that the span before them has left it.
    pub(super) fn settle_children<S>(&mut self, store: &mut S, id: NodeId, tier: Tier)
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        let domain = self.domain_id_of(id);
        let children: Vec<_> = self.nodes[id].children.values().copied().collect();
        for child in children {
            if let Some(held) = self.nodes[child].span.as_mut().filter(|held| held.tier == tier) {
                store.settle(&mut held.payload);
                let (before, after) = (held.bytes, store.span_bytes(&held.payload));
                held.bytes = after;
                held.weight = held.weight.max(after);
                let charged = self.charge(domain, tier, after.saturating_sub(before));
                debug_assert!(
                    charged,
                    "what a span takes on is less than what the one before left"
                );
                self.discharge(domain, tier, before.saturating_sub(after));
                self.refresh(child);
            }
        }
    }

    pub(super) fn move_point<S>(&mut self, store: &mut S, id: NodeId, to: Tier, value: u64) -> Moved
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        let domain = self.domain_id_of(id);
        let held = self.nodes[id].point.as_ref().expect("only a point moves");
        let need = store.point_bytes_in(&held.payload, to);
        if !self.make_room(store, domain, to, need, value) {
            return Moved::No;
        }
        let held = self.take_point(id).expect("making room in another tier leaves it");
        let Held { payload, tier: from, bytes, .. } = held;
        let symbols = self.path_symbols(id);
        let moved = self
            .with_place(id, symbols.len(), &symbols, |place| store.move_point(payload, to, place));
        match moved {
            Ok(payload) => {
                self.discharge(domain, from, bytes);
                let held = self.hold_point(store, domain, payload, to, need);
                let bytes = held.bytes;
                self.nodes[id].point = Some(held);
                self.counters.count_point_move(from, to, bytes);
                self.refresh(id);
                Moved::Yes
            }
            Err(Refused::Kept(payload)) => {
                self.discharge(domain, to, need);
                let held = self.hold_point(store, domain, payload, from, bytes);
                self.nodes[id].point = Some(held);
                self.refresh(id);
                Moved::No
            }
            Err(Refused::Lost) => {
                self.discharge(domain, to, need);
                self.discharge(domain, from, bytes);
                self.counters.points_lost += 1;
                self.point_is_gone(id);
                Moved::Lost
            }
        }
    }

    /// Drops the span of a node and all that depends on it: its point and everything below.
    /// Leases that reach into it are cut off before it; names in it are taken away.
    pub(super) fn drop_below<S>(&mut self, store: &mut S, id: NodeId)
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        self.cut_leases(id);
        // The node itself may have lost its span already.
        let doomed = self.nodes.below(id, |node, is| node == id || !is.is_hollow());
        for &node in doomed.iter().rev() {
            self.unname_all(node);
            self.drop_point(store, node);
            if let Some(held) = self.take_span(node) {
                let domain = self.domain_id_of(node);
                store.free_span(held.payload);
                self.discharge(domain, held.tier, held.bytes);
                self.note_removed(node, held.tier);
                self.counters.count_span_drop(held.tier, self.nodes[node].edge.len());
                self.hollowed(node);
            }
        }
    }

    /// A node has just lost its span.
    fn hollowed(&mut self, id: NodeId) {
        self.nodes[id].below = 0;
        self.make_ghost(id);
        self.note_chain(id);
        if let Some(parent) = self.nodes[id].parent {
            if !self.nodes[parent].has_spanned_child() {
                self.nodes[parent].below = 0;
            }
            self.refresh(parent);
            self.note_chain(parent);
        }
    }

    /// Drops the point of a node, if it has one.
    pub(super) fn drop_point<S>(&mut self, store: &mut S, id: NodeId)
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        if let Some(held) = self.take_point(id) {
            let domain = self.domain_id_of(id);
            store.free_point(held.payload);
            self.discharge(domain, held.tier, held.bytes);
            self.counters.count_point_drop(held.tier);
            self.point_is_gone(id);
        }
    }

    fn point_is_gone(&mut self, id: NodeId) {
        self.note_point_removed(id);
        if self.domain_of(id).shape.needs_points {
            self.unname_all(id);
        }
        let end = self.nodes[id].end();
        self.nodes[id].lost_point = Some(end);
        self.refresh(id);
        self.note_chain(id);
    }

    /// Leases that reach into a node or below it end before it from now on.
    fn cut_leases(&mut self, id: NodeId) {
        if self.nodes[id].locks == 0 {
            return;
        }
        let parent = self.nodes[id].parent.expect("a root is not dropped");
        let upto = self.nodes[id].start;
        let cut: Vec<_> = self
            .nodes
            .below(id, |_, is| is.locks > 0)
            .into_iter()
            .flat_map(|node| self.nodes[node].anchored.clone())
            .collect();
        for lease in cut {
            let (node, offset) = self.resumable(parent, upto);
            if let Some(lease) = self.leases.get_mut(&lease) {
                lease.owes = false;
            }
            self.move_anchor(lease, node, offset);
        }
    }

    /// Calls `act` with the place of a payload of a node.
    pub(super) fn with_place<T>(
        &self,
        id: NodeId,
        start: usize,
        tokens: &[u32],
        act: impl FnOnce(&Place<'_>) -> T,
    ) -> T {
        let namespace = &self.namespaces[self.nodes[id].namespace];
        let domain = self.domain(namespace.domain).key;
        act(&Place { domain, salt: namespace.salt.as_deref(), start, tokens })
    }
}
