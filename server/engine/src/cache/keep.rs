//! What a sequence leaves behind: restore points on its way, full pages after every step, the rest
//! and the state itself at its end.

use std::ops::Range;

use sconce_cache::{LeaseId, Storage as _};
use sconce_models::{PAGE_TOKENS, PointEmit, SequenceId};

use super::hands::Hands;
use super::memory::{Footing, Memory, Parting};
use super::offsets::{Outlook, on_grid, restore_points};
use super::payload::{Pages, Point, Span, page_range};
use crate::sequence::Sequence;

impl Memory<'_> {
    /// Decides where the state of a sequence is to be kept.
    pub(super) fn plan(&mut self, sequence: &mut Sequence, resumed: usize) {
        let footing = &mut sequence.footing;
        if footing.lease.is_none() || self.pool.layout().recurrent.is_none() {
            return;
        }
        let matched = footing.found.matched;
        footing.points = restore_points(
            &Outlook {
                tokens: sequence.prompt_tokens,
                resumed,
                hints: &sequence.cache.restore_points,
                boundaries: &sequence.cache.boundaries,
                branch: (matched > resumed).then_some(matched),
                whole: sequence.keep.is_some(),
            },
            self.cache.spacing,
        );
    }

    /// Takes points for the restore points among the next `tokens` tokens of a sequence, as many as
    /// there is room for; the step copies its state to them.
    pub(crate) fn emits(
        &mut self,
        sequence: &mut Sequence,
        (segment, tokens): (usize, usize),
        into: &mut Vec<PointEmit>,
    ) {
        let from = sequence.computed;
        let offsets = sequence.footing.points.iter().copied();
        let offsets: Vec<usize> =
            offsets.filter(|&offset| offset > from && offset <= from + tokens).collect();
        for offset in offsets {
            if !self.make_room_for_point() {
                self.cache.status.points_skipped += 1;
                continue;
            }
            if let Ok(point) = self.pool.take_point() {
                sequence.footing.emitted.push((offset, point));
                into.push(PointEmit { segment, offset: offset - from, point });
            }
        }
    }

    /// Gives to the trie what a prompt has computed so far, in whole pages.
    pub(crate) fn remember(&mut self, sequence: &mut Sequence) {
        let prompt = sequence.computed.min(sequence.prompt_tokens);
        // A page that others hold cannot be written to, so the last one waits until it is full.
        let end = match sequence.keep.is_some() && prompt == sequence.tokens.len() {
            true => prompt,
            false => on_grid(prompt),
        };
        self.extend(sequence, end);
        self.attach(sequence, end);
    }

    fn extend(&mut self, sequence: &Sequence, end: usize) -> usize {
        let (Some(lease), Some(id)) = (sequence.footing.lease, sequence.state) else { return 0 };
        let (trie, mut hands) = self.cache.with_hands(Some(self.pool));
        if end <= trie.leased(lease) {
            return end;
        }
        trie.extend(&mut hands, lease, &sequence.tokens, end, &mut |hands, tokens| {
            share(hands, id, tokens)
        })
    }

    /// Attaches the states that steps have kept, up to `end`; those behind it wait for their pages.
    fn attach(&mut self, sequence: &mut Sequence, end: usize) {
        let Footing { lease: Some(lease), emitted, .. } = &mut sequence.footing else { return };
        let (trie, mut hands) = self.cache.with_hands(Some(self.pool));
        let covered = trie.leased(*lease).min(end);
        for (offset, point) in emitted.extract_if(.., |(offset, _)| *offset <= end) {
            match offset <= covered {
                true => {
                    trie.attach(&mut hands, *lease, offset, Point::Device(point));
                }
                false => hands.free_point(Point::Device(point)),
            }
        }
    }

    /// Frees the states that still wait.
    fn free_emitted(&mut self, sequence: &mut Sequence) {
        let (_, mut hands) = self.cache.with_hands(Some(self.pool));
        for (_, point) in sequence.footing.emitted.drain(..) {
            hands.free_point(Point::Device(point));
        }
    }

    /// Lets a sequence's state go, and keeps it in the trie up to its last token if it is sound.
    pub(crate) fn close(&mut self, sequence: &mut Sequence, parting: Parting) {
        if let Some(id) = sequence.state {
            let computed = sequence.computed;
            let covered = match parting {
                Parting::Failed => 0,
                Parting::Paused | Parting::Done => self.extend(sequence, computed),
            };
            self.attach(sequence, covered);
            self.free_emitted(sequence);
            let closed =
                match sequence.footing.lease.filter(|_| covered == computed && computed > 0) {
                    Some(lease) if self.wants_point(lease, computed) => {
                        self.pool.close_to_point(id).map(|point| {
                            let (trie, mut hands) = self.cache.with_hands(Some(self.pool));
                            trie.attach(&mut hands, lease, computed, Point::Device(point));
                        })
                    }
                    _ => self.pool.close(id),
                };
            if let Err(error) = closed {
                tracing::error!(request_id = %sequence.request_id, %error, "state was closed twice");
            }
            if parting == Parting::Done && sequence.cache.pin {
                self.pin(sequence);
            }
            sequence.state = None;
        }
        sequence.computed = 0;
        self.leave(&mut sequence.footing);
    }

    /// Whether a sequence of a recurrent model should leave its state at its end, and can.
    fn wants_point(&mut self, lease: LeaseId, offset: usize) -> bool {
        self.pool.layout().recurrent.is_some()
            && !self.cache.trie.has_point(lease, offset)
            && self.make_room_for_point()
    }

    /// Gives up what a sequence has found.
    pub(crate) fn leave(&mut self, footing: &mut Footing) {
        self.unread(footing);
        footing.postponed = false;
        debug_assert!(footing.emitted.is_empty(), "states of a step are attached or freed");
        if let Some(lease) = footing.lease.take() {
            self.cache.trie.release(lease);
        }
        footing.points.clear();
    }

    pub(super) fn unread(&mut self, footing: &mut Footing) {
        let Some(disk) = self.cache.disk.as_mut() else { return };
        for record in footing.reading.drain(..) {
            disk.unwant(&record);
            disk.release(record);
        }
    }
}

/// A holder's share of the pages of an open sequence.
fn share(hands: &mut Hands<'_>, id: SequenceId, tokens: Range<usize>) -> Option<Span> {
    let pool = hands.pool.as_deref_mut()?;
    let pages = pool.page_table(id).ok()?.get(page_range(&tokens))?.to_vec();
    // Where a path has forks, even of what was evicted, a sequence is kept piece by piece, and two may
    // lie in one of its pages. Of its pages none but that of the piece before is held already: what it
    // has resumed from it has copied before it wrote on.
    let begins_inside = !tokens.start.is_multiple_of(PAGE_TOKENS);
    let shares_first =
        begins_inside && pages.first().is_some_and(|&page| pool.is_held_outside(page));
    pool.share_pages(&pages).ok()?;
    Some(Span { tokens, pages: Pages::Device(pages), shares_first })
}
