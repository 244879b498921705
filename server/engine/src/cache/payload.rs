//! What the trie holds for the engine: pages of attention state and recurrent states, in one of the
//! tiers. How they get from one to another is `hands.rs`.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use sconce_cache::disk::RecordId;
use sconce_models::{PAGE_TOKENS, PointId};

/// Attention state of the tokens of an edge: whole pages, the first of which also has the tokens
/// before the edge that share it.
#[derive(Debug)]
pub(crate) struct Span {
    /// The tokens it stands for.
    pub(crate) tokens: Range<usize>,
    /// The pages from the one of its first token to that of its last.
    pub(crate) pages: Pages,
    /// Whether the first page is also the last one of the span before, which is charged for it.
    pub(crate) shares_first: bool,
}

/// Pages in one of the tiers.
#[derive(Debug)]
pub(crate) enum Pages {
    /// Pages of the model's pool.
    Device(Vec<u32>),
    /// Copies of their bytes.
    Host(Vec<Bytes>),
    /// Files, in the order of their pages.
    Disk(Vec<Extent>),
}

/// Pages in a file that others may also have pages in.
#[derive(Debug, Clone)]
pub(crate) struct Extent {
    /// The file; its last holder removes it.
    pub(crate) record: Arc<Record>,
}

/// A file of the disk tier.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// Its name there.
    pub(crate) id: RecordId,
    /// What it takes.
    pub(crate) bytes: u64,
    /// The pages in it, counted from the first token of the path.
    pub(crate) pages: Range<usize>,
}

/// Recurrent state after a number of tokens.
#[derive(Debug)]
pub(crate) enum Point {
    /// A slot of the model's pool.
    Device(PointId),
    /// A copy of its bytes.
    Host(Bytes),
    /// A file.
    Disk(Arc<Record>),
}

impl Span {
    /// Pages of the pool that stand for no tokens, to be let go together.
    pub(crate) fn of_pages(pages: Vec<u32>) -> Self {
        Self { tokens: 0..0, pages: Pages::Device(pages), shares_first: false }
    }

    /// The pages it has a part of, counted from the first token of the path.
    pub(crate) fn page_range(&self) -> Range<usize> {
        page_range(&self.tokens)
    }

    /// Pages, or files, that it is charged for; at least one stays with the span before it if that
    /// shares one.
    pub(crate) fn charged(&self) -> usize {
        let held = match &self.pages {
            Pages::Device(pages) => pages.len(),
            Pages::Host(pages) => pages.len(),
            Pages::Disk(extents) => extents.len(),
        };
        held - usize::from(self.shares_first)
    }

    /// Tokens of page `index` of the path, up to the end of the span.
    pub(crate) fn tokens_in_page(&self, index: usize) -> usize {
        (self.tokens.end - index * PAGE_TOKENS).min(PAGE_TOKENS)
    }
}

impl Point {
    /// Whether it lies in one of `files`.
    pub(crate) fn lies_in(&self, files: &HashSet<RecordId>) -> bool {
        matches!(self, Self::Disk(record) if files.contains(&record.id))
    }
}

/// The pages that hold `tokens`.
pub(crate) fn page_range(tokens: &Range<usize>) -> Range<usize> {
    tokens.start / PAGE_TOKENS..tokens.end.div_ceil(PAGE_TOKENS)
}

impl Span {
    /// Whether a part of it lies in one of `files`.
    pub(crate) fn lies_in(&self, files: &HashSet<RecordId>) -> bool {
        match &self.pages {
            Pages::Disk(extents) => extents.iter().any(|extent| files.contains(&extent.record.id)),
            _ => false,
        }
    }
}
