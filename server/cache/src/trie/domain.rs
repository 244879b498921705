//! Domains (a model each) and their namespaces (a root for each salt).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Index;
use std::sync::Arc;

use super::Trie;
use super::config::{DomainId, DomainKey, DomainShape};
use super::node::{Node, NodeId};
use super::symbol::root_hash;
use crate::ledger::Tier;

/// A model, loaded or not.
#[derive(Debug)]
pub(super) struct Domain {
    pub(super) key: DomainKey,
    pub(super) shape: DomainShape,
    pub(super) used: [u64; Tier::ALL.len()],
    unsalted: Option<u32>,
    salted: BTreeMap<Arc<str>, u32>,
    /// Nodes on the device that may have become a chain with their only child.
    pub(super) chains: BTreeSet<NodeId>,
}

impl Domain {
    /// The namespaces of the domain.
    pub(super) fn namespaces(&self) -> impl Iterator<Item = u32> {
        self.unsalted.into_iter().chain(self.salted.values().copied())
    }

    pub(super) fn namespace(&self, salt: Option<&str>) -> Option<u32> {
        salt.map_or(self.unsalted, |salt| self.salted.get(salt).copied())
    }
}

/// A trie of its own.
#[derive(Debug)]
pub(super) struct Namespace {
    pub(super) domain: DomainId,
    pub(super) salt: Option<Arc<str>>,
    pub(super) root: NodeId,
}

/// All namespaces, by number.
#[derive(Debug, Default)]
pub(super) struct Namespaces {
    slots: Vec<Option<Namespace>>,
    free: Vec<u32>,
}

impl Namespaces {
    fn next(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            u32::try_from(self.slots.len() - 1).expect("a namespace has a node, nodes fit 32 bits")
        })
    }
}

impl Index<u32> for Namespaces {
    type Output = Namespace;

    fn index(&self, id: u32) -> &Namespace {
        self.slots[id as usize].as_ref().expect("a namespace lives as long as its nodes")
    }
}

impl<A, B> Trie<A, B> {
    /// The domain with this key: a new one, or what a closed one left. An open one is found as it
    /// is, with the new shape.
    pub fn open_domain(&mut self, key: DomainKey, shape: DomainShape) -> DomainId {
        let shape = DomainShape { page_tokens: shape.page_tokens.max(1), ..shape };
        if let Some(index) = self.domains.iter().position(|domain| domain.key == key) {
            self.domains[index].shape = shape;
            return DomainId(index as u32);
        }
        self.domains.push(Domain {
            key,
            shape,
            used: [0; 3],
            unsalted: None,
            salted: BTreeMap::new(),
            chains: BTreeSet::new(),
        });
        DomainId(self.domains.len() as u32 - 1)
    }

    /// Whose a domain is.
    pub fn domain_key(&self, domain: DomainId) -> DomainKey {
        self.domain(domain).key
    }

    /// Whether a sequence of a domain can be resumed only where there is a point.
    pub fn needs_points(&self, domain: DomainId) -> bool {
        self.domain(domain).shape.needs_points
    }

    /// Bytes of cached state of a domain in a tier.
    pub fn used(&self, domain: DomainId, tier: Tier) -> u64 {
        self.domain(domain).used[tier as usize]
    }

    pub(super) fn domain(&self, id: DomainId) -> &Domain {
        &self.domains[id.0 as usize]
    }

    pub(super) fn domain_of(&self, id: NodeId) -> &Domain {
        self.domain(self.domain_id_of(id))
    }

    pub(super) fn domain_id_of(&self, id: NodeId) -> DomainId {
        self.namespaces[self.nodes[id].namespace].domain
    }

    /// The root of a namespace, if anything was kept there.
    pub(super) fn root(&self, domain: DomainId, salt: Option<&str>) -> Option<NodeId> {
        Some(self.namespaces[self.domain(domain).namespace(salt)?].root)
    }

    /// The root of a namespace.
    pub(super) fn root_or_new(&mut self, domain: DomainId, salt: Option<&str>) -> NodeId {
        if let Some(root) = self.root(domain, salt) {
            return root;
        }
        let number = self.namespaces.next();
        let key = self.domain(domain).key;
        let mut node = Node::new(number, None, 0, self.first_use());
        node.hash = root_hash(key.fingerprint, key.instance, salt);
        let root = self.nodes.insert(node);
        let salt: Option<Arc<str>> = salt.map(Arc::from);
        let entry = &mut self.domains[domain.0 as usize];
        match &salt {
            None => entry.unsalted = Some(number),
            Some(salt) => _ = entry.salted.insert(salt.clone(), number),
        }
        self.namespaces.slots[number as usize] = Some(Namespace { domain, salt, root });
        root
    }

    /// Removes a namespace that has neither nodes nor leases.
    pub(super) fn remove_root_if_empty(&mut self, root: NodeId) {
        let node = &self.nodes[root];
        if !node.children.is_empty() || node.locks > 0 {
            return;
        }
        let number = self.nodes.remove(root).namespace;
        let namespace = self.namespaces.slots[number as usize].take();
        let namespace = namespace.expect("a namespace lives as long as its root");
        self.namespaces.free.push(number);
        let entry = &mut self.domains[namespace.domain.0 as usize];
        match namespace.salt {
            None => entry.unsalted = None,
            Some(salt) => _ = entry.salted.remove(&salt),
        }
    }

    /// The symbols of the path up to the end of a node.
    pub(super) fn path_symbols(&self, id: NodeId) -> Vec<u32> {
        let mut symbols = Vec::with_capacity(self.nodes[id].end());
        for id in self.nodes.path(id) {
            symbols.extend_from_slice(&self.nodes[id].edge);
        }
        symbols
    }
}
