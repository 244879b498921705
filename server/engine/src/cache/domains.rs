//! Models come and go, what is remembered for them stays: found again in the trie after a swap, and
//! on disk after a restart.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use sconce_cache::disk::{
    DiskConfig, DiskError, DiskTier, ManifestEntry, Notify, RecordHeader, RecordId, RecordKind,
};
use sconce_cache::{
    Adopted, CostModel, DomainId, DomainKey, DomainShape, LeaseId, SnapshotSpec, Tier,
};
use sconce_models::{PAGE_TOKENS, StatePool};

use super::Cache;
use super::disk::Disk;
use super::hands::Sizes;
use super::payload::{Extent, Pages, Point, Record, Span, page_range};
use crate::config::CacheConfig;

/// A symbol that no token and no medium has: a path and this one are matched to the path's end.
const BEYOND: u32 = u32::MAX;

/// Whose cache is open, and what on disk waits for its model.
pub(super) struct Domains {
    open: BTreeMap<DomainId, DomainKey>,
    /// Every model there was, by the name it was loaded under last.
    known: BTreeMap<DomainKey, String>,
    left: BTreeMap<DomainKey, Vec<(RecordId, RecordHeader)>>,
    names: Vec<ManifestEntry>,
}

impl Domains {
    /// What an earlier server left.
    pub(super) fn new(disk: Option<&mut Disk>) -> Self {
        let mut domains = Self {
            open: BTreeMap::new(),
            known: BTreeMap::new(),
            left: BTreeMap::new(),
            names: Vec::new(),
        };
        let Some(disk) = disk else { return domains };
        match disk.tier().read_manifest() {
            Ok(names) => domains.names = names,
            Err(error) => tracing::warn!(%error, "the names of snapshots cannot be read"),
        }
        domains
    }

    /// The name of the model whose cache `key` is, or was when it was loaded last.
    pub(super) fn model(&self, key: DomainKey) -> Option<&str> {
        self.known.get(&key).map(String::as_str)
    }

    fn open(&mut self, domain: DomainId, key: DomainKey, model: &str) {
        self.open.insert(domain, key);
        self.known.insert(key, model.to_owned());
    }

    fn close(&mut self, domain: DomainId) {
        self.open.remove(&domain);
    }

    /// The key of the next load of the weights `fingerprint`.
    fn vacant(&self, fingerprint: u64) -> DomainKey {
        let taken =
            |instance| self.open.values().any(|key| *key == DomainKey { fingerprint, instance });
        let instance = (0..).find(|&instance| !taken(instance)).unwrap_or_default();
        DomainKey { fingerprint, instance }
    }
}

/// The disk tier, if one is asked for.
///
/// # Errors
/// It cannot be had: another server uses the directory, or it can be neither made nor read.
pub(super) fn open_disk(config: &CacheConfig, notify: Notify) -> Result<Option<Disk>, DiskError> {
    let Some(directory) = config.directory.clone().filter(|_| config.disk > 0) else {
        return Ok(None);
    };
    let disk_config = DiskConfig::new(directory, config.disk);
    DiskTier::open(disk_config, notify).map(|tier| Some(Disk::new(tier)))
}

impl Cache {
    /// Begins, or goes on, to remember for a model that was just loaded.
    pub(crate) fn open_domain(
        &mut self,
        model: &str,
        fingerprint: u64,
        pool: &mut StatePool,
    ) -> Option<DomainId> {
        if !self.on {
            return None;
        }
        let key = self.domains.vacant(fingerprint);
        let shape = DomainShape {
            needs_points: pool.layout().recurrent.is_some(),
            page_tokens: PAGE_TOKENS,
            cost: CostModel::default(),
        };
        let domain = self.trie.open_domain(key, shape);
        self.domains.open(domain, key, model);
        let found = self.disk.as_mut().map_or_else(Vec::new, |disk| disk.find(fingerprint));
        for (id, header) in found {
            let key = DomainKey { fingerprint, instance: header.instance };
            self.domains.left.entry(key).or_default().push((id, header));
        }
        let records = self.domains.left.remove(&key).unwrap_or_default();
        let found = records.len();
        let adopted = records
            .into_iter()
            .filter(|(id, header)| self.adopt(domain, *id, header, pool))
            .count();
        if found > 0 {
            tracing::info!(model, found, adopted, "found what was remembered on disk");
        }
        self.adopt_names(domain, key, pool);
        Some(domain)
    }

