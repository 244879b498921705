//! Snapshots on their way to and from other servers: the records of a path, one after another.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sconce_cache::disk::{DecodeLimits, Decoder, RecordHeader, RecordKind, encode};
use sconce_cache::{
    Adopted, DomainId, LeaseId, Place, Refused, SnapshotSpec, SnapshotView, Storage as _, Tier,
};
use sconce_models::{PAGE_TOKENS, StatePool};
use tokio::sync::oneshot;

use super::hands::Sizes;
use super::payload::{Pages, Point, Record, Span, page_range};
use super::{Cache, Memory};
use crate::error::EngineError;
use crate::snapshot::{SnapshotFile, SnapshotInfo};
use crate::status::LoadedModel;

/// Exports that wait for files at one time.
const EXPORTS_MAX: usize = 4;

/// Bytes of pages in order.
type HostPages = Vec<Bytes>;

/// An export that waits for files to be read.
pub(crate) struct Export {
    id: String,
    name: String,
    pinned: bool,
    ttl: Option<Duration>,
    domain: DomainId,
    lease: LeaseId,
    tokens: Vec<u32>,
    /// The salt that the file tells.
    salt: Option<String>,
    reading: Vec<Arc<Record>>,
    reply: oneshot::Sender<Result<SnapshotFile, EngineError>>,
}

/// A snapshot that was read and verified.
#[derive(Debug)]
pub(crate) struct Import {
    name: String,
    pinned: bool,
    tokens: Vec<u32>,
    salt: Option<String>,
    spans: Vec<(Range<usize>, HostPages)>,
    point: Option<Bytes>,
}

impl Import {
    /// Reads and verifies the content of a snapshot; for a thread that may take its time.
    ///
    /// # Errors
    /// [`EngineError::SnapshotDamaged`], [`EngineError::SnapshotForeign`].
    pub(crate) fn read(file: &SnapshotFile, fingerprint: u64) -> Result<Self, EngineError> {
        let damaged = |problem: String| EngineError::SnapshotDamaged { problem };
        let mut decoder =
            Decoder::new(DecodeLimits { payload_bytes_max: file.bytes, ..DecodeLimits::default() });
        let mut import = Self {
            name: file.name.clone(),
            pinned: file.pinned,
            tokens: Vec::new(),
            salt: None,
            spans: Vec::new(),
            point: None,
        };
        for piece in &file.content {
            let records = decoder.feed(piece).map_err(|fault| damaged(fault.to_string()))?;
            for record in records {
                let found = record.header.fingerprint;
                if found != fingerprint {
                    return Err(EngineError::SnapshotForeign { expected: fingerprint, found });
                }
                import.take(record.header, &record.payload).map_err(damaged)?;
            }
        }
        decoder.finish().map_err(|fault| damaged(fault.to_string()))?;
        let covered = import.spans.last().map_or(0, |(tokens, _)| tokens.end);
        if covered != file.tokens {
            let expected = file.tokens;
            return Err(damaged(format!(
                "expected the state of {expected} tokens, found {covered}"
            )));
        }
        Ok(import)
    }

    /// Takes in a record that follows those before.
    fn take(&mut self, header: RecordHeader, payload: &[Bytes]) -> Result<(), String> {
        let (start, end) = (header.start as usize, header.tokens.len());
        if !header.tokens.starts_with(&self.tokens) || self.point.is_some() {
            return Err("expected records of one path, found another".to_owned());
        }
        if header.page_tokens as usize != PAGE_TOKENS {
            let found = header.page_tokens;
            return Err(format!("expected pages of {PAGE_TOKENS} tokens, found {found}"));
        }
        let bytes = payload.concat();
        match header.kind {
            RecordKind::Span => {
                if start != self.tokens.len() || end == start {
                    let expected = self.tokens.len();
                    return Err(format!("expected state from token {expected}, found {start}"));
                }
                let pages = page_range(&(start..end)).len();
                if bytes.is_empty() || !bytes.len().is_multiple_of(pages) {
                    let found = bytes.len();
                    return Err(format!("expected {pages} pages of one size, found {found} bytes"));
                }
                let cut = bytes.chunks(bytes.len() / pages).map(Bytes::copy_from_slice).collect();
                self.spans.push((start..end, cut));
            }
            RecordKind::Point if end == self.tokens.len() => self.point = Some(bytes.into()),
            RecordKind::Point => return Err(format!("a point after {end} tokens is not the end")),
        }
        self.tokens = header.tokens;
        self.salt = header.salt;
        Ok(())
    }

