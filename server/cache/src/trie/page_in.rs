//! Page in: the spans of a lease come up to the device.

use super::Trie;
use super::config::DomainId;
use super::lease::LeaseId;
use super::leave::Moved;
use super::node::NodeId;
use crate::ledger::Tier;
use crate::storage::Storage;

impl<A, B> Trie<A, B> {
    /// Moves the spans of a lease to the device, from the root on; points stay where they are. A
    /// span that is refused, or finds no room, shortens the lease to what can be resumed before it.
    /// Returns the offset that the lease covers then. With the device tier off nothing moves.
    pub fn page_in<S>(&mut self, store: &mut S, id: LeaseId) -> usize
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        let Some(domain) = self.lease_domain(id) else { return 0 };
        if self.limit(Tier::Device) > 0 {
            self.page_in_path(store, id, domain);
        }
        self.tidy(store, Some(domain));
        self.leased(id)
    }

    fn page_in_path<S>(&mut self, store: &mut S, id: LeaseId, domain: DomainId)
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        while let Some(node) = self.first_below(id, Tier::Device) {
            let node = self.cut_at_lease(store, id, node, domain);
            let start = self.nodes[node].start;
            match self.move_span(store, node, Tier::Device, u64::MAX) {
                Moved::Yes => {}
                Moved::No => {
                    self.shorten(id, start);
                    return;
                }
                Moved::Lost => {
                    self.drop_below(store, node);
                    return;
                }
            }
        }
    }

    /// The first node on the path of a lease whose span lies below `tier`.
    pub(super) fn first_below(&self, id: LeaseId, tier: Tier) -> Option<NodeId> {
        let node = self.leases.get(&id)?.node;
        self.nodes
            .upwards(node)
            .take_while(|&id| self.nodes[id].tier().is_some_and(|here| here > tier))
            .last()
    }

    /// Cuts a node in which a lease ends behind the page in which it ends, so that what it does not
    /// need stays. Returns the part that it needs.
    fn cut_at_lease<S>(
        &mut self,
        store: &mut S,
        id: LeaseId,
        node: NodeId,
        domain: DomainId,
    ) -> NodeId
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        let lease = self.leases[&id];
        let at = lease.offset.next_multiple_of(self.domain(domain).shape.page_tokens);
        let inside =
            lease.node == node && at > self.nodes[node].start && at < self.nodes[node].end();
        if inside { self.split(store, node, at) } else { node }
    }
}