    /// Takes up a file that an earlier server wrote; whether it fits the model.
    fn adopt(
        &mut self,
        domain: DomainId,
        id: RecordId,
        header: &RecordHeader,
        pool: &mut StatePool,
    ) -> bool {
        let sizes = Sizes::of(pool);
        let tokens = header.start as usize..header.tokens.len();
        let pages = page_range(&tokens);
        let expected = match header.kind {
            RecordKind::Span => pages.len() as u64 * sizes.page,
            RecordKind::Point => sizes.point,
        };
        let fits = header.payload_bytes == expected && header.page_tokens as usize == PAGE_TOKENS;
        if !fits {
            let found = header.payload_bytes;
            tracing::warn!(%id, expected, found, "remembered state of another size is removed");
            if let Some(disk) = self.disk.as_mut() {
                disk.tier().remove(id);
            }
            return false;
        }
        let bytes = DiskTier::file_bytes(header);
        let adopted = match header.kind {
            RecordKind::Point => {
                Adopted::Point(Point::Disk(Arc::new(Record { id, bytes, pages: 0..0 })))
            }
            RecordKind::Span => {
                let record = Arc::new(Record { id, bytes, pages });
                let pages = Pages::Disk(vec![Extent { record }]);
                let start = tokens.start;
                Adopted::Span(start, Span { tokens, pages, shares_first: false })
            }
        };
        let (trie, mut hands) = self.with_hands(Some(pool));
        trie.adopt(&mut hands, domain, header.salt.as_deref(), &header.tokens, adopted, Tier::Disk)
    }

    /// Gives snapshots of an earlier server their names back, where their state is still there.
    fn adopt_names(&mut self, domain: DomainId, key: DomainKey, pool: &mut StatePool) {
        let (ours, others): (Vec<_>, _) =
            std::mem::take(&mut self.domains.names).into_iter().partition(|entry| {
                DomainKey { fingerprint: entry.fingerprint, instance: entry.instance } == key
            });
        self.domains.names = others;
        for entry in ours {
            let offset = entry.tokens.len();
            let (lease, kept) = self.lease_whole(domain, entry.salt.as_deref(), &entry.tokens);
            let spec = SnapshotSpec {
                name: entry.name.clone(),
                pinned: entry.pinned,
                expires: entry.expires_unix_ms.map(|at| self.since_began(at)),
            };
            if kept < offset {
                tracing::warn!(name = entry.name, "a snapshot's state is gone");
            } else if let Err(error) = self.name(pool, (lease, offset), spec) {
                tracing::warn!(name = entry.name, %error, "a snapshot is not kept");
            }
            self.trie.release(lease);
        }
    }

    /// Moves what is remembered for a model out of its pool, which is about to go.
    pub(crate) fn leave(&mut self, domain: Option<DomainId>, pool: &mut StatePool) {
        let Some(domain) = domain else { return };
        self.end_exports(domain);
        let (trie, mut hands) = self.with_hands(Some(pool));
        trie.close_domain(&mut hands, domain);
        self.domains.close(domain);
    }

    /// A lease of as much of `path` as is kept, the last token included, and how much that is.
    pub(super) fn lease_whole(
        &mut self,
        domain: DomainId,
        salt: Option<&str>,
        path: &[u32],
    ) -> (LeaseId, usize) {
        let path: Vec<u32> = path.iter().copied().chain([BEYOND]).collect();
        let (lease, found) = self.trie.lease(domain, salt, &path);
        (lease, found.resumed)
    }

    /// Moves everything to disk and waits until it is there, for as long as it may.
    pub(crate) fn stop(&mut self, now: Instant) {
        let (trie, mut hands) = self.with_hands(None);
        trie.park(&mut hands);
        self.write_names();
        let most = self.save_time_max;
        if let Some(disk) = self.disk.as_mut()
            && !disk.flush(now + most)
        {
            tracing::warn!(?most, "the disk is too slow: a part of what was remembered is lost");
        }
    }

    /// Writes the names of all snapshots beside the files.
    pub(super) fn write_names(&mut self) {
        let Some(disk) = self.disk.as_mut() else { return };
        let trie = &mut self.trie;
        let views = trie.snapshots();
        let ours = views.into_iter().filter_map(|view| {
            Some(ManifestEntry {
                fingerprint: view.domain.fingerprint,
                instance: view.domain.instance,
                salt: view.salt.map(|salt| salt.to_string()),
                name: view.name,
                tokens: trie.snapshot_path(view.id)?,
                pinned: view.pinned,
                expires_unix_ms: view.expires.map(|at| unix_ms(self.began, at)),
            })
        });
        let entries: Vec<_> = ours.chain(self.domains.names.iter().cloned()).collect();
        if let Err(error) = disk.tier().write_manifest(&entries) {
            tracing::warn!(%error, "the names of snapshots were not written");
        }
    }

    /// Time of the trie of a moment on the calendar; zero for one that has passed.
    fn since_began(&self, unix_ms: u64) -> Duration {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let left = Duration::from_millis(unix_ms).saturating_sub(now);
        if left.is_zero() { left } else { self.began.elapsed() + left }
    }
}

/// The calendar's moment of a time of the trie.
fn unix_ms(began: Instant, at: Duration) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let at = (now + at).saturating_sub(began.elapsed());
    u64::try_from(at.as_millis()).unwrap_or(u64::MAX)
}