    /// Keeps it under another salt than the file's.
    pub(crate) fn resalt(&mut self, salted: impl FnOnce(Option<String>) -> Option<String>) {
        self.salt = salted(self.salt.take());
    }

    /// Whether `model` can hold its tokens.
    ///
    /// # Errors
    /// A token outside of the vocabulary, or more tokens than the context has.
    pub(crate) fn check(&self, model: &LoadedModel) -> Result<(), EngineError> {
        let (context, vocab) = (model.info.context_length, model.info.vocab_size);
        let problem = if self.tokens.len() > context {
            format!("expected at most {context} tokens, found {}", self.tokens.len())
        } else if let Some(id) = self.tokens.iter().find(|id| **id as usize >= vocab) {
            format!("expected token ids below {vocab}, found {id}")
        } else {
            return Ok(());
        };
        Err(EngineError::SnapshotDamaged { problem })
    }

    /// Whether its pages and its point are those of a model with `sizes`.
    fn fits(&self, sizes: Sizes) -> bool {
        let pages = self.spans.iter().flat_map(|(_, pages)| pages);
        let point = self.point.as_ref().map_or(0, |point| point.len() as u64);
        pages.into_iter().all(|page| page.len() as u64 == sizes.page) && point == sizes.point
    }
}

impl Cache {
    /// Begins to gather a snapshot; it is sent when what of it lies in files was read.
    pub(crate) fn export(
        &mut self,
        id: &str,
        salted: impl FnOnce(Option<String>) -> Option<String>,
        reply: oneshot::Sender<Result<SnapshotFile, EngineError>>,
    ) {
        match self.begin_export(id) {
            Ok((view, domain, lease, tokens)) => {
                let mut reading = Vec::new();
                if let Some(disk) = self.disk.as_mut() {
                    let spans =
                        self.trie.spans(lease).filter_map(|(_, _, span)| match &span.pages {
                            Pages::Disk(extents) => Some(extents),
                            _ => None,
                        });
                    reading.extend(spans.flatten().map(|extent| extent.record.clone()));
                    if let Some((_, Point::Disk(record))) = self.trie.point(lease) {
                        reading.push(record.clone());
                    }
                    reading.iter().for_each(|record| disk.want(record));
                }
                let ttl = self.time_left(&view);
                let SnapshotView { name, pinned, salt, .. } = view;
                let salt = salted(salt.as_deref().map(str::to_owned));
                let id = id.to_owned();
                self.exports.push(Export {
                    id,
                    name,
                    pinned,
                    ttl,
                    domain,
                    lease,
                    tokens,
                    salt,
                    reading,
                    reply,
                });
            }
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    fn begin_export(
        &mut self,
        id: &str,
    ) -> Result<(SnapshotView, DomainId, LeaseId, Vec<u32>), EngineError> {
        let (known, domain) = self.find(id)?;
        if self.exports.len() >= EXPORTS_MAX {
            return Err(EngineError::Busy { operations: "exports", limit: EXPORTS_MAX });
        }
        let not_found = || EngineError::SnapshotNotFound { id: id.to_owned() };
        let view = self.trie.snapshots().into_iter().find(|view| view.id == known);
        let view = view.ok_or_else(not_found)?;
        let (lease, tokens) = self.trie.lease_snapshot(known).ok_or_else(not_found)?;
        Ok((view, domain, lease, tokens))
    }

    /// Gives up the exports of a model that goes.
    pub(super) fn end_exports(&mut self, domain: DomainId) {
        while let Some(place) = self.exports.iter().position(|export| export.domain == domain) {
            let export = self.exports.swap_remove(place);
            self.trie.release(export.lease);
            self.let_go_of(export.reading);
            let model =
                self.domains.model(self.trie.domain_key(domain)).unwrap_or_default().to_owned();
            // Nobody may be waiting any more.
            drop(export.reply.send(Err(EngineError::ModelUnloaded { model })));
        }
    }

    fn let_go_of(&mut self, records: Vec<Arc<Record>>) {
        let Some(disk) = self.disk.as_mut() else { return };
        for record in records {
            disk.unwant(&record);
            disk.release(record);
        }
    }

    /// The domain of an export whose files are all read, or could not be.
    pub(crate) fn export_ready(&self) -> Option<DomainId> {
        self.exports.iter().find(|export| self.is_read(&export.reading)).map(|export| export.domain)
    }

    fn is_read(&self, records: &[Arc<Record>]) -> bool {
        self.disk.as_ref().is_none_or(|disk| records.iter().all(|record| disk.is_read(record)))
    }

    /// Sends the exports of `domain` that are ready; its model's pool holds what is on the device.
    pub(crate) fn send_exports(&mut self, domain: DomainId, mut pool: Option<&mut StatePool>) {
        let ready = |cache: &Self, export: &Export| {
            export.domain == domain && cache.is_read(&export.reading)
        };
        while let Some(place) = self.exports.iter().position(|export| ready(self, export)) {
            let export = self.exports.swap_remove(place);
            let file = self.gather(&export, pool.as_deref_mut());
            self.trie.release(export.lease);
            self.let_go_of(export.reading);
            // Nobody may be waiting any more.
            drop(export.reply.send(file));
        }
    }

    fn gather(
        &mut self,
        export: &Export,
        pool: Option<&mut StatePool>,
    ) -> Result<SnapshotFile, EngineError> {
        let key = self.trie.domain_key(export.domain);
        let damaged = |problem| EngineError::SnapshotDamaged { problem };
        let (trie, mut hands) = self.with_hands(pool);
        let place = |start: usize, end: usize| Place {
            domain: key,
            salt: export.salt.as_deref(),
            start,
            tokens: &export.tokens[..end],
        };
        let mut content = Vec::new();
        let mut covered = 0;
        let mut add = |kind, place: &Place<'_>, payload: &[Bytes]| {
            let header = header(kind, place, payload);
            let pieces = encode(&header, payload).map_err(|fault| damaged(fault.to_string()))?;
            content.extend(pieces);
            Ok::<_, EngineError>(())
        };
        for (tokens, _, span) in trie.spans(export.lease) {
            let pages = hands.copy_pages(span).map_err(|why| lost(&export.id, why))?;
            let end = tokens.end.min(export.tokens.len());
            covered = end;
            let held = page_range(&(tokens.start..end)).len();
            add(RecordKind::Span, &place(tokens.start, end), &pages[..held])?;
        }
        if let Some((_, point)) = trie.point(export.lease) {
            let bytes = hands.point_bytes_of(point).map_err(|why| lost(&export.id, why))?;
            let end = export.tokens.len();
            add(RecordKind::Point, &place(end, end), &[bytes])?;
        }
        if covered < export.tokens.len() {
            // Some of it was lost while the rest was read.
            let expected = export.tokens.len();
            return Err(damaged(format!("{covered} of its {expected} tokens are left")));
        }
        Ok(SnapshotFile {
            fingerprint: key.fingerprint,
            tokens: export.tokens.len(),
            name: export.name.clone(),
            pinned: export.pinned,
            ttl: export.ttl,
            bytes: content.iter().map(|piece| piece.len() as u64).sum(),
            content,
        })
    }
}

impl Memory<'_> {
    /// Takes a snapshot in and names it.
    ///
    /// # Errors
    /// It is of another model, or there is no room for it.
    pub(crate) fn import(
        &mut self,
        import: Import,
        expires: Option<Duration>,
        model: &str,
    ) -> Result<SnapshotInfo, EngineError> {
        let Some(domain) = self.domain else {
            return Err(EngineError::CacheOff { model: model.to_owned() });
        };
        let sizes = Sizes::of(self.pool);
        if !import.fits(sizes) {
            let problem = "its pages are not of the model's size".to_owned();
            return Err(EngineError::SnapshotDamaged { problem });
        }
        let (offset, salt) = (import.tokens.len(), import.salt.clone());
        let mut kept = 0;
        // Where it fits, and what is there already lies no deeper.
        for tier in [Tier::Host, Tier::Disk, Tier::Device] {
            self.adopt(domain, &import, tier);
            let (lease, found) = self.cache.lease_whole(domain, salt.as_deref(), &import.tokens);
            let named = (found == offset).then(|| {
                let (name, pinned) = (import.name.clone(), import.pinned);
                self.cache.name(self.pool, (lease, offset), SnapshotSpec { name, pinned, expires })
            });
            self.cache.trie.release(lease);
            if let Some(named) = named {
                return named;
            }
            kept = kept.max(found);
        }
        Err(EngineError::SnapshotTooLarge { name: import.name, tokens: offset, kept })
    }

