//! Leases: a running sequence holds the path that it stands on, so that nothing takes it away.

use std::ops::Range;

use super::Trie;
use super::config::{DomainId, Policy};
use super::find::Match;
use super::node::NodeId;
use crate::ledger::Tier;

/// A hold on a path. Ids are never given twice; one that was released covers nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeaseId(u64);

/// What a lease holds: the path to `offset`, which lies in `node`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lease {
    pub(super) node: NodeId,
    pub(super) offset: usize,
    /// When it was made.
    pub(super) tick: u64,
    /// It ends inside its node, whose use is counted only once it is clear which part was used.
    pub(super) owes: bool,
    /// It goes on where the last one that came this way ended.
    pub(super) continues: bool,
}

impl<A, B> Trie<A, B> {
    /// Takes hold of the path up to where `symbols` can be resumed, and counts a use of it. To be
    /// extended as the sequence is computed, and released when it ends.
    pub fn lease(
        &mut self,
        domain: DomainId,
        salt: Option<&str>,
        symbols: &[u32],
    ) -> (LeaseId, Match) {
        let root = self.root_or_new(domain, salt);
        let found = self.find(root, symbols);
        self.counters.count_lease(&found.matching);
        let Match { resumed, known, .. } = found.matching;
        let rest = symbols.get(resumed..).unwrap_or_default();
        // A prompt that is known to its end is asked again, not continued.
        let next = rest.first().copied().filter(|_| known + 1 < symbols.len());
        (self.lease_at(found.node, resumed, next), found.matching)
    }

    /// Takes hold of the path up to `offset`, which lies in `node`, and counts a use. `next` is the
    /// symbol after it, for a prompt that is not just a repetition.
    pub(super) fn lease_at(&mut self, node: NodeId, offset: usize, next: Option<u32>) -> LeaseId {
        self.tick += 1;
        let id = self.lock_at(node, offset);
        let mut continues = false;
        let path = self.nodes.path(node);
        for (place, &on_path) in path.iter().enumerate() {
            let after = path.get(place + 1).map(|&after| self.nodes[after].edge[0]);
            let inside = after.is_none() && offset < self.nodes[on_path].end();
            continues = !inside && next.is_some() && self.goes_on(on_path, after.or(next));
            self.nodes[on_path].next = after.or(self.nodes[on_path].next);
            if !self.nodes[on_path].is_root() {
                self.use_span(id, on_path, node, continues);
            }
        }
        self.leases.get_mut(&id).expect("it was just made").continues = continues;
        if self.domain_of(node).shape.needs_points && offset == self.nodes[node].end() {
            self.touch_point(node, self.tick, continues);
        }
        id
    }

    /// Whether a use that goes on from a node to `next` goes where the last one went, or where none
    /// has gone.
    fn goes_on(&self, id: NodeId, next: Option<u32>) -> bool {
        let node = &self.nodes[id];
        !node.is_root() && (node.children.is_empty() || node.next == next)
    }

    /// Takes hold of the path up to `offset`, which lies in `node`, without a use.
    pub(super) fn lock_at(&mut self, node: NodeId, offset: usize) -> LeaseId {
        self.leases_made += 1;
        let id = LeaseId(self.leases_made);
        self.leases
            .insert(id, Lease { node, offset, tick: self.tick, owes: false, continues: false });
        self.nodes[node].anchored.push(id);
        for on_path in self.nodes.path(node) {
            self.nodes[on_path].locks += 1;
            self.refresh(on_path);
        }
        id
    }

    /// Counts a use of one node of the path that ends in `last`, or owes it.
    fn use_span(&mut self, id: LeaseId, node: NodeId, last: NodeId, continues: bool) {
        let (end, tick) = (self.nodes[node].end(), self.tick);
        if node == last {
            let lease = self.leases.get_mut(&id).expect("the caller holds the lease");
            lease.owes = lease.offset < end;
            if lease.owes {
                return;
            }
        }
        if node == last || self.config.policy != Policy::OldestDeepestLargest {
            self.touch_span(node, tick, continues);
        }
    }

    /// Counts the use that a lease owes for the node that it stands in.
    pub(super) fn settle_use(&mut self, id: LeaseId) {
        if let Some(lease) = self.leases.get_mut(&id)
            && std::mem::take(&mut lease.owes)
        {
            let (node, tick) = (lease.node, lease.tick);
            self.touch_span(node, tick, false);
        }
    }

    /// Lets go of a path. What it covered stays until room is needed.
    pub fn release(&mut self, id: LeaseId) {
        self.settle_use(id);
        let Some(lease) = self.leases.remove(&id) else { return };
        self.nodes[lease.node].anchored.retain(|&other| other != id);
        for on_path in self.nodes.path(lease.node) {
            self.nodes[on_path].locks -= 1;
            self.refresh(on_path);
            self.note_chain(on_path);
        }
        let root = self.nodes.upwards(lease.node).last().expect("a path has a root");
        self.remove_root_if_empty(root);
    }

