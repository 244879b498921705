//! Extend: what a sequence has computed becomes part of the trie, and points are set on its way.

use std::ops::Range;

use super::Trie;
use super::lease::{Lease, LeaseId};
use super::node::{Held, Node, NodeId, Usage};
use super::symbol::{common, extend_hash};
use crate::ledger::Tier;
use crate::storage::{Refused, Storage};

/// Pages of a new span that are asked for at a time: where little room is left, as much as fits is
/// kept.
const PIECE_PAGES: usize = 16;

/// Gives the span of a range of tokens, on the device.
type Make<'a, S, A> = &'a mut dyn FnMut(&mut S, Range<usize>) -> Option<A>;

/// What an extension is about.
struct Extension<'a, S: ?Sized, A> {
    lease: LeaseId,
    symbols: &'a [u32],
    make: Make<'a, S, A>,
    /// The tier in which it is kept.
    top: Tier,
}

impl<A, B> Trie<A, B> {
    /// Makes spans cover `[0, end)` of `symbols`, all of which the owner of the lease has computed
    /// and of which the lease covers a prefix. `make` is asked for every run that is missing,
    /// evicted, or in a slower tier than new state is kept in (what lies there is freed then); what
    /// the trie has already is not asked for again.
    ///
    /// Stops where `make` gives nothing or no room can be made. Returns the offset that the lease
    /// covers from then on. New state is kept on the device, or in the fastest tier that is on.
    pub fn extend<S>(
        &mut self,
        store: &mut S,
        id: LeaseId,
        symbols: &[u32],
        end: usize,
        make: &mut dyn FnMut(&mut S, Range<usize>) -> Option<A>,
    ) -> usize
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        let Some(domain) = self.lease_domain(id) else { return 0 };
        let symbols = &symbols[..end.min(symbols.len())];
        if let Some(top) = self.top()
            && self.leased(id) <= symbols.len()
        {
            let mut extension = Extension { lease: id, symbols, make, top };
            while self.refill(store, &mut extension).is_some() {}
            if self.first_below(id, top).is_none() {
                while self.step(store, &mut extension).is_some() {}
            }
            self.tidy(store, Some(domain));
        }
        self.leased(id)
    }

    /// Replaces the first span of the lease that lies below the top tier; `None` if there is none
    /// or it cannot be replaced.
    fn refill<S>(&mut self, store: &mut S, extension: &mut Extension<'_, S, A>) -> Option<()>
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        let mut node = self.first_below(extension.lease, extension.top)?;
        let here = &self.nodes[node];
        let covered = here.start + common(&here.edge, extension.symbols.get(here.start..)?);
        if covered < here.end() {
            node = self.split(store, node, covered);
        }
        self.fill(store, node, extension)
    }

    /// Goes on by one stretch; `None` at the end or where it cannot.
    fn step<S>(&mut self, store: &mut S, extension: &mut Extension<'_, S, A>) -> Option<()>
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        let lease = *self.leases.get(&extension.lease)?;
        let rest = extension.symbols.get(lease.offset..).filter(|rest| !rest.is_empty())?;
        let here = &self.nodes[lease.node];
        if lease.offset < here.end() {
            let more = common(&here.edge[lease.offset - here.start..], rest);
            if more == 0 {
                self.split(store, lease.node, lease.offset);
                self.settle_use(extension.lease);
            } else {
                self.enter(extension.lease, lease.node, lease.offset + more);
            }
            return Some(());
        }
        match here.children.get(&rest[0]) {
            Some(&child) => self.step_into(store, child, extension),
            None => self.grow(store, lease.node, extension),
        }
    }

    /// Goes on into a child that shares at least one symbol.
    fn step_into<S>(
        &mut self,
        store: &mut S,
        child: NodeId,
        extension: &mut Extension<'_, S, A>,
    ) -> Option<()>
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        let here = &self.nodes[child];
        let rest = extension.symbols.get(here.start..)?;
        let mut covered = here.start + common(&here.edge, rest);
        if here.tier().is_some_and(|tier| tier <= extension.top) {
            self.enter(extension.lease, child, covered);
            return Some(());
        }
        if here.is_hollow() {
            covered = covered.min(self.piece_end(child, here.start));
        }
        let part = if covered < here.end() { self.split(store, child, covered) } else { child };
        self.fill(store, part, extension)?;
        self.enter(extension.lease, part, covered);
        Some(())
    }

    /// Adds a child for the next piece.
    fn grow<S>(
        &mut self,
        store: &mut S,
        parent: NodeId,
        extension: &mut Extension<'_, S, A>,
    ) -> Option<()>
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        let start = self.nodes[parent].end();
        let end = extension.symbols.len().min(self.piece_end(parent, start));
        let edge = extension.symbols.get(start..end)?;
        let span = (extension.make)(store, start..end)?;
        let child = self.new_ghost(parent, edge);
        if self.fill_with(store, child, span, extension.top).is_none() {
            self.remove_ghost(child);
            return None;
        }
        // What a conversation that goes on adds is as likely to be used as what it went on from.
        let Lease { tick, continues, .. } = self.leases[&extension.lease];
        self.nodes[child].span_use = Usage::first(tick, self.config.half_life, continues);
        self.refresh(child);
        self.enter(extension.lease, child, end);
        Some(())
    }

    /// Adds a child without state, which is to get some.
    pub(super) fn new_ghost(&mut self, parent: NodeId, edge: &[u32]) -> NodeId {
        let first_use = self.first_use();
        let above = &self.nodes[parent];
        let mut node = Node::new(above.namespace, Some(parent), above.end(), first_use);
        node.hash = extend_hash(above.hash, edge);
        node.edge = edge.to_vec();
        let child = self.nodes.insert(node);
        self.nodes[parent].children.insert(edge[0], child);
        self.make_ghost(child);
        child
    }

    fn piece_end(&self, node: NodeId, start: usize) -> usize {
        let page = self.domain_of(node).shape.page_tokens;
        (start / page + PIECE_PAGES) * page
    }

    /// Moves the end of the lease on to `offset` in `node`, the node that it ends in or a child.
    fn enter(&mut self, id: LeaseId, node: NodeId, offset: usize) {
        let from = self.leases[&id].node;
        if from != node {
            self.settle_use(id);
            self.nodes[from].next = self.nodes[node].edge.first().copied();
        }
        self.move_anchor(id, node, offset);
        let lease = self.leases.get_mut(&id).expect("the caller holds the lease");
        lease.owes = from != node || lease.owes;
        if offset == self.nodes[node].end() {
            self.settle_use(id);
        }
    }

    /// Gives a node a span in the top tier instead of what it has.
    fn fill<S>(
        &mut self,
        store: &mut S,
        node: NodeId,
        extension: &mut Extension<'_, S, A>,
    ) -> Option<()>
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        let range = self.nodes[node].start..self.nodes[node].end();
        let span = (extension.make)(store, range)?;
        self.fill_with(store, node, span, extension.top)
    }

    /// Gives a node a span in tier `top` that lies on the device so far; what it had is freed. If
    /// there is no room, the new span is.
    fn fill_with<S>(&mut self, store: &mut S, id: NodeId, span: A, top: Tier) -> Option<()>
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        let domain = self.domain_id_of(id);
        let need = match top {
            Tier::Device => store.span_bytes(&span),
            Tier::Host | Tier::Disk => store.span_bytes_in(&span, top),
        };
        // While room is made the node must stay as it is.
        self.nodes[id].locks += 1;
        self.refresh(id);
        let room = self.make_room(store, domain, top, need, u64::MAX);
        self.nodes[id].locks -= 1;
        let placed = if room { self.place_span(store, id, span, top) } else { Err(Some(span)) };
        match placed {
            Ok(span) => {
                let held = self.hold_span(store, domain, span, top, need);
                self.replace_span(store, id, held);
                Some(())
            }
            Err(span) => {
                if let Some(span) = span {
                    store.free_span(span);
                }
                if room {
                    self.discharge(domain, top, need);
                }
                self.refresh(id);
                None
            }
        }
    }

    /// Brings a new span down to the tier in which it is kept.
    fn place_span<S>(
        &mut self,
        store: &mut S,
        id: NodeId,
        span: A,
        top: Tier,
    ) -> Result<A, Option<A>>
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        if top == Tier::Device {
            return Ok(span);
        }
        let symbols = self.path_symbols(id);
        let start = self.nodes[id].start;
        let moved = self.with_place(id, start, &symbols, |place| store.move_span(span, top, place));
        moved.map_err(|refused| match refused {
            Refused::Kept(span) => Some(span),
            Refused::Lost => None,
        })
    }

    /// Puts a span into a node that has none, or one in a slower tier, which is freed.
    pub(super) fn replace_span<S>(&mut self, store: &mut S, id: NodeId, held: Held<A>)
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        let (domain, tier) = (self.domain_id_of(id), held.tier);
        match self.take_span(id) {
            Some(before) => {
                store.free_span(before.payload);
                self.discharge(domain, before.tier, before.bytes);
                self.note_removed(id, before.tier);
                self.put_span(id, held);
                self.settle_children(store, id, before.tier);
            }
            None => {
                self.revive_ghost(id);
                self.put_span(id, held);
            }
        }
        self.note_stored(id, tier);
        self.counters.spans_stored += 1;
        self.refresh(id);
        self.note_chain(id);
        let parent = self.nodes[id].parent.expect("a root has no span");
        self.refresh(parent);
        self.note_chain(parent);
    }
}
