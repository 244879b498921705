//! The trie as data, and what was counted.

use super::Trie;
use super::config::DomainId;
use super::find::Match;
use super::node::{Node, NodeId};
use crate::ledger::Tier;

/// One node as it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeView {
    /// Its parent's place in the list; none for a node that begins at offset 0.
    pub parent: Option<usize>,
    /// Tokens of its edge.
    pub edge_tokens: usize,
    /// Offset of its end.
    pub depth: usize,
    /// Whether a sequence can be resumed at its end.
    pub restore_point: bool,
    /// Bytes of the state along its edge.
    pub span_bytes: u64,
    /// Bytes of the state at its end.
    pub point_bytes: u64,
    /// Where its state lies, the slower one of both; none if it was evicted.
    pub tier: Option<Tier>,
    /// Whether a pinned snapshot needs it.
    pub pinned: bool,
    /// Whether a running sequence stands on it.
    pub leased: bool,
    /// Leases that used it.
    pub hits: u32,
    /// When it was used last, in leases made in all.
    pub last_used: u64,
}

/// What happened since the start, and what is held now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TrieCounters {
    /// Leases by the reason of their match, in the order of [`Reason`].
    pub leases: [u64; 8],
    /// Tokens resumed, by the slowest tier that was needed.
    pub tokens_resumed: [u64; Tier::ALL.len()],
    /// Tokens that matched and were not resumed.
    pub tokens_unresumed: u64,
    /// Spans that came in.
    pub spans_stored: u64,
    /// Points that came in.
    pub points_stored: u64,
    /// Spans that moved up, by the tier that they came from.
    pub spans_up: [u64; Tier::ALL.len()],
    /// Spans that moved down, by the tier that they went to.
    pub spans_down: [u64; Tier::ALL.len()],
    /// Points that moved down, by the tier that they went to.
    pub points_down: [u64; Tier::ALL.len()],
    /// Bytes that moved up, as they count where they came to, by the tier that they came from.
    pub bytes_up: [u64; Tier::ALL.len()],
    /// Bytes that moved down, as they count there, by the tier that they went to.
    pub bytes_down: [u64; Tier::ALL.len()],
    /// Spans dropped, by the tier that they lay in.
    pub spans_dropped: [u64; Tier::ALL.len()],
    /// Tokens of spans dropped, by the tier that they lay in.
    pub tokens_dropped: [u64; Tier::ALL.len()],
    /// Points dropped, by the tier that they lay in.
    pub points_dropped: [u64; Tier::ALL.len()],
    /// Spans that turned out to be damaged when they were to move.
    pub spans_lost: u64,
    /// Points that turned out to be damaged when they were to move.
    pub points_lost: u64,
    /// Bytes held now.
    pub bytes: [u64; Tier::ALL.len()],
    /// Nodes now, roots and ghosts included.
    pub nodes: usize,
    /// Tokens remembered without state now, and 64 for each node of them.
    pub ghost_tokens: usize,
    /// Payloads that may be moved or dropped now.
    pub candidates: usize,
    /// Leases now.
    pub leased: usize,
}

impl TrieCounters {
    pub(super) fn count_lease(&mut self, found: &Match) {
        self.leases[found.reason as usize] += 1;
        if let Some(tier) = found.tier {
            self.tokens_resumed[tier as usize] += found.resumed as u64;
        }
        self.tokens_unresumed += (found.matched - found.resumed) as u64;
    }

    pub(super) fn count_span_move(&mut self, from: Tier, to: Tier, bytes: u64) {
        if to < from {
            self.spans_up[from as usize] += 1;
        } else {
            self.spans_down[to as usize] += 1;
        }
        self.count_bytes(from, to, bytes);
    }

    pub(super) fn count_point_move(&mut self, from: Tier, to: Tier, bytes: u64) {
        self.points_down[to as usize] += 1;
        self.count_bytes(from, to, bytes);
    }

    fn count_bytes(&mut self, from: Tier, to: Tier, bytes: u64) {
        if to < from {
            self.bytes_up[from as usize] += bytes;
        } else {
            self.bytes_down[to as usize] += bytes;
        }
    }

    pub(super) fn count_span_drop(&mut self, tier: Tier, tokens: usize) {
        self.spans_dropped[tier as usize] += 1;
        self.tokens_dropped[tier as usize] += tokens as u64;
    }

    pub(super) fn count_point_drop(&mut self, tier: Tier) {
        self.points_dropped[tier as usize] += 1;
    }

    /// Points held now: a point goes only by being dropped or lost.
    pub fn points_held(&self) -> u64 {
        self.points_stored - self.points_dropped.iter().sum::<u64>() - self.points_lost
    }
}

impl<A, B> Trie<A, B> {
    /// The nodes of a domain, depth first, ghosts included and roots not.
    pub fn describe(&self, domain: DomainId) -> Vec<NodeView> {
        self.describe_where(domain, |_| true)
    }

    /// As [`describe`](Self::describe), of the namespaces whose salt is `told`.
    pub fn describe_where(
        &self,
        domain: DomainId,
        told: impl Fn(Option<&str>) -> bool,
    ) -> Vec<NodeView> {
        let mut places = std::collections::HashMap::<NodeId, usize>::new();
        let mut views = Vec::new();
        for id in self.nodes_of(domain) {
            let node = &self.nodes[id];
            if !node.is_root() && told(self.namespaces[node.namespace].salt.as_deref()) {
                places.insert(id, views.len());
                let parent = node.parent.and_then(|parent| places.get(&parent)).copied();
                views.push(self.view_node(node, parent));
            }
        }
        views
    }

    fn view_node(&self, node: &Node<A, B>, parent: Option<usize>) -> NodeView {
        let needs_points = self.domain(self.namespaces[node.namespace].domain).shape.needs_points;
        let point = node.point.as_ref();
        NodeView {
            parent,
            edge_tokens: node.edge.len(),
            depth: node.end(),
            restore_point: !node.is_hollow() && (!needs_points || point.is_some()),
            span_bytes: node.span.as_ref().map_or(0, |held| held.bytes),
            point_bytes: point.map_or(0, |held| held.bytes),
            tier: node.tier().max(point.map(|held| held.tier)),
            pinned: node.pins > 0,
            leased: node.locks > 0,
            hits: node.span_use.hits,
            last_used: node.span_use.last.max(node.point_use.last),
        }
    }

    /// What was counted.
    pub fn counters(&self) -> TrieCounters {
        TrieCounters {
            bytes: Tier::ALL.map(|tier| self.accounts.used(tier)),
            nodes: self.nodes.len(),
            ghost_tokens: self.ghost_tokens,
            candidates: self.candidates.len(),
            leased: self.leases.len(),
            ..self.counters
        }
    }
}