    /// Brings a snapshot to a tier and gives it to the trie, as much of it as there is room for.
    fn adopt(&mut self, domain: DomainId, import: &Import, tier: Tier) {
        if tier == Tier::Device {
            self.free_pages(import.spans.iter().map(|(_, pages)| pages.len()).sum());
            self.make_room_for_point();
        }
        let key = self.cache.trie.domain_key(domain);
        let salt = import.salt.as_deref();
        let (trie, mut hands) = self.cache.with_hands(Some(self.pool));
        for (tokens, pages) in &import.spans {
            let path = &import.tokens[..tokens.end];
            let place = Place { domain: key, salt, start: tokens.start, tokens: path };
            let pages = Pages::Host(pages.clone());
            let span = Span { tokens: tokens.clone(), pages, shares_first: false };
            let Ok(span) = moved(span, tier, |span| hands.move_span(span, tier, &place)) else {
                return;
            };
            let span = Adopted::Span(tokens.start, span);
            trie.adopt(&mut hands, domain, salt, path, span, tier);
        }
        let Some(point) = import.point.clone().map(Point::Host) else { return };
        let (start, path) = (import.tokens.len(), &import.tokens[..]);
        let place = Place { domain: key, salt, start, tokens: path };
        if let Ok(point) = moved(point, tier, |point| hands.move_point(point, tier, &place)) {
            trie.adopt(&mut hands, domain, salt, path, Adopted::Point(point), tier);
        }
    }
}

/// A payload that lies in main memory, brought to `tier`.
fn moved<P>(
    payload: P,
    tier: Tier,
    move_there: impl FnOnce(P) -> Result<P, Refused<P>>,
) -> Result<P, Refused<P>> {
    if tier == Tier::Host { Ok(payload) } else { move_there(payload) }
}

fn header(kind: RecordKind, place: &Place<'_>, payload: &[Bytes]) -> RecordHeader {
    RecordHeader {
        fingerprint: place.domain.fingerprint,
        // Another server counts its own instances.
        instance: 0,
        salt: place.salt.map(str::to_owned),
        kind,
        start: place.start as u32,
        tokens: place.tokens.to_vec(),
        page_tokens: PAGE_TOKENS as u32,
        payload_bytes: payload.iter().map(|piece| piece.len() as u64).sum(),
    }
}

fn lost(id: &str, why: super::hands::Moving) -> EngineError {
    EngineError::SnapshotDamaged { problem: format!("snapshot {id}: {why:?}") }
}
