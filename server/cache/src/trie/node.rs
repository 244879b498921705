//! The nodes of the trie and the arena that they live in. Structure only: no rules.

use std::collections::BTreeMap;
use std::ops::{Index, IndexMut};

use super::lease::LeaseId;
use super::snapshots::SnapshotId;
use super::value::Rank;
use crate::ledger::Tier;

/// A place in the arena; may be given to another node once the node is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct NodeId(pub(super) u32);

/// A payload, where it lies and what it takes there.
#[derive(Debug)]
pub(super) struct Held<P> {
    pub(super) payload: P,
    pub(super) tier: Tier,
    /// Bytes charged, as the storage said when it last changed.
    pub(super) bytes: u64,
    /// Bytes that it would take lying alone: what its value is divided by. A short span whose only
    /// page is charged to its parent takes none, and would be worth infinitely much.
    pub(super) weight: u64,
    /// Its place among the candidates of its tier, if it is one.
    pub(super) rank: Option<Rank>,
}

/// As many uses count, at most, that only continue the one before.
const CONTINUED_MAX: f64 = 2.0;

/// How often and how lately something was used.
#[derive(Debug, Clone, Copy)]
pub(super) struct Usage {
    /// `log2` of the sum over all uses of `2^(tick / half_life)`: grows with each use and does not
    /// change with time, since every candidate ages alike.
    pub(super) heat: f64,
    /// Tick of the last use.
    pub(super) last: u64,
    /// Leases that used it.
    pub(super) hits: u32,
}

impl Usage {
    /// Of something made by a sequence that is new, or that `continues` one.
    pub(super) fn first(tick: u64, half_life: f64, continues: bool) -> Self {
        let more = if continues { CONTINUED_MAX.log2() } else { 0.0 };
        Self { heat: tick as f64 / half_life + more, last: tick, hits: 0 }
    }

    /// Counts a use. A conversation that goes on uses what it went on from each time, which says
    /// less than as many uses by others: `continues` counts up to [`CONTINUED_MAX`].
    pub(super) fn touch(&mut self, tick: u64, half_life: f64, continues: bool) {
        let now = tick as f64 / half_life;
        let (large, small) = if now > self.heat { (now, self.heat) } else { (self.heat, now) };
        let more = large + (small - large).exp2().ln_1p() / std::f64::consts::LN_2;
        self.heat =
            if continues { more.min(now + CONTINUED_MAX.log2()).max(self.heat) } else { more };
        self.last = tick;
        self.hits = self.hits.saturating_add(1);
    }

    /// The usage of two things that become one.
    pub(super) fn joined(self, other: Self) -> Self {
        Self {
            heat: self.heat.max(other.heat),
            last: self.last.max(other.last),
            hits: self.hits.max(other.hits),
        }
    }
}

/// An edge and the state at and along it. A root has no edge, a *ghost* an edge without state.
pub(super) struct Node<A, B> {
    pub(super) namespace: u32,
    pub(super) parent: Option<NodeId>,
    /// Offset of the first symbol of the edge.
    pub(super) start: usize,
    pub(super) edge: Vec<u32>,
    pub(super) children: BTreeMap<u32, NodeId>,
    /// Hash of the path to the end of the edge.
    pub(super) hash: u64,
    pub(super) span: Option<Held<A>>,
    pub(super) point: Option<Held<B>>,
    /// Children by the tier of their span.
    pub(super) children_in: [u32; Tier::ALL.len()],
    pub(super) span_use: Usage,
    pub(super) point_use: Usage,
    /// First symbol of the child that the last use went on to.
    pub(super) next: Option<u32>,
    /// The most that a span below that has left for a slower tier was worth: a head is worth no
    /// less than what cannot be used without it.
    pub(super) below: u64,
    /// Leases that end at this node or below.
    pub(super) locks: u32,
    /// Leases that end in this node.
    pub(super) anchored: Vec<LeaseId>,
    /// Pinned snapshots at this node or below.
    pub(super) pins: u32,
    /// Snapshots at the end of this node.
    pub(super) named: Vec<SnapshotId>,
    /// Offset of the deepest point in this edge that was evicted.
    pub(super) lost_point: Option<usize>,
    /// Its place among the ghosts, if it is one without children.
    pub(super) ghost: Option<u64>,
}

