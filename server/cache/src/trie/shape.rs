//! The shape of the trie: cutting an edge, joining a chain, and forgetting ghosts.
//!
//! Edges are cut at once, where an operation needs it. Chains are joined and ghosts forgotten only
//! at the end of an operation ([`Trie::tidy`]), so that in the middle of one no node goes away.

use super::Trie;
use super::config::DomainId;
use super::node::{Node, NodeId};
use super::symbol::extend_hash;
use crate::ledger::Tier;
use crate::storage::Storage;

/// What a ghost counts beside its tokens, for what a node takes.
pub(super) const GHOST_TOKENS: usize = 64;

/// A head is joined with its tail only if it is at most this much hotter (as `log2`): the one
/// system prompt of many requests stays apart from the rest of the last of them.
const HEAT_JOINED: f64 = 1.0;

impl<A, B> Trie<A, B> {
    /// Cuts the edge of a node at the absolute offset `at`. The node keeps its end, children and
    /// point; the new node before it, which is returned, gets the head.
    pub(super) fn split<S>(&mut self, store: &mut S, id: NodeId, at: usize) -> NodeId
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        let head = self.split_edge(id, at);
        let domain = self.domain_id_of(id);
        if let Some(whole) = self.take_span(id) {
            let (before, tier) = (whole.bytes, whole.tier);
            let (first, second) = store.split(whole.payload, at);
            // Both parts together take what the whole took, which stays counted meanwhile.
            let bytes = store.span_bytes(&first);
            let first = self.hold_span(store, domain, first, tier, bytes);
            let second = self.hold_span(store, domain, second, tier, before.saturating_sub(bytes));
            self.put_span(head, first);
            self.put_span(id, second);
        } else {
            self.ghost_tokens += GHOST_TOKENS;
        }
        self.refresh(head);
        self.refresh(id);
        head
    }

    /// The part of a split that concerns nodes only.
    fn split_edge(&mut self, id: NodeId, at: usize) -> NodeId {
        let node = &mut self.nodes[id];
        let (start, parent) = (node.start, node.parent.expect("a root has no edge to cut"));
        debug_assert!(start < at && at < node.end(), "cut at {at} of {start}..{}", node.end());
        let mut head = Node::new(node.namespace, Some(parent), start, node.span_use);
        head.edge = std::mem::take(&mut node.edge);
        node.edge = head.edge.split_off(at - start);
        node.start = at;
        head.pins = node.pins;
        head.below = node.below;
        head.locks = node.locks;
        head.lost_point = node.lost_point.take_if(|offset| *offset <= at);
        let (first, second) = (head.edge[0], node.edge[0]);
        head.children.insert(second, id);
        head.next = Some(second);
        let leases = &self.leases;
        let (above, inside) = node.anchored.drain(..).partition(|lease| leases[lease].offset <= at);
        (head.anchored, node.anchored) = (above, inside);
        node.locks -= head.anchored.len() as u32;
        head.hash = extend_hash(self.nodes[parent].hash, &head.edge);
        let (above, tier) = (head.anchored.clone(), self.nodes[id].tier());
        if let Some(tier) = tier {
            // The tail counts as a child of the head from now on; see `put_span`.
            self.nodes[parent].children_in[tier as usize] -= 1;
            head.children_in[tier as usize] += 1;
        }
        let head = self.nodes.insert(head);
        self.nodes[id].parent = Some(head);
        self.nodes[parent].children.insert(first, head);
        for lease in above {
            self.leases.get_mut(&lease).expect("anchored leases are alive").node = head;
        }
        head
    }

    /// Makes a note that a node may have become a chain with its only child.
    pub(super) fn note_chain(&mut self, id: NodeId) {
        let node = &self.nodes[id];
        if node.children.len() == 1 && !node.is_root() {
            if node.tier() == Some(Tier::Device) {
                let domain = self.namespaces[node.namespace].domain;
                self.domains[domain.0 as usize].chains.insert(id);
            } else {
                self.chains.insert(id);
            }
        }
    }

    /// Joins chains and forgets the oldest ghosts beyond the bound. `home` is the only domain whose
    /// state on the device may be joined.
    pub(super) fn tidy<S>(&mut self, store: &mut S, home: Option<DomainId>)
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        loop {
            while let Some(id) = self.next_chain(home) {
                self.join_chain(store, id, home);
            }
            if self.ghost_tokens <= self.config.ghost_tokens_max {
                return;
            }
            while self.ghost_tokens > self.config.ghost_tokens_max {
                let Some(&(_, oldest)) = self.ghosts.first() else { return };
                self.remove_ghost(oldest);
            }
        }
    }

    fn next_chain(&mut self, home: Option<DomainId>) -> Option<NodeId> {
        let below = self.chains.pop_first();
        below.or_else(|| self.domains[home?.0 as usize].chains.pop_first())
    }

    /// Joins a node with its only child, if nothing tells them apart.
    fn join_chain<S>(&mut self, store: &mut S, head: NodeId, home: Option<DomainId>)
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        let Some(tail) = self.chain_below(head) else { return };
        let domain = self.domain_id_of(head);
        if self.nodes[head].tier() == Some(Tier::Device) && home != Some(domain) {
            self.domains[domain.0 as usize].chains.insert(head);
            return;
        }
        let spans = self.take_span(head).zip(self.take_span(tail));
        if spans.is_none() {
            self.ghost_tokens -= GHOST_TOKENS;
        }
        self.join_edges(head, tail);
        if let Some((first, second)) = spans {
            let (tier, bytes) = (first.tier, first.bytes + second.bytes);
            let whole = store.join(first.payload, second.payload);
            let whole = self.hold_span(store, domain, whole, tier, bytes);
            self.put_span(tail, whole);
        }
        self.refresh(tail);
        let parent = self.nodes[tail].parent.expect("a tail has a parent");
        self.note_chain(tail);
        self.note_chain(parent);
    }

    /// The only child of a node, if the two are to be one.
    fn chain_below(&self, id: NodeId) -> Option<NodeId> {
        let head = self.nodes.get(id)?;
        let (_, &only) = head.children.first_key_value()?;
        let tail = &self.nodes[only];
        let alike = head.children.len() == 1
            && !head.is_root()
            && head.point.is_none()
            && head.named.is_empty()
            && head.locks == tail.locks
            && head.distance() == tail.distance()
            && head.tier() != Some(Tier::Disk)
            && (head.is_hollow() || head.span_use.heat - tail.span_use.heat <= HEAT_JOINED);
        alike.then_some(only)
    }

    /// The part of a join that concerns nodes only: the tail takes the place of both.
    fn join_edges(&mut self, head: NodeId, tail: NodeId) {
        let head = self.nodes.remove(head);
        let parent = head.parent.expect("a head is no root");
        self.nodes[parent].children.insert(head.edge[0], tail);
        let node = &mut self.nodes[tail];
        let rest = std::mem::replace(&mut node.edge, head.edge);
        node.edge.extend_from_slice(&rest);
        node.start = head.start;
        node.parent = Some(parent);
        node.span_use = node.span_use.joined(head.span_use);
        node.lost_point = node.lost_point.max(head.lost_point);
    }

    /// A node has lost its span: it stays as a ghost until there are too many.
    pub(super) fn make_ghost(&mut self, id: NodeId) {
        self.ghost_tokens += self.nodes[id].edge.len() + GHOST_TOKENS;
        self.list_ghost(id);
    }

    /// A ghost is about to get a span.
    pub(super) fn revive_ghost(&mut self, id: NodeId) {
        self.ghost_tokens -= self.nodes[id].edge.len() + GHOST_TOKENS;
        self.unlist_ghost(id);
    }

    /// Puts a ghost without children among those that may be forgotten.
    fn list_ghost(&mut self, id: NodeId) {
        let node = &mut self.nodes[id];
        if node.children.is_empty() && node.ghost.is_none() {
            self.ghosts_made += 1;
            node.ghost = Some(self.ghosts_made);
            self.ghosts.insert((self.ghosts_made, id));
        }
    }

    fn unlist_ghost(&mut self, id: NodeId) {
        if let Some(made) = self.nodes[id].ghost.take() {
            self.ghosts.remove(&(made, id));
        }
    }

    /// Removes a ghost without children.
    pub(super) fn remove_ghost(&mut self, id: NodeId) {
        self.revive_ghost(id);
        let node = self.nodes.remove(id);
        let parent = node.parent.expect("a ghost is no root");
        self.nodes[parent].children.remove(&node.edge[0]);
        if self.nodes[parent].is_root() {
            self.remove_root_if_empty(parent);
        } else if self.nodes[parent].is_hollow() {
            self.list_ghost(parent);
            self.note_chain(parent);
        } else {
            self.note_chain(parent);
        }
    }
}
