//! The hands of the trie: moves, cuts and frees what it holds, for the model at work.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use sconce_cache::disk::{RecordHeader, RecordKind};
use sconce_cache::{Place, Refused, Storage, Tier};
use sconce_models::{PAGE_TOKENS, PointId, StatePool};

use super::disk::Disk;
use super::payload::{Extent, Pages, Point, Record, Span, page_range};

/// Most bytes of pages in one file, unless a single page has more: large enough for a disk to be
/// quick, small enough to be let go piece by piece.
const RECORD_BYTES_MAX: u64 = 32 << 20;

/// See the module. Without a pool it can move nothing to or from the device.
pub(crate) struct Hands<'a> {
    pub(crate) pool: Option<&'a mut StatePool>,
    pub(crate) disk: Option<&'a mut Disk>,
    /// Bytes of a page and of a point of the model at work; those of another model are asked of
    /// their payloads.
    pub(crate) sizes: Sizes,
}

/// Bytes of one page and of one point.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) page: u64,
    pub(crate) point: u64,
}

impl Sizes {
    /// Those of the model whose state is in `pool`.
    pub(crate) fn of(pool: &StatePool) -> Self {
        let layout = pool.layout();
        Self { page: layout.bytes_per_page(), point: layout.bytes_per_sequence() }
    }
}

/// Why a payload did not move: said in words, for the log.
type Problem = String;

