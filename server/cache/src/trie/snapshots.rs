//! Snapshots: restore points with a name, some of them pinned, some for a while only.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::Trie;
use super::config::{DomainId, DomainKey};
use super::lease::LeaseId;
use super::node::NodeId;
use crate::error::Error;
use crate::ledger::Tier;
use crate::storage::Storage;

/// A snapshot. Ids are never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SnapshotId(pub u64);

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How a restore point is to be named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotSpec {
    /// Its name; another snapshot of the name in the same namespace is replaced.
    pub name: String,
    /// Whether it may not be dropped to make room.
    pub pinned: bool,
    /// When it expires, since the start of the clock that [`Trie::expire`] is told.
    pub expires: Option<Duration>,
}

/// A snapshot as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotView {
    /// Which one.
    pub id: SnapshotId,
    /// Its name.
    pub name: String,
    /// Whose state it is.
    pub domain: DomainKey,
    /// The namespace in the domain.
    pub salt: Option<Arc<str>>,
    /// Its offset.
    pub tokens: usize,
    /// Bytes of all state that is needed to resume there, also where it is shared.
    pub bytes: u64,
    /// The slowest tier of that state.
    pub tier: Tier,
    /// Whether it may not be dropped to make room.
    pub pinned: bool,
    /// When it expires.
    pub expires: Option<Duration>,
}

#[derive(Debug)]
struct Snapshot {
    spec: SnapshotSpec,
    node: NodeId,
}

/// All snapshots.
#[derive(Debug, Default)]
pub(super) struct Snapshots {
    by_id: BTreeMap<SnapshotId, Snapshot>,
    expiring: BTreeSet<(Duration, SnapshotId)>,
    made: u64,
}

impl Snapshots {
    /// The nodes of all pinned ones.
    pub(super) fn pinned(&self) -> impl Iterator<Item = NodeId> {
        self.by_id.values().filter(|snapshot| snapshot.spec.pinned).map(|snapshot| snapshot.node)
    }

    /// The node of each.
    pub(super) fn nodes(&self) -> impl Iterator<Item = (SnapshotId, NodeId)> {
        self.by_id.iter().map(|(&id, snapshot)| (id, snapshot.node))
    }
}

