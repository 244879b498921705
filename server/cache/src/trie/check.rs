//! Whether everything that must be true of a trie is; for tests.

use std::collections::{BTreeMap, BTreeSet};

use super::Trie;
use super::node::{Node, NodeId};
use super::shape::GHOST_TOKENS;
use super::symbol::extend_hash;
use crate::ledger::Tier;
use crate::storage::Storage;

/// What the walk over all nodes adds up to.
#[derive(Default)]
struct Sums {
    used: BTreeMap<(u32, usize), u64>,
    nodes: usize,
    ghost_tokens: usize,
    ghosts: BTreeSet<(u64, NodeId)>,
    candidates: usize,
}

impl<A, B> Trie<A, B> {
    /// Checks every rule of the trie against every node; takes time in proportion to its size.
    ///
    /// # Errors
    /// What is not as it must be: a bug of this crate, or of the storage.
    pub fn check_invariants<S>(&self, store: &S) -> Result<(), String>
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        let mut sums = Sums::default();
        for (index, domain) in self.domains.iter().enumerate() {
            for number in domain.namespaces() {
                let namespace = &self.namespaces[number];
                must(namespace.domain.0 as usize == index, || "a namespace of two domains".into())?;
                for id in self.nodes.below(namespace.root, |_, _| true) {
                    self.check_node(store, id, &mut sums)
                        .map_err(|wrong| format!("{wrong}, {}", self.show(id)))?;
                    must(self.nodes[id].namespace == number, || format!("{id:?} strays"))?;
                }
            }
        }
        self.check_sums(&sums)
    }

    fn check_node<S>(&self, store: &S, id: NodeId, sums: &mut Sums) -> Result<(), String>
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        let node = &self.nodes[id];
        sums.nodes += 1;
        self.check_shape(id, node)?;
        self.check_holders(id, node)?;
        let domain = self.domain_id_of(id).0;
        if let Some(held) = &node.span {
            *sums.used.entry((domain, held.tier as usize)).or_default() += held.bytes;
            let bytes = store.span_bytes(&held.payload);
            must(bytes == held.bytes, || format!("a span of {bytes} bytes counts {}", held.bytes))?;
            let ranked = self.span_candidate(id).is_some();
            must(held.rank.is_some() == ranked, || format!("span is candidate: {ranked}"))?;
            sums.candidates += usize::from(ranked);
        }
        if let Some(held) = &node.point {
            *sums.used.entry((domain, held.tier as usize)).or_default() += held.bytes;
            let bytes = store.point_bytes(&held.payload);
            must(bytes == held.bytes, || {
                format!("a point of {bytes} bytes counts {}", held.bytes)
            })?;
            must(node.distance() <= held.tier as usize, || "a point faster than its span".into())?;
            let ranked = self.point_candidate(id).is_some();
            must(held.rank.is_some() == ranked, || format!("point is candidate: {ranked}"))?;
            sums.candidates += usize::from(ranked);
        }
        if node.is_hollow() {
            sums.ghost_tokens += node.edge.len() + GHOST_TOKENS;
            must(node.ghost.is_some() == node.children.is_empty(), || "a ghost not listed".into())?;
            sums.ghosts.extend(node.ghost.map(|made| (made, id)));
        } else {
            must(node.ghost.is_none(), || "listed as a ghost".into())?;
        }
        Ok(())
    }

    fn check_shape(&self, id: NodeId, node: &Node<A, B>) -> Result<(), String> {
        let mut children_in = [0; Tier::ALL.len()];
        for (&first, &child) in &node.children {
            let below = &self.nodes[child];
            must(below.parent == Some(id), || "a child of another".into())?;
            must(below.edge.first() == Some(&first), || "a child under a wrong symbol".into())?;
            must(below.start == node.end(), || "a gap before a child".into())?;
            must(below.distance() >= node.distance(), || "a child in a faster tier".into())?;
            must(below.hash == extend_hash(node.hash, &below.edge), || "a wrong hash".into())?;
            if let Some(tier) = below.tier() {
                children_in[tier as usize] += 1;
            }
        }
        must(children_in == node.children_in, || {
            format!("children counted {:?}", node.children_in)
        })?;
        must(node.is_root() == node.edge.is_empty(), || "an empty edge".into())?;
        must(!node.is_root() || (node.span.is_none() && node.start == 0), || {
            "a root with state".into()
        })?;
        must(node.parent.is_some() || !node.children.is_empty() || node.locks > 0, || {
            "an empty root".into()
        })?;
        let lost = node.lost_point.is_none_or(|at| node.start < at && at <= node.end());
        must(lost, || format!("a point lost elsewhere: {:?}", node.lost_point))
    }

    fn check_holders(&self, id: NodeId, node: &Node<A, B>) -> Result<(), String> {
        let below = |end: NodeId| self.nodes.upwards(end).any(|above| above == id);
        let locks = self.leases.values().filter(|lease| below(lease.node)).count();
        must(locks == node.locks as usize, || format!("{locks} leases, counted {}", node.locks))?;
        let pins = self.snapshots.pinned().filter(|&end| below(end)).count();
        must(pins == node.pins as usize, || format!("{pins} pins, counted {}", node.pins))?;
        must(!node.is_hollow() || locks + pins == 0, || "held state is gone".into())?;
        for (&lease, held) in &self.leases {
            let listed = node.anchored.contains(&lease);
            must(listed == (held.node == id), || format!("{lease:?} is listed: {listed}"))?;
            let inside = node.start < held.offset || (node.is_root() && held.offset == 0);
            must(!listed || (inside && held.offset <= node.end()), || format!("{held:?} outside"))?;
        }
        for (name, end) in self.snapshots.nodes() {
            must(node.named.contains(&name) == (end == id), || format!("{name:?} astray"))?;
        }
        let needs_points = self.domain_of(id).shape.needs_points;
        let resumable = node.span.is_some() && (!needs_points || node.point.is_some());
        must(node.named.is_empty() || resumable, || "a snapshot without its state".into())
    }

    fn check_sums(&self, sums: &Sums) -> Result<(), String> {
        for tier in Tier::ALL {
            for (index, domain) in self.domains.iter().enumerate() {
                let sum = sums.used.get(&(index as u32, tier as usize)).copied().unwrap_or(0);
                let used = domain.used[tier as usize];
                must(sum == used, || format!("{sum} bytes on {tier}, counted {used}"))?;
            }
            let sum: u64 = self.domains.iter().map(|domain| domain.used[tier as usize]).sum();
            let used = self.accounts.used(tier);
            must(sum == used, || format!("{sum} bytes on {tier}, {used} in the ledger"))?;
            let limit = self.limit(tier);
            must(used <= limit, || format!("{used} bytes on {tier}, of at most {limit}"))?;
        }
        let nodes = self.nodes.len();
        must(sums.nodes == nodes, || format!("{} nodes in reach of {nodes}", sums.nodes))?;
        must(sums.ghost_tokens == self.ghost_tokens, || {
            format!("{} tokens of ghosts, counted {}", sums.ghost_tokens, self.ghost_tokens)
        })?;
        must(sums.ghosts == self.ghosts, || "the list of ghosts is wrong".into())?;
        must(sums.candidates == self.candidates.len(), || {
            format!("{} candidates, counted {}", sums.candidates, self.candidates.len())
        })
    }

    fn show(&self, id: NodeId) -> String {
        let node = &self.nodes[id];
        format!(
            "node {} [{}..{}) in {:?}, point in {:?}, {} locks, {} pins, children {:?}",
            id.0,
            node.start,
            node.end(),
            node.tier(),
            node.point.as_ref().map(|held| held.tier),
            node.locks,
            node.pins,
            node.children,
        )
    }
}

fn must(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise()) }
}
