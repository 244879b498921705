//! Adopt and forget: state comes from outside (records found on disk, an import), or turns out to
//! be damaged.

use super::Trie;
use super::config::DomainId;
use super::lease::{Lease, LeaseId};
use super::node::NodeId;
use super::symbol::common;
use crate::ledger::Tier;
use crate::storage::Storage;

/// A payload from outside.
#[derive(Debug)]
pub enum Adopted<A, B> {
    /// State of the tokens from an offset to the end of the path.
    Span(usize, A),
    /// State at the end of the path.
    Point(B),
}

/// A payload that may be damaged.
#[derive(Debug)]
pub enum Lost<'a, A, B> {
    /// State per token.
    Span(&'a A),
    /// State at an offset.
    Point(&'a B),
}

impl<A, B> Trie<A, B> {
    /// Takes in a payload that lies in `tier` and belongs at the end of `symbols`. What it builds
    /// on must be there already, in that tier or a faster one; what is there already is freed, as
    /// far as it goes. Room is made. Whether anything of it was kept.
    pub fn adopt<S>(
        &mut self,
        store: &mut S,
        domain: DomainId,
        salt: Option<&str>,
        symbols: &[u32],
        payload: Adopted<A, B>,
        tier: Tier,
    ) -> bool
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        let root = self.root_or_new(domain, salt);
        let kept = match payload {
            Adopted::Span(start, span) => {
                self.adopt_span(store, root, symbols, (start, span), tier)
            }
            Adopted::Point(point) => self.adopt_point(store, root, symbols, point, tier),
        };
        self.tidy(store, Some(domain));
        if self.root(domain, salt) == Some(root) {
            self.remove_root_if_empty(root);
        }
        kept
    }

    fn adopt_span<S>(
        &mut self,
        store: &mut S,
        root: NodeId,
        symbols: &[u32],
        (start, span): (usize, A),
        tier: Tier,
    ) -> bool
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        let (node, held) = self.held(root, symbols);
        let fits =
            start <= held && held < symbols.len() && self.nodes[node].distance() <= tier as usize;
        if !fits {
            store.free_span(span);
            return false;
        }
        let rest = if start < held {
            let (known, mut rest) = store.split(span, held);
            store.free_span(known);
            store.settle(&mut rest);
            rest
        } else {
            span
        };
        if held < self.nodes[node].end() && !self.nodes[node].is_root() {
            self.split(store, node, held);
        }
        let (node, _) = self.held(root, &symbols[..held]);
        // What it builds on must not make room for it.
        let lock = self.lock_at(node, held);
        let kept = self.adopt_below(store, lock, symbols, rest, tier);
        self.release(lock);
        kept
    }

    /// The leading symbols whose spans are held, and the node in which they end.
    fn held(&self, root: NodeId, symbols: &[u32]) -> (NodeId, usize) {
        let (mut at, mut held) = (root, 0);
        while let Some(&child) =
            symbols.get(held).and_then(|next| self.nodes[at].children.get(next))
            && held == self.nodes[at].end()
            && !self.nodes[child].is_hollow()
        {
            held += common(&self.nodes[child].edge, &symbols[held..]);
            at = child;
        }
        (at, held)
    }

    /// Hands the ghosts on the way their parts of a span, and what is left to a new node. The lease
    /// ends where the span begins.
    fn adopt_below<S>(
        &mut self,
        store: &mut S,
        lock: LeaseId,
        symbols: &[u32],
        span: A,
        tier: Tier,
    ) -> bool
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        let (mut rest, mut kept) = (span, false);
        loop {
            let Lease { node: at, offset: from, .. } = self.leases[&lock];
            let Some(&child) = self.nodes[at].children.get(&symbols[from]) else {
                let child = self.new_ghost(at, &symbols[from..]);
                let stays = self.adopt_into(store, child, rest, tier);
                if !stays {
                    self.remove_ghost(child);
                }
                return stays || kept;
            };
            let here = &self.nodes[child];
            let shared = from + common(&here.edge, &symbols[from..]);
            let part = if shared < here.end() { self.split(store, child, shared) } else { child };
            if shared == symbols.len() {
                return self.adopt_into(store, part, rest, tier) || kept;
            }
            let (first, tail) = store.split(rest, shared);
            if !self.adopt_into(store, part, first, tier) {
                store.free_span(tail);
                return kept;
            }
            self.move_anchor(lock, part, shared);
            (rest, kept) = (tail, true);
        }
    }

    /// Gives a ghost a span that lies in `tier`; freed if there is no room.
    fn adopt_into<S>(&mut self, store: &mut S, id: NodeId, span: A, tier: Tier) -> bool
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        let domain = self.domain_id_of(id);
        let need = store.span_bytes(&span);
        if !self.make_room(store, domain, tier, need, u64::MAX) {
            store.free_span(span);
            return false;
        }
        let held = self.hold_span(store, domain, span, tier, need);
        self.replace_span(store, id, held);
        true
    }

    fn adopt_point<S>(
        &mut self,
        store: &mut S,
        root: NodeId,
        symbols: &[u32],
        point: B,
        tier: Tier,
    ) -> bool
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        let domain = self.domain_id_of(root);
        let (node, held) = self.held(root, symbols);
        let is = &self.nodes[node];
        let taken = is.end() == held && is.point.is_some();
        let fits = held > 0 && held == symbols.len() && !taken && is.tier() <= Some(tier);
        if fits {
            let lock = self.lock_at(node, held);
            let need = store.point_bytes(&point);
            let room = self.make_room(store, domain, tier, need, u64::MAX);
            if room {
                // To make room the node may have been cut behind the lease.
                let node = self.leases[&lock].node;
                let inside = held < self.nodes[node].end();
                let node = if inside { self.split(store, node, held) } else { node };
                let held = self.hold_point(store, domain, point, tier, need);
                self.set_point(node, held);
            } else {
                store.free_point(point);
            }
            self.release(lock);
            return room;
        }
        store.free_point(point);
        false
    }

    /// Removes payloads that `lost` says are damaged, with all that depends on them; leases that
    /// reach into them end before them. Returns how many it said so of.
    pub fn forget<S>(
        &mut self,
        store: &mut S,
        lost: &mut dyn FnMut(Lost<'_, A, B>) -> bool,
    ) -> usize
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        let (mut spans, mut points) = (Vec::new(), Vec::new());
        for (id, node) in self.nodes.iter() {
            if node.span.as_ref().is_some_and(|held| lost(Lost::Span(&held.payload))) {
                spans.push(id);
            }
            if node.point.as_ref().is_some_and(|held| lost(Lost::Point(&held.payload))) {
                points.push(id);
            }
        }
        for &id in &points {
            self.drop_point(store, id);
        }
        for &id in &spans {
            if self.nodes[id].span.is_some() {
                self.drop_below(store, id);
            }
        }
        self.tidy(store, None);
        spans.len() + points.len()
    }
}