impl<A, B> Trie<A, B> {
    /// Names the restore point at `offset` of what a lease covers.
    ///
    /// # Errors
    /// [`Error::NotARestorePoint`] if nothing can be resumed there, [`Error::PinsFull`] if pinned
    /// snapshots would hold more than their share, [`Error::TooManySnapshots`].
    pub fn name<S>(
        &mut self,
        store: &mut S,
        lease: LeaseId,
        offset: usize,
        spec: SnapshotSpec,
    ) -> Result<SnapshotId, Error>
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        let (node, replaced) = self.may_name(lease, offset, &spec)?;
        let domain = self.domain_id_of(node);
        let node =
            if offset < self.nodes[node].end() { self.split(store, node, offset) } else { node };
        if let Err(full) = self.may_pin(node, replaced, spec.pinned) {
            self.note_chain(node);
            self.tidy(store, Some(domain));
            return Err(full);
        }
        if let Some(replaced) = replaced {
            self.unname(replaced);
        }
        self.snapshots.made += 1;
        let id = SnapshotId(self.snapshots.made);
        self.nodes[node].named.push(id);
        self.snapshots.expiring.extend(spec.expires.map(|at| (at, id)));
        let pinned = spec.pinned;
        self.snapshots.by_id.insert(id, Snapshot { spec, node });
        if pinned {
            self.count_pin(node, true);
        }
        self.refresh(node);
        self.tidy(store, Some(domain));
        Ok(id)
    }

    /// Where a snapshot goes and which one it replaces, if it may be made.
    fn may_name(
        &self,
        lease: LeaseId,
        offset: usize,
        spec: &SnapshotSpec,
    ) -> Result<(NodeId, Option<SnapshotId>), Error> {
        let covered = self.leased(lease);
        let nothing = Error::NotARestorePoint { offset, covered };
        let held = self.leases.get(&lease).filter(|held| offset <= held.offset);
        let node = held.and_then(|held| self.node_at(held.node, offset)).ok_or(nothing.clone())?;
        if self.domain_of(node).shape.needs_points && !self.has_point(lease, offset) {
            return Err(nothing);
        }
        let namespace = self.nodes[node].namespace;
        let mut same = self.snapshots.by_id.iter().filter(|(_, other)| {
            other.spec.name == spec.name && self.nodes[other.node].namespace == namespace
        });
        let replaced = same.next().map(|(&id, _)| id);
        if replaced.is_none() && self.snapshots.by_id.len() >= self.config.snapshots_max {
            return Err(Error::TooManySnapshots { max: self.config.snapshots_max });
        }
        Ok((node, replaced))
    }

    /// Whether the path to the end of a node may be pinned.
    fn may_pin(
        &self,
        node: NodeId,
        replaced: Option<SnapshotId>,
        pinned: bool,
    ) -> Result<(), Error> {
        let wanted = self.pinned_bytes(node, replaced);
        let bound = self.pins_bound();
        if pinned && wanted > bound { Err(Error::PinsFull { wanted, bound }) } else { Ok(()) }
    }

    /// Most bytes that pinned snapshots may hold: a share of what there is. The device has no more
    /// than its pools, whatever its limit.
    fn pins_bound(&self) -> u64 {
        let limits = self.config.limits;
        let device = limits.device.min(self.accounts.pools());
        let all = device.saturating_add(limits.host).saturating_add(limits.disk);
        (all as f64 * self.config.pinned_share) as u64
    }

    /// Bytes that pinned snapshots hold, with one more at the end of a node and without another.
    fn pinned_bytes(&self, more: NodeId, without: Option<SnapshotId>) -> u64 {
        let pinned = self
            .snapshots
            .by_id
            .iter()
            .filter(|&(&id, other)| other.spec.pinned && Some(id) != without);
        let ends = pinned.map(|(_, other)| other.node).chain([more]);
        let (mut seen, mut points, mut bytes) = (BTreeSet::new(), BTreeSet::new(), 0);
        for end in ends {
            let node = &self.nodes[end];
            if points.insert(end) {
                bytes += node.point.as_ref().map_or(0, |held| held.bytes);
            }
            for id in self.nodes.upwards(end).take_while(|id| seen.insert(*id)).collect::<Vec<_>>()
            {
                bytes += self.nodes[id].span.as_ref().map_or(0, |held| held.bytes);
            }
        }
        bytes
    }

    fn count_pin(&mut self, node: NodeId, more: bool) {
        for id in self.nodes.path(node) {
            let pins = &mut self.nodes[id].pins;
            *pins = if more { *pins + 1 } else { *pins - 1 };
            self.refresh(id);
        }
    }

    /// Whether a pinned snapshot stands at the end of a node.
    pub(super) fn is_pinned_at(&self, id: NodeId) -> bool {
        self.nodes[id].named.iter().any(|name| self.snapshots.by_id[name].spec.pinned)
    }

    /// Every snapshot, oldest first.
    pub fn snapshots(&self) -> Vec<SnapshotView> {
        self.snapshots.by_id.iter().map(|(&id, snapshot)| self.view(id, snapshot)).collect()
    }

    fn view(&self, id: SnapshotId, snapshot: &Snapshot) -> SnapshotView {
        let node = &self.nodes[snapshot.node];
        let namespace = &self.namespaces[node.namespace];
        let point = node.point.as_ref().map(|held| (held.bytes, held.tier));
        let spans = self
            .nodes
            .upwards(snapshot.node)
            .filter_map(|id| self.nodes[id].span.as_ref().map(|held| (held.bytes, held.tier)));
        let (bytes, tier) = spans
            .chain(point)
            .fold((0, Tier::Device), |(bytes, tier), held| (bytes + held.0, tier.max(held.1)));
        SnapshotView {
            id,
            name: snapshot.spec.name.clone(),
            domain: self.domain(namespace.domain).key,
            salt: namespace.salt.clone(),
            tokens: node.end(),
            bytes,
            tier,
            pinned: snapshot.spec.pinned,
            expires: snapshot.spec.expires,
        }
    }

    /// The symbols of the path of a snapshot.
    pub fn snapshot_path(&self, id: SnapshotId) -> Option<Vec<u32>> {
        self.snapshots.by_id.get(&id).map(|snapshot| self.path_symbols(snapshot.node))
    }

    /// Takes hold of the path of a snapshot, with the symbols of the path.
    pub fn lease_snapshot(&mut self, id: SnapshotId) -> Option<(LeaseId, Vec<u32>)> {
        let node = self.snapshots.by_id.get(&id)?.node;
        let symbols = self.path_symbols(node);
        Some((self.lease_at(node, symbols.len(), None), symbols))
    }

    /// Takes the name and the pin from a restore point, whose state may then be dropped as any
    /// other. Whether there was such a snapshot.
    pub fn drop_snapshot<S>(&mut self, store: &mut S, id: SnapshotId) -> bool
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        let Some(node) = self.snapshots.by_id.get(&id).map(|snapshot| snapshot.node) else {
            return false;
        };
        let domain = self.domain_id_of(node);
        self.unname(id);
        self.tidy(store, Some(domain));
        true
    }

    /// Drops the snapshots that have expired at `now`.
    pub fn expire<S>(&mut self, store: &mut S, now: Duration)
    where
        S: Storage<Span = A, Point = B> + ?Sized,
    {
        while let Some(&(at, id)) = self.snapshots.expiring.first()
            && at <= now
        {
            self.unname(id);
        }
        self.tidy(store, None);
    }

    /// When the next snapshot expires.
    pub fn next_expiry(&self) -> Option<Duration> {
        self.snapshots.expiring.first().map(|&(at, _)| at)
    }

    fn unname(&mut self, id: SnapshotId) {
        let Some(snapshot) = self.snapshots.by_id.remove(&id) else { return };
        if let Some(at) = snapshot.spec.expires {
            self.snapshots.expiring.remove(&(at, id));
        }
        self.nodes[snapshot.node].named.retain(|&other| other != id);
        if snapshot.spec.pinned {
            self.count_pin(snapshot.node, false);
        }
        self.refresh(snapshot.node);
        self.note_chain(snapshot.node);
        if let Some(parent) = self.nodes[snapshot.node].parent {
            self.note_chain(parent);
        }
    }

    /// Takes away all names at the end of a node.
    pub(super) fn unname_all(&mut self, id: NodeId) {
        for name in self.nodes[id].named.clone() {
            self.unname(name);
        }
    }

    /// How many there are.
    pub fn snapshot_count(&self) -> usize {
        self.snapshots.by_id.len()
    }

    /// The domain of a snapshot.
    pub fn snapshot_domain(&self, id: SnapshotId) -> Option<DomainId> {
        Some(self.domain_id_of(self.snapshots.by_id.get(&id)?.node))
    }
}
