//! Snapshots: names of restore points, given when a sequence has computed its prompt.

use std::time::{Duration, Instant};

use sconce_cache::{DomainId, LeaseId, SnapshotId, SnapshotSpec, SnapshotView};
use sconce_models::StatePool;

use super::{Cache, Memory};
use crate::error::EngineError;
use crate::sequence::Sequence;
use crate::snapshot::SnapshotInfo;

impl Memory<'_> {
    /// Names what an open sequence has computed, which `remember` has left in the trie.
    ///
    /// # Errors
    /// There was no room for all of it, or too much is pinned.
    pub(crate) fn name(
        &mut self,
        sequence: &Sequence,
        spec: SnapshotSpec,
    ) -> Result<SnapshotInfo, EngineError> {
        let offset = sequence.computed;
        let (name, points) = (spec.name.clone(), self.pool.layout().recurrent.is_some());
        let Some(lease) = sequence.footing.lease else {
            return Err(EngineError::CacheOff { model: sequence.model.clone() });
        };
        let kept = self.cache.trie.leased(lease);
        if kept < offset || (points && !self.cache.trie.has_point(lease, offset)) {
            return Err(EngineError::SnapshotTooLarge { name, tokens: offset, kept });
        }
        self.cache.name(self.pool, (lease, offset), spec)
    }

    /// Pins what a sequence leaves behind, under the name of its request.
    pub(crate) fn pin(&mut self, sequence: &Sequence) {
        let spec = SnapshotSpec { name: sequence.request_id.clone(), pinned: true, expires: None };
        if let Err(error) = self.name(sequence, spec) {
            self.cache.status.pins_refused += 1;
            tracing::warn!(request_id = %sequence.request_id, %error, "not pinned");
        }
    }
}

impl Cache {
    /// Names a restore point.
    ///
    /// # Errors
    /// Too much is pinned.
    pub(super) fn name(
        &mut self,
        pool: &mut StatePool,
        (lease, offset): (LeaseId, usize),
        spec: SnapshotSpec,
    ) -> Result<SnapshotInfo, EngineError> {
        let (trie, mut hands) = self.with_hands(Some(pool));
        let id = trie.name(&mut hands, lease, offset, spec)?;
        self.write_names();
        let view = self.trie.snapshots().into_iter().find(|view| view.id == id);
        Ok(self.info(view.expect("it was just named")))
    }

    /// Every snapshot, sorted by model and name.
    pub(crate) fn snapshots(&self) -> Vec<SnapshotInfo> {
        let mut all: Vec<_> =
            self.trie.snapshots().into_iter().map(|view| self.info(view)).collect();
        all.sort_by(|a, b| (&a.model, &a.name).cmp(&(&b.model, &b.name)));
        all
    }

    /// Takes a snapshot's name away; what it covers can be evicted then. `pool` is that of its model,
    /// if it is loaded.
    pub(crate) fn drop_snapshot(&mut self, id: SnapshotId, pool: Option<&mut StatePool>) {
        let (trie, mut hands) = self.with_hands(pool);
        trie.drop_snapshot(&mut hands, id);
        self.write_names();
    }

    /// The snapshot that `id` spells, and whose state it is.
    ///
    /// # Errors
    /// [`EngineError::SnapshotNotFound`].
    pub(crate) fn find(&self, id: &str) -> Result<(SnapshotId, DomainId), EngineError> {
        let known = id.parse().ok().map(SnapshotId).filter(|known| known.to_string() == id);
        let found = known.and_then(|known| Some((known, self.trie.snapshot_domain(known)?)));
        found.ok_or_else(|| EngineError::SnapshotNotFound { id: id.to_owned() })
    }

    /// Lets the snapshots go whose time is over.
    pub(crate) fn expire(&mut self, now: Instant) {
        let now = now.saturating_duration_since(self.began);
        if self.trie.next_expiry().is_some_and(|at| at <= now) {
            let (trie, mut hands) = self.with_hands(None);
            trie.expire(&mut hands, now);
            self.write_names();
        }
    }

    /// When the next snapshot's time is over.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.trie.next_expiry().and_then(|at| self.began.checked_add(at))
    }

    fn info(&self, view: SnapshotView) -> SnapshotInfo {
        SnapshotInfo {
            ttl: self.time_left(&view),
            id: view.id.to_string(),
            name: view.name,
            salt: view.salt.as_deref().map(str::to_owned),
            model: self.domains.model(view.domain).unwrap_or_default().to_owned(),
            tokens: view.tokens,
            bytes: view.bytes,
            tier: view.tier,
            pinned: view.pinned,
        }
    }

    /// What is left of a snapshot's life.
    pub(super) fn time_left(&self, view: &SnapshotView) -> Option<Duration> {
        let now = self.now.saturating_duration_since(self.began);
        view.expires.map(|at| at.saturating_sub(now))
    }
}