impl Hands<'_> {
    pub(crate) fn pool(&mut self) -> Result<&mut StatePool, Problem> {
        self.pool.as_deref_mut().ok_or_else(|| "no model is at work".to_owned())
    }

    fn disk(&mut self) -> Result<&mut Disk, Problem> {
        self.disk.as_deref_mut().ok_or_else(|| "there is no disk tier".to_owned())
    }

    fn page_bytes(&self, span: &Span) -> u64 {
        match &span.pages {
            Pages::Host(pages) => pages.first().map_or(self.sizes.page, |page| page.len() as u64),
            Pages::Device(_) | Pages::Disk(_) => self.sizes.page,
        }
    }

    /// Takes pages of the pool and fills them.
    pub(crate) fn fill_pages(&mut self, pages: &[Bytes]) -> Result<Vec<u32>, Problem> {
        let pool = self.pool()?;
        let taken = pool.take_pages(pages.len()).map_err(|error| error.to_string())?;
        let blocks: Vec<&[u8]> = pages.iter().map(AsRef::as_ref).collect();
        if let Err(error) = pool.write_pages(&taken, &blocks) {
            release(pool, &taken);
            return Err(error.to_string());
        }
        Ok(taken)
    }

    /// Copies of the pages of a span, wherever it lies.
    pub(crate) fn copy_pages(&mut self, span: &Span) -> Result<Vec<Bytes>, Moving> {
        match &span.pages {
            Pages::Host(pages) => Ok(pages.clone()),
            Pages::Device(pages) => {
                let tokens = span.page_range().map(|index| span.tokens_in_page(index));
                let wanted: Vec<_> = pages.iter().copied().zip(tokens).collect();
                Ok(copied(self.pool()?, &wanted)?)
            }
            Pages::Disk(extents) => {
                let (disk, wanted) = (self.disk()?, span.page_range());
                let mut copies = vec![None; wanted.len()];
                for Extent { record } in extents {
                    let bytes = disk.staged(record)?;
                    let page_bytes = bytes.len() / record.pages.len();
                    let pages = record.pages.clone().zip(bytes.chunks_exact(page_bytes));
                    for (index, page) in pages.filter(|(index, _)| wanted.contains(index)) {
                        // Of two files with the same page, the later has more of its tokens.
                        copies[index - wanted.start] = Some(Bytes::copy_from_slice(page));
                    }
                }
                let whole: Option<_> = copies.into_iter().collect();
                whole.ok_or_else(|| Moving::Lost("a file has too few pages".to_owned()))
            }
        }
    }

    /// Writes pages to files, none of them too large.
    fn write_pages(
        &mut self,
        pages: &[Bytes],
        tokens: &Range<usize>,
        place: &Place<'_>,
    ) -> Result<Vec<Extent>, Problem> {
        let page_bytes = pages.first().map_or(1, |page| page.len() as u64).max(1);
        let pages_max = usize::try_from(RECORD_BYTES_MAX / page_bytes).unwrap_or(1).max(1);
        let first_page = page_range(tokens).start;
        let disk = self.disk()?;
        let mut extents: Vec<Extent> = Vec::new();
        for (number, chunk) in pages.chunks(pages_max).enumerate() {
            let first = first_page + number * pages_max;
            let held = first..first + chunk.len();
            let start = tokens.start.max(held.start * PAGE_TOKENS);
            let end = tokens.end.min(held.end * PAGE_TOKENS);
            let header =
                header(place, RecordKind::Span, start, end, page_bytes * chunk.len() as u64);
            match disk.write(header, chunk.to_vec(), held) {
                Ok(record) => extents.push(Extent { record }),
                Err(problem) => {
                    extents.into_iter().for_each(|extent| disk.release(extent.record));
                    return Err(problem);
                }
            }
        }
        Ok(extents)
    }

    fn moved_span(&mut self, span: &Span, to: Tier, place: &Place<'_>) -> Result<Pages, Moving> {
        let copies = self.copy_pages(span)?;
        Ok(match to {
            Tier::Device => Pages::Device(self.fill_pages(&copies)?),
            Tier::Host => Pages::Host(copies),
            Tier::Disk => Pages::Disk(self.write_pages(&copies, &span.tokens, place)?),
        })
    }

    fn moved_point(&mut self, point: &Point, to: Tier, place: &Place<'_>) -> Result<Point, Moving> {
        let bytes = self.point_bytes_of(point)?;
        Ok(match to {
            Tier::Device => Point::Device(self.fill_point(&bytes)?),
            Tier::Host => Point::Host(bytes),
            Tier::Disk => {
                let end = place.tokens.len();
                let header = header(place, RecordKind::Point, end, end, bytes.len() as u64);
                Point::Disk(self.disk()?.write(header, vec![bytes], 0..0)?)
            }
        })
    }

    fn fill_point(&mut self, bytes: &[u8]) -> Result<PointId, Problem> {
        let pool = self.pool()?;
        let point = pool.take_point().map_err(|error| error.to_string())?;
        if let Err(error) = pool.write_point(point, bytes) {
            let_go(pool.release_point(point));
            return Err(error.to_string());
        }
        Ok(point)
    }

    /// The bytes of a point, wherever it lies.
    pub(crate) fn point_bytes_of(&mut self, point: &Point) -> Result<Bytes, Moving> {
        match point {
            Point::Host(bytes) => Ok(bytes.clone()),
            Point::Device(id) => {
                let pool = self.pool()?;
                let mut buffer = pool.host_buffer(pool.layout().bytes_per_sequence() as usize);
                pool.read_point(*id, &mut buffer).map_err(|error| error.to_string())?;
                Ok(Bytes::from_owner(buffer))
            }
            Point::Disk(record) => self.disk()?.staged(record),
        }
    }

    fn free_pages(&mut self, pages: Pages) {
        match pages {
            Pages::Device(pages) => match self.pool() {
                Ok(pool) => release(pool, &pages),
                Err(problem) => tracing::error!(problem, "pages are lost"),
            },
            Pages::Host(_) => {}
            Pages::Disk(extents) => {
                for Extent { record } in extents {
                    self.free_record(record);
                }
            }
        }
    }

    fn free_record(&mut self, record: Arc<Record>) {
        if let Some(disk) = self.disk.as_deref_mut() {
            disk.release(record);
        }
    }
}

/// Copies of pages of a pool, of each so many tokens.
fn copied(pool: &StatePool, pages: &[(u32, usize)]) -> Result<Vec<Bytes>, Problem> {
    let size = pool.layout().bytes_per_page() as usize;
    let mut buffers: Vec<_> = pages.iter().map(|_| pool.host_buffer(size)).collect();
    let mut blocks: Vec<&mut [u8]> = buffers.iter_mut().map(|buffer| &mut **buffer).collect();
    pool.read_pages(pages, &mut blocks).map_err(|error| error.to_string())?;
    if let Some(buffer) = buffers.iter().find(|buffer| buffer.is_detour()) {
        tracing::debug!(bytes = buffer.len(), "memory that is not locked: copies will be slow");
    }
    Ok(buffers.into_iter().map(Bytes::from_owner).collect())
}

