//! The hands of the trie: what it asks of whoever holds the bytes it only counts.
//!
//! The trie decides what lies where; a [`Storage`] moves, cuts and frees. It is lent to each call
//! that may need it, so that it can borrow a model's pool for exactly that long.

use std::fmt;

use crate::ledger::Tier;
use crate::trie::DomainKey;

/// Cuts, joins, moves and frees payloads. Never called re-entrantly.
///
/// A *span* is the state of the tokens `[start, end)` of a path and can be cut anywhere; a *point*
/// is state that exists at one offset only. Sizes must not change between calls that change the
/// payload, or the ledger and the truth part ways.
pub trait Storage {
    /// State per token.
    type Span;
    /// State at one offset.
    type Point;

    /// What `span` is charged in the tier where it lies.
    fn span_bytes(&self, span: &Self::Span) -> u64;

    /// What `point` is charged in the tier where it lies.
    fn point_bytes(&self, point: &Self::Point) -> u64;

    /// The most that `span` would be charged in tier `to`.
    fn span_bytes_in(&self, span: &Self::Span, to: Tier) -> u64;

    /// The most that `point` would be charged in tier `to`.
    fn point_bytes_in(&self, point: &Self::Point, to: Tier) -> u64;

    /// Cuts `span` at the absolute offset `at`, which lies strictly inside. What both parts are
    /// charged adds up to what the whole was.
    fn split(&mut self, span: Self::Span, at: usize) -> (Self::Span, Self::Span);

    /// Joins two consecutive spans of one tier. The whole is charged at most the sum of the parts.
    fn join(&mut self, head: Self::Span, tail: Self::Span) -> Self::Span;

    /// The span before `span` has left its tier, or was replaced: what the two shared (a border
    /// page) is charged to `span` from now on.
    fn settle(&mut self, span: &mut Self::Span);

    /// Moves `span` to another tier.
    ///
    /// # Errors
    /// [`Refused`] with the payload unchanged, or lost if it turned out to be unreadable.
    fn move_span(
        &mut self,
        span: Self::Span,
        to: Tier,
        place: &Place<'_>,
    ) -> Result<Self::Span, Refused<Self::Span>>;

    /// Moves `point` to another tier.
    ///
    /// # Errors
    /// As [`Self::move_span`].
    fn move_point(
        &mut self,
        point: Self::Point,
        to: Tier,
        place: &Place<'_>,
    ) -> Result<Self::Point, Refused<Self::Point>>;

    /// Lets go of `span`.
    fn free_span(&mut self, span: Self::Span);

    /// Lets go of `point`.
    fn free_point(&mut self, point: Self::Point);
}

/// Why a payload did not move.
pub enum Refused<P> {
    /// It stays where it was, unchanged.
    Kept(P),
    /// It was damaged and is gone; the storage has freed it.
    Lost,
}

impl<P> fmt::Debug for Refused<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kept(_) => "Kept",
            Self::Lost => "Lost",
        })
    }
}

/// Which state a payload is: enough to write it down so that it can be found again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'a> {
    /// Whose state it is.
    pub domain: DomainKey,
    /// The namespace in the domain.
    pub salt: Option<&'a str>,
    /// First token of a span; a point has `start == tokens.len()`.
    pub start: usize,
    /// The whole path `[0, end)`.
    pub tokens: &'a [u32],
}