impl<A, B> Node<A, B> {
    pub(super) fn new(namespace: u32, parent: Option<NodeId>, start: usize, tick: Usage) -> Self {
        Self {
            namespace,
            parent,
            start,
            edge: Vec::new(),
            children: BTreeMap::new(),
            hash: 0,
            span: None,
            point: None,
            children_in: [0; 3],
            span_use: tick,
            point_use: tick,
            next: None,
            below: 0,
            locks: 0,
            anchored: Vec::new(),
            pins: 0,
            named: Vec::new(),
            lost_point: None,
            ghost: None,
        }
    }

    pub(super) fn end(&self) -> usize {
        self.start + self.edge.len()
    }

    pub(super) fn is_root(&self) -> bool {
        self.parent.is_none()
    }

    /// No root, and no state.
    pub(super) fn is_hollow(&self) -> bool {
        self.span.is_none() && !self.is_root()
    }

    pub(super) fn tier(&self) -> Option<Tier> {
        self.span.as_ref().map(|held| held.tier)
    }

    /// How far from the device: a root 0, a ghost farthest. Never falls with depth.
    pub(super) fn distance(&self) -> usize {
        match &self.span {
            Some(held) => held.tier as usize,
            None if self.is_root() => 0,
            None => Tier::ALL.len(),
        }
    }

    /// Whether a child has a span in `tier` or a faster one.
    pub(super) fn has_child_within(&self, tier: Tier) -> bool {
        self.children_in[..=tier as usize].iter().any(|&count| count > 0)
    }

    /// Whether any child has a span.
    pub(super) fn has_spanned_child(&self) -> bool {
        self.children_in.iter().any(|&count| count > 0)
    }
}

/// All nodes of a trie.
pub(super) struct Arena<A, B> {
    slots: Vec<Option<Node<A, B>>>,
    free: Vec<NodeId>,
}

impl<A, B> Arena<A, B> {
    pub(super) fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn insert(&mut self, node: Node<A, B>) -> NodeId {
        if let Some(id) = self.free.pop() {
            self.slots[id.0 as usize] = Some(node);
            return id;
        }
        let id = NodeId(u32::try_from(self.slots.len()).expect("fewer than 2^32 nodes fit memory"));
        self.slots.push(Some(node));
        id
    }

    pub(super) fn remove(&mut self, id: NodeId) -> Node<A, B> {
        self.free.push(id);
        self.slots[id.0 as usize].take().expect("a node is removed once")
    }

    pub(super) fn get(&self, id: NodeId) -> Option<&Node<A, B>> {
        self.slots.get(id.0 as usize)?.as_ref()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (NodeId, &Node<A, B>)> {
        self.slots
            .iter()
            .enumerate()
            .filter_map(|(index, slot)| Some((NodeId(index as u32), slot.as_ref()?)))
    }

    /// `id` and everything below it, parents before children, but nothing below a node that
    /// `enter` refuses.
    pub(super) fn below(
        &self,
        id: NodeId,
        mut enter: impl FnMut(NodeId, &Node<A, B>) -> bool,
    ) -> Vec<NodeId> {
        let mut found = Vec::new();
        let mut next = vec![id];
        while let Some(id) = next.pop() {
            if enter(id, &self[id]) {
                found.push(id);
                next.extend(self[id].children.values().rev());
            }
        }
        found
    }

    /// `id` and its ancestors, the root last.
    pub(super) fn upwards(&self, id: NodeId) -> impl Iterator<Item = NodeId> {
        std::iter::successors(Some(id), |&id| self[id].parent)
    }

    /// The path from the root to `id`, root first.
    pub(super) fn path(&self, id: NodeId) -> Vec<NodeId> {
        let mut path: Vec<_> = self.upwards(id).collect();
        path.reverse();
        path
    }
}

impl<A, B> Index<NodeId> for Arena<A, B> {
    type Output = Node<A, B>;

    fn index(&self, id: NodeId) -> &Node<A, B> {
        self.slots[id.0 as usize].as_ref().expect("ids of removed nodes are not kept")
    }
}

impl<A, B> IndexMut<NodeId> for Arena<A, B> {
    fn index_mut(&mut self, id: NodeId) -> &mut Node<A, B> {
        self.slots[id.0 as usize].as_mut().expect("ids of removed nodes are not kept")
    }
}
