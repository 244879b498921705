//! Close: a model goes, or the process; what is remembered moves down.

use std::collections::BTreeSet;

use super::Trie;
use super::config::DomainId;
use super::events::Event;
use super::lease::LeaseId;
use super::node::{Node, NodeId};
use super::value::Kind;
use crate::ledger::Tier;
use crate::storage::Storage;

/// A payload that has to move, and what it is worth with all that depends on it.
struct Leaving {
    worth: u64,
    depth: usize,
    kind: Kind,
    node: NodeId,
}

impl<A, B> Trie<A, B> {
    /// A model goes: all its state on the device moves down, the most valuable first and heads
    /// before tails, or is dropped where there is no room. Leases of the domain end. The domain
    /// stays known; [`Self::open_domain`] finds it again.
    pub fn close_domain<S>(&mut self, store: &mut S, domain: DomainId)
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        self.end_leases(domain);
        self.move_down(store, domain, Tier::Device, Tier::Host);
        self.tidy(store, Some(domain));
    }

    /// The process ends: state in host memory moves to disk as far as there is room. State that is
    /// leased stays; so does all of it if the disk tier is off. Domains are to be closed before.
    pub fn park<S>(&mut self, store: &mut S)
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        if self.limit(Tier::Disk) > 0 {
            for index in 0..self.domains.len() {
                self.move_down(store, DomainId(index as u32), Tier::Host, Tier::Disk);
            }
        }
        self.tidy(store, None);
    }

    /// Drops all state that is not leased, pinned or not, of one domain or of all. Only ghosts of
    /// what is on the path to leased state stay.
    pub fn clear<S>(&mut self, store: &mut S, domain: Option<DomainId>)
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        for index in 0..self.domains.len() {
            let id = DomainId(index as u32);
            if domain.is_none_or(|only| only == id) {
                self.clear_domain(store, id);
                self.log.push(Event::Cleared { domain: self.domain(id).key });
            }
        }
        self.tidy(store, domain);
    }

    /// Drops the state of a domain that is neither leased nor needed by a snapshot. What a snapshot
    /// needs of a path is all of its spans and its own point.
    pub fn flush<S>(&mut self, store: &mut S, domain: DomainId)
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        let nodes = self.nodes_of(domain);
        let named = nodes.iter().filter(|&&id| !self.nodes[id].named.is_empty());
        let needed: BTreeSet<_> = named.flat_map(|&id| self.nodes.upwards(id)).collect();
        for id in nodes.into_iter().rev() {
            let node = &self.nodes[id];
            if node.is_root() || node.is_hollow() {
                continue;
            }
            if node.locks == 0 && !needed.contains(&id) {
                self.drop_below(store, id);
            } else if node.named.is_empty() && self.point_candidate(id).is_some() {
                self.drop_point(store, id);
            }
        }
        self.tidy(store, Some(domain));
    }

    fn clear_domain<S>(&mut self, store: &mut S, domain: DomainId)
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        for id in self.nodes_of(domain).into_iter().rev() {
            // A root goes with its last child.
            if self.nodes.get(id).is_none_or(Node::is_root) {
                continue;
            }
            if self.nodes[id].locks == 0 {
                if !self.nodes[id].is_hollow() {
                    self.drop_below(store, id);
                }
                self.remove_ghost(id);
                continue;
            }
            self.unname_all(id);
            if self.point_candidate(id).is_some() {
                self.drop_point(store, id);
            }
        }
    }

    /// All nodes of a domain, parents before children.
    pub(super) fn nodes_of(&self, domain: DomainId) -> Vec<NodeId> {
        let roots = self.domain(domain).namespaces().map(|number| self.namespaces[number].root);
        roots.flat_map(|root| self.nodes.below(root, |_, _| true)).collect()
    }

    /// Leases of a domain end: its model is gone, and with it whatever ran on it.
    fn end_leases(&mut self, domain: DomainId) {
        let ended: Vec<_> = self
            .leases
            .iter()
            .filter(|(_, lease)| self.domain_id_of(lease.node) == domain)
            .map(|(&id, _)| id)
            .collect();
        for lease in ended {
            self.release(lease);
        }
    }

    /// Moves what a domain has in tier `from` to `to` or further down.
    fn move_down<S>(&mut self, store: &mut S, domain: DomainId, from: Tier, to: Tier)
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        let mut holds = Vec::new();
        for leaving in self.leaving(domain, from) {
            let Leaving { node, kind, worth, .. } = leaving;
            let is = &self.nodes[node];
            match kind {
                _ if is.locks > 0 => {}
                Kind::Span if is.tier() == Some(from) => {
                    if let Some(head) = self.cut_to_fit(store, node, to, worth) {
                        holds.extend(self.span_down(store, head, to, worth));
                    }
                    // If the head was dropped, so was the rest.
                    if self.nodes[node].tier() == Some(from) {
                        holds.extend(self.span_down(store, node, to, worth));
                    }
                }
                Kind::Point if is.point.as_ref().map(|held| held.tier) == Some(from) => {
                    self.point_leaves(store, node, to, worth, true);
                }
                Kind::Span | Kind::Point => {}
            }
        }
        for hold in holds {
            self.release(hold);
        }
    }

    /// Moves a span to `to` or further down: below a head that found no room no tail is faster.
    /// A span that went further than `to` before its tails is held until they have followed, so
    /// that no head above it makes room for them.
    fn span_down<S>(&mut self, store: &mut S, id: NodeId, to: Tier, worth: u64) -> Option<LeaseId>
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        let above = self.nodes[id].parent.and_then(|parent| self.nodes[parent].tier());
        self.span_leaves(store, id, above.map_or(to, |tier| tier.max(to)), worth, true);
        let node = &self.nodes[id];
        let end = node.end();
        let waits = node.tier() > Some(to) && node.has_child_within(to);
        waits.then(|| self.lock_at(id, end))
    }

    /// Cuts a span that can be resumed anywhere and is too large for a tier, so that the head fits
    /// the room that can be made. Returns the head.
    fn cut_to_fit<S>(&mut self, store: &mut S, id: NodeId, to: Tier, worth: u64) -> Option<NodeId>
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        let domain = self.domain_id_of(id);
        let shape = self.domain(domain).shape;
        let need = store.span_bytes_in(&self.nodes[id].span.as_ref()?.payload, to);
        if shape.needs_points || self.limit(to) == 0 {
            return None;
        }
        if self.make_room(store, domain, to, need, worth) {
            self.discharge(domain, to, need);
            return None;
        }
        let node = &self.nodes[id];
        node.span.as_ref()?;
        let free = self.limit(to).saturating_sub(self.accounts.used(to));
        let share = free as f64 / need as f64;
        let fits = node.start + (node.edge.len() as f64 * share) as usize;
        let at = fits / shape.page_tokens * shape.page_tokens;
        (node.start < at && at < node.end()).then(|| self.split(store, id, at))
    }

    /// What a domain has in a tier, the most valuable first; a head is worth no less than what
    /// depends on it.
    fn leaving(&self, domain: DomainId, from: Tier) -> Vec<Leaving> {
        let nodes = self.nodes_of(domain);
        let mut worth = std::collections::HashMap::<NodeId, u64>::new();
        let mut leaving = Vec::new();
        for &node in nodes.iter().rev() {
            let is = &self.nodes[node];
            let mut most = worth.get(&node).copied().unwrap_or(0);
            if is.point.is_some() {
                let own = if self.is_pinned_at(node) {
                    u64::MAX
                } else {
                    self.rank(node, Kind::Point).value
                };
                most = most.max(own);
                if is.point.as_ref().is_some_and(|held| held.tier == from) {
                    leaving.push(Leaving { worth: own, depth: is.end(), kind: Kind::Point, node });
                }
            }
            if let Some(held) = &is.span {
                most = most.max(if is.pins > 0 {
                    u64::MAX
                } else {
                    self.rank(node, Kind::Span).value
                });
                if held.tier == from {
                    leaving.push(Leaving { worth: most, depth: is.end(), kind: Kind::Span, node });
                }
            }
            if let Some(parent) = is.parent {
                let above = worth.entry(parent).or_default();
                *above = most.max(*above);
            }
        }
        leaving.sort_by_key(|one| (!one.worth, one.depth, one.kind == Kind::Point));
        leaving
    }
}