    /// Makes a lease cover less: the largest offset of at most `upto` at which the sequence can be
    /// resumed, which may be 0. Returns it.
    pub fn shorten(&mut self, id: LeaseId, upto: usize) -> usize {
        let Some(&lease) = self.leases.get(&id) else { return 0 };
        if lease.offset <= upto {
            return lease.offset;
        }
        let (node, offset) = self.resumable(lease.node, upto);
        self.settle_use(id);
        self.move_anchor(id, node, offset);
        self.touch_point_at(node, offset);
        offset
    }

    fn touch_point_at(&mut self, node: NodeId, offset: usize) {
        if self.nodes[node].point.is_some() && offset == self.nodes[node].end() {
            self.touch_point(node, self.tick, true);
        }
    }

    /// The largest offset of at most `upto` on the path to `node` at which a sequence can be
    /// resumed, and the node that it lies in.
    pub(super) fn resumable(&self, node: NodeId, upto: usize) -> (NodeId, usize) {
        let needs_points = self.domain_of(node).shape.needs_points;
        let stop = self.nodes.upwards(node).find(|&id| {
            let node = &self.nodes[id];
            let point = !needs_points || (node.point.is_some() && node.end() <= upto);
            node.is_root() || (node.start < upto && !node.is_hollow() && point)
        });
        let id = stop.expect("the root is always found");
        (id, self.nodes[id].end().min(upto))
    }

    /// Moves the end of a lease to `offset` in `node`, an ancestor of where it ends, a descendant,
    /// or the same.
    pub(super) fn move_anchor(&mut self, id: LeaseId, node: NodeId, offset: usize) {
        let lease = self.leases.get_mut(&id).expect("the caller holds the lease");
        let from = std::mem::replace(&mut lease.node, node);
        let down = offset >= lease.offset;
        lease.offset = offset;
        if from != node {
            self.nodes[from].anchored.retain(|&other| other != id);
            self.nodes[node].anchored.push(id);
            let (low, high) = if down { (node, from) } else { (from, node) };
            let between: Vec<_> =
                self.nodes.upwards(low).take_while(|&passed| passed != high).collect();
            for passed in between {
                let locks = &mut self.nodes[passed].locks;
                *locks = if down { *locks + 1 } else { *locks - 1 };
                self.refresh(passed);
                self.note_chain(passed);
            }
            self.refresh(from);
            self.note_chain(from);
        }
        self.refresh(node);
    }

    /// Offset that a lease covers now; 0 if it was released.
    pub fn leased(&self, id: LeaseId) -> usize {
        self.leases.get(&id).map_or(0, |lease| lease.offset)
    }

    /// Where a lease was made; `None` if it was released.
    pub fn lease_domain(&self, id: LeaseId) -> Option<DomainId> {
        Some(self.domain_id_of(self.leases.get(&id)?.node))
    }

    /// The spans of a lease from the root on, each with the part of it that the lease covers.
    pub fn spans(&self, id: LeaseId) -> impl Iterator<Item = (Range<usize>, Tier, &A)> {
        let lease = self.leases.get(&id);
        let path = lease.map(|lease| self.nodes.path(lease.node)).unwrap_or_default();
        let offset = lease.map_or(0, |lease| lease.offset);
        path.into_iter().filter_map(move |id| {
            let node = &self.nodes[id];
            let held = node.span.as_ref()?;
            Some((node.start..node.end().min(offset), held.tier, &held.payload))
        })
    }

    /// The point at exactly the offset that a lease covers.
    pub fn point(&self, id: LeaseId) -> Option<(Tier, &B)> {
        let lease = self.leases.get(&id)?;
        let node = &self.nodes[lease.node];
        let held = node.point.as_ref().filter(|_| lease.offset == node.end())?;
        Some((held.tier, &held.payload))
    }

    /// Whether there is a point at `offset` of the path that a lease covers.
    pub fn has_point(&self, id: LeaseId, offset: usize) -> bool {
        self.leases.get(&id).is_some_and(|lease| {
            let at = self.node_at(lease.node, offset);
            at.is_some_and(|id| self.nodes[id].end() == offset && self.nodes[id].point.is_some())
        })
    }

    /// The node on the path to `node` whose edge holds the symbol before `offset`.
    pub(super) fn node_at(&self, node: NodeId, offset: usize) -> Option<NodeId> {
        let mut upwards = self.nodes.upwards(node);
        upwards.find(|&id| self.nodes[id].start < offset && offset <= self.nodes[id].end())
    }
}
