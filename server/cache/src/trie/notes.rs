//! What the trie tells its log: which event a change is, and all that is held as if it had just come.

use std::sync::Arc;

use super::Trie;
use super::config::DomainId;
use super::events::{Event, Landmark, PageStart, Stretch};
use super::node::NodeId;
use super::symbol::extend_hash;
use crate::ledger::Tier;

impl<A, B> Trie<A, B> {
    /// All that is held of a domain's namespace, as the events that would tell of it: what comes
    /// before comes first.
    pub fn picture(&self, domain: DomainId, salt: Option<&str>) -> Vec<Event> {
        let Some(root) = self.root(domain, salt) else { return Vec::new() };
        let mut events = Vec::new();
        for id in self.nodes.below(root, |_, _| true) {
            let node = &self.nodes[id];
            if let Some(tier) = node.tier().filter(|_| !node.is_root()) {
                events.push(Event::Stored(self.stretch(id, tier)));
                events.extend(node.point.as_ref().map(|_| Event::PointStored(self.landmark(id))));
            }
        }
        events
    }

    pub(super) fn note_stored(&mut self, id: NodeId, tier: Tier) {
        if self.log.is_on() {
            let stretch = self.stretch(id, tier);
            self.log.push(Event::Stored(stretch));
        }
    }

    pub(super) fn note_removed(&mut self, id: NodeId, tier: Tier) {
        if self.log.is_on() {
            let stretch = self.stretch(id, tier);
            self.log.push(Event::Removed(stretch));
        }
    }

    pub(super) fn note_point_stored(&mut self, id: NodeId) {
        if self.log.is_on() {
            let landmark = self.landmark(id);
            self.log.push(Event::PointStored(landmark));
        }
    }

    pub(super) fn note_point_removed(&mut self, id: NodeId) {
        if self.log.is_on() {
            let landmark = self.landmark(id);
            self.log.push(Event::PointRemoved(landmark));
        }
    }

    fn stretch(&self, id: NodeId, tier: Tier) -> Stretch {
        let node = &self.nodes[id];
        let namespace = &self.namespaces[node.namespace];
        let parent = node.parent.expect("a root has no edge");
        Stretch {
            domain: self.domain(namespace.domain).key,
            salt: namespace.salt.as_ref().map(Arc::clone),
            start: node.start,
            tokens: node.edge.clone().into(),
            hash_before: self.nodes[parent].hash,
            hash_after: node.hash,
            page: self.page_start(parent),
            tier,
        }
    }

    fn landmark(&self, id: NodeId) -> Landmark {
        let node = &self.nodes[id];
        let namespace = &self.namespaces[node.namespace];
        Landmark {
            domain: self.domain(namespace.domain).key,
            salt: namespace.salt.as_ref().map(Arc::clone),
            offset: node.end(),
            page: self.page_start(id),
        }
    }

    /// The last full page up to the end of a node.
    fn page_start(&self, id: NodeId) -> PageStart {
        let end = self.nodes[id].end();
        let page = self.domain_of(id).shape.page_tokens;
        let offset = end / page * page;
        let (mut at, mut edges) = (id, Vec::new());
        loop {
            let node = &self.nodes[at];
            match node.parent {
                // A page begins in this edge or where it ends.
                Some(parent) if node.start <= offset => {
                    let (head, tail) = node.edge.split_at(offset - node.start);
                    let hash = match tail {
                        [] => node.hash,
                        _ => extend_hash(self.nodes[parent].hash, head),
                    };
                    edges.push(tail);
                    let tokens = edges.iter().rev().copied().flatten().copied().collect();
                    return PageStart { offset, hash, tokens };
                }
                Some(parent) => {
                    edges.push(&node.edge[..]);
                    at = parent;
                }
                None => return PageStart { offset, hash: node.hash, tokens: Box::default() },
            }
        }
    }
}
