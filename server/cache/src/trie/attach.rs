//! Attach: a point is set at an offset of a leased path.

use super::Trie;
use super::lease::LeaseId;
use super::node::NodeId;
use crate::ledger::Tier;
use crate::storage::{Refused, Storage};

impl<A, B> Trie<A, B> {
    /// Sets a point, which lies on the device so far, at `offset` of what the lease covers. False,
    /// with the point freed, if there is one already, the lease does not cover the offset, the
    /// domain needs no points, or no room can be made. The point is kept where new state is, or
    /// with its span in a slower tier.
    pub fn attach<S>(&mut self, store: &mut S, id: LeaseId, offset: usize, point: B) -> bool
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        let kept = match self.attach_point(store, id, offset, point) {
            Ok(()) => true,
            Err(point) => {
                if let Some(point) = point {
                    store.free_point(point);
                }
                false
            }
        };
        let domain = self.lease_domain(id);
        self.tidy(store, domain);
        kept
    }

    fn attach_point<S>(
        &mut self,
        store: &mut S,
        id: LeaseId,
        offset: usize,
        point: B,
    ) -> Result<(), Option<B>>
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        let Some((node, top)) = self.place_for_point(id, offset) else { return Err(Some(point)) };
        let domain = self.domain_id_of(node);
        let tier = self.nodes[node].tier().map_or(top, |tier| tier.max(top));
        let need = match tier {
            Tier::Device => store.point_bytes(&point),
            Tier::Host | Tier::Disk => store.point_bytes_in(&point, tier),
        };
        if !self.make_room(store, domain, tier, need, u64::MAX) {
            return Err(Some(point));
        }
        // To make room the node may have been cut behind the lease.
        let node = self.node_at(self.leases[&id].node, offset).unwrap_or(node);
        let node =
            if offset < self.nodes[node].end() { self.split(store, node, offset) } else { node };
        let placed = if tier == Tier::Device {
            Ok(point)
        } else {
            let symbols = self.path_symbols(node);
            self.with_place(node, offset, &symbols, |place| store.move_point(point, tier, place))
        };
        match placed {
            Ok(point) => {
                let held = self.hold_point(store, domain, point, tier, need);
                self.set_point(node, held);
                Ok(())
            }
            Err(refused) => {
                self.discharge(domain, tier, need);
                self.note_chain(node);
                Err(match refused {
                    Refused::Kept(point) => Some(point),
                    Refused::Lost => None,
                })
            }
        }
    }

    /// The node whose edge covers `offset`, and the tier of new state, if a point can be set there.
    fn place_for_point(&self, id: LeaseId, offset: usize) -> Option<(NodeId, Tier)> {
        let lease = self.leases.get(&id).filter(|lease| offset <= lease.offset)?;
        let node = self.node_at(lease.node, offset)?;
        let is = &self.nodes[node];
        let taken = is.end() == offset && is.point.is_some();
        let wanted = self.domain_of(node).shape.needs_points && !taken;
        Some((node, self.top().filter(|_| wanted)?))
    }

    /// Gives a node a point.
    pub(super) fn set_point(&mut self, id: NodeId, held: super::node::Held<B>) {
        let node = &mut self.nodes[id];
        node.point = Some(held);
        // Until it is used itself, it is as likely to be as what passes it.
        node.point_use = node.span_use;
        let end = node.end();
        node.lost_point.take_if(|at| *at == end);
        self.counters.points_stored += 1;
        self.note_point_stored(id);
        self.refresh(id);
        self.rerank_below(id);
    }

    /// Ranks the points next below a node again, for which its new point makes the way shorter: as
    /// far as the path does not fork. The others are found out when their turn comes, or later
    /// than they should leave.
    fn rerank_below(&mut self, id: NodeId) {
        /// Nodes looked at.
        const FAR: usize = 64;
        let mut at = id;
        for _ in 0..FAR {
            let node = &self.nodes[at];
            let Some((_, &child)) = node.children.first_key_value() else { return };
            if node.children.len() > 1 {
                return;
            }
            self.refresh(child);
            if self.nodes[child].point.is_some() {
                return;
            }
            at = child;
        }
    }
}