/// Why a payload did not move.
#[derive(Debug)]
pub(crate) enum Moving {
    /// It is where it was.
    Stays(Problem),
    /// Its bytes are gone or damaged.
    Lost(Problem),
}

impl From<Problem> for Moving {
    fn from(problem: Problem) -> Self {
        Self::Stays(problem)
    }
}

impl Storage for Hands<'_> {
    type Span = Span;
    type Point = Point;

    fn span_bytes(&self, span: &Span) -> u64 {
        match &span.pages {
            Pages::Disk(extents) => {
                let skipped = usize::from(span.shares_first);
                extents.iter().skip(skipped).map(|extent| extent.record.bytes).sum()
            }
            _ => span.charged() as u64 * self.page_bytes(span),
        }
    }

    fn point_bytes(&self, point: &Point) -> u64 {
        match point {
            Point::Device(_) => self.sizes.point,
            Point::Host(bytes) => bytes.len() as u64,
            Point::Disk(record) => record.bytes,
        }
    }

    fn span_bytes_in(&self, span: &Span, to: Tier) -> u64 {
        let pages = span.page_range().len() as u64;
        let bytes = match &span.pages {
            // All of the files may be needed, though only some of their pages are.
            Pages::Disk(_) if to == Tier::Disk => return self.span_bytes(span),
            _ => self.page_bytes(span),
        };
        match to {
            Tier::Device | Tier::Host => pages * bytes,
            Tier::Disk => {
                let pages_max = (RECORD_BYTES_MAX / bytes.max(1)).max(1);
                let records = pages.div_ceil(pages_max);
                pages * bytes + records * Disk::overhead(span.tokens.end)
            }
        }
    }

    fn point_bytes_in(&self, point: &Point, to: Tier) -> u64 {
        let bytes = match point {
            Point::Host(bytes) => bytes.len() as u64,
            _ => self.sizes.point,
        };
        match to {
            Tier::Device | Tier::Host => bytes,
            // A point does not know its offset, and a path has a bound.
            Tier::Disk => bytes + Disk::overhead(Disk::PATH_TOKENS_MAX),
        }
    }

    fn split(&mut self, span: Span, at: usize) -> (Span, Span) {
        let Span { tokens, pages, shares_first } = span;
        let (head, tail) = (tokens.start..at, at..tokens.end);
        let cut = at.div_ceil(PAGE_TOKENS) - page_range(&tokens).start;
        let shared = !at.is_multiple_of(PAGE_TOKENS);
        let back = usize::from(shared);
        let (head_pages, tail_pages, shares) = match pages {
            Pages::Device(mut pages) => {
                let rest = pages[cut - back..].to_vec();
                pages.truncate(cut);
                if shared && let Ok(pool) = self.pool() {
                    let_go(pool.share_pages(&rest[..1]));
                }
                (Pages::Device(pages), Pages::Device(rest), shared)
            }
            Pages::Host(mut pages) => {
                let rest = pages[cut - back..].to_vec();
                pages.truncate(cut);
                (Pages::Host(pages), Pages::Host(rest), shared)
            }
            Pages::Disk(extents) => {
                let within = |tokens: &Range<usize>| {
                    let wanted = page_range(tokens);
                    let touches = |extent: &&Extent| {
                        let held = &extent.record.pages;
                        held.start < wanted.end && wanted.start < held.end
                    };
                    extents.iter().filter(touches).cloned().collect::<Vec<_>>()
                };
                let (head, tail) = (within(&head), within(&tail));
                let shares = match (head.last(), tail.first()) {
                    (Some(last), Some(first)) => Arc::ptr_eq(&last.record, &first.record),
                    _ => false,
                };
                (Pages::Disk(head), Pages::Disk(tail), shares)
            }
        };
        (
            Span { tokens: head, pages: head_pages, shares_first },
            Span { tokens: tail, pages: tail_pages, shares_first: shares },
        )
    }

    fn join(&mut self, head: Span, tail: Span) -> Span {
        let tokens = head.tokens.start..tail.tokens.end;
        let overlaps = !tail.tokens.start.is_multiple_of(PAGE_TOKENS);
        // The page that the head shared with the span before may be the one that it gives up. Files are
        // kept, all of them.
        let in_files = matches!(head.pages, Pages::Disk(_));
        let gives_up_first = overlaps && !in_files && head.page_range().len() == 1;
        let shares_first = head.shares_first && (tail.shares_first || !gives_up_first);
        let pages = match (head.pages, tail.pages) {
            (Pages::Device(mut pages), Pages::Device(rest)) => {
                if overlaps && let Some(page) = pages.pop() {
                    // The later one has all of its tokens, and those that follow.
                    self.free_pages(Pages::Device(vec![page]));
                }
                pages.extend(rest);
                Pages::Device(pages)
            }
            (Pages::Host(mut pages), Pages::Host(rest)) => {
                if overlaps {
                    pages.pop();
                }
                pages.extend(rest);
                Pages::Host(pages)
            }
            (Pages::Disk(mut extents), Pages::Disk(rest)) => {
                for extent in rest {
                    let known = extents.iter().any(|e| Arc::ptr_eq(&e.record, &extent.record));
                    if !known {
                        extents.push(extent);
                    }
                }
                Pages::Disk(extents)
            }
            _ => unreachable!("the trie joins spans of one tier"),
        };
        Span { tokens, pages, shares_first }
    }

    fn move_span(&mut self, span: Span, to: Tier, at: &Place<'_>) -> Result<Span, Refused<Span>> {
        match self.moved_span(&span, to, at) {
            Ok(pages) => {
                let Span { tokens, pages: old, .. } = span;
                self.free_pages(old);
                Ok(Span { tokens, pages, shares_first: false })
            }
            Err(Moving::Stays(problem)) => {
                tracing::debug!(problem, %to, "a span was not moved");
                Err(Refused::Kept(span))
            }
            Err(Moving::Lost(problem)) => {
                tracing::warn!(problem, "remembered state is lost");
                self.free_span(span);
                Err(Refused::Lost)
            }
        }
    }

    fn move_point(
        &mut self,
        point: Point,
        to: Tier,
        at: &Place<'_>,
    ) -> Result<Point, Refused<Point>> {
        match self.moved_point(&point, to, at) {
            Ok(moved) => {
                self.free_point(point);
                Ok(moved)
            }
            Err(Moving::Stays(problem)) => {
                tracing::debug!(problem, %to, "a point was not moved");
                Err(Refused::Kept(point))
            }
            Err(Moving::Lost(problem)) => {
                tracing::warn!(problem, "remembered state is lost");
                self.free_point(point);
                Err(Refused::Lost)
            }
        }
    }

    fn settle(&mut self, span: &mut Span) {
        span.shares_first = false;
    }

    fn free_span(&mut self, span: Span) {
        self.free_pages(span.pages);
    }

    fn free_point(&mut self, point: Point) {
        match point {
            Point::Device(id) => match self.pool() {
                Ok(pool) => let_go(pool.release_point(id)),
                Err(problem) => tracing::error!(problem, "a point is lost"),
            },
            Point::Host(_) => {}
            Point::Disk(record) => self.free_record(record),
        }
    }
}

fn header(
    place: &Place<'_>,
    kind: RecordKind,
    start: usize,
    end: usize,
    bytes: u64,
) -> RecordHeader {
    RecordHeader {
        fingerprint: place.domain.fingerprint,
        instance: place.domain.instance,
        salt: place.salt.map(str::to_owned),
        kind,
        start: start as u32,
        tokens: place.tokens[..end].to_vec(),
        page_tokens: PAGE_TOKENS as u32,
        payload_bytes: bytes,
    }
}

fn release(pool: &mut StatePool, pages: &[u32]) {
    let_go(pool.release_pages(pages));
}

/// What the cache holds is held once, so letting it go cannot fail; if it does, the pool has
/// refused a mistake of ours, and that is told.
fn let_go(result: Result<(), sconce_models::StateError>) {
    if let Err(error) = result {
        tracing::error!(%error, "the cache let go of what it did not hold");
    }
}
