//! How a sequence comes by its state: what it found is read, brought to the pool and shared, and it
//! is opened at the end of it.

use sconce_cache::{LeaseId, Storage as _, Tier, Trie};
use sconce_models::{PAGE_TOKENS, Prefix, PrefixPoint, SequenceId, StateError};

use super::disk::STAGED_BYTES_MAX;
use super::hands::Hands;
use super::memory::{Footing, Memory, Preparation};
use super::offsets::on_grid;
use super::payload::{Pages, Point, Span, page_range};
use crate::sequence::Sequence;

/// Tokens that a sequence must be able to save to wait for another that computes them just now.
const WAIT_TOKENS_MIN: usize = PAGE_TOKENS;

impl Memory<'_> {
    /// Finds what a sequence can resume from, and has read what of it lies in files.
    pub(crate) fn prepare(&mut self, sequence: &mut Sequence) -> Preparation {
        let Some(domain) = self.domain.filter(|_| !sequence.cache.bypass) else {
            return Preparation::Ready {
                pages: self.pool.layout().pages_for(sequence.tokens.len()),
            };
        };
        if sequence.footing.lease.is_none() {
            let salt = sequence.cache.salt.as_deref();
            let (lease, found) = self.cache.trie.lease(domain, salt, &sequence.tokens);
            sequence.footing = Footing { lease: Some(lease), found, ..Footing::default() };
            self.read_ahead(&mut sequence.footing);
        } else if sequence.footing.postponed {
            self.read_ahead(&mut sequence.footing);
        }
        let footing = &sequence.footing;
        if footing.postponed {
            return Preparation::Reading;
        }
        if let Some(disk) = &self.cache.disk
            && !footing.reading.iter().all(|record| disk.is_read(record))
        {
            return Preparation::Reading;
        }
        if self.asks_for_room(&mut sequence.footing) {
            return Preparation::Reading;
        }
        let footing = &sequence.footing;
        let pages = self.pool.layout().pages_for(sequence.tokens.len());
        Preparation::Ready {
            pages: pages + self.copied_pages(footing) - self.shared_pages(footing),
        }
    }

    /// Whether what was found needs room on the device that another model has too much of. Asked
    /// once: what that one does not give is not waited for.
    fn asks_for_room(&mut self, footing: &mut Footing) -> bool {
        let Some(lease) = footing.lease.filter(|_| !footing.asked) else { return false };
        footing.asked = true;
        let (trie, hands) = self.cache.with_hands(Some(self.pool));
        trie.is_short_of_room(&hands, lease)
    }

    /// Has a sequence that waits resume less than it found, by a page or more, so that the rest can
    /// be evicted; whether there was anything left of it.
    pub(crate) fn resume_less(&mut self, footing: &mut Footing) -> bool {
        let found = self.found(footing);
        let Some(lease) = footing.lease.filter(|_| found > 0) else { return false };
        self.unread(footing);
        self.cache.trie.shorten(lease, on_grid(found - 1));
        self.read_ahead(footing);
        true
    }

    /// Tokens that a sequence which waits would resume.
    pub(crate) fn found(&self, footing: &Footing) -> usize {
        footing.lease.map_or(0, |lease| self.cache.trie.leased(lease))
    }

    /// Whether somebody waits for an export, and holds what it needs.
    pub(crate) fn is_exporting(&self) -> bool {
        !self.cache.exports.is_empty()
    }

    /// Has the files read that the lease needs. What it needs past the bound of what may be read ahead
    /// is given up; while others take so much of that bound that it does not fit, it is postponed.
    fn read_ahead(&mut self, footing: &mut Footing) {
        let (Some(lease), Some(disk)) = (footing.lease, self.cache.disk.as_mut()) else { return };
        let trie = &mut self.cache.trie;
        let mut needed = Vec::new();
        let mut bytes = 0;
        let mut reach = trie.leased(lease);
        if let Some((_, Point::Disk(record))) = trie.point(lease) {
            bytes += record.bytes;
            needed.push(record.clone());
        }
        for (tokens, _, span) in trie.spans(lease) {
            let Pages::Disk(extents) = &span.pages else { continue };
            let new = extents.iter().filter(|extent| !needed.contains(&extent.record));
            let new: Vec<_> = new.map(|extent| extent.record.clone()).collect();
            bytes += new.iter().map(|record| record.bytes).sum::<u64>();
            if bytes > STAGED_BYTES_MAX {
                reach = tokens.start;
                break;
            }
            needed.extend(new);
        }
        let bytes = needed.iter().map(|record| record.bytes).sum();
        footing.postponed = !disk.has_room_for(bytes);
        if footing.postponed {
            return;
        }
        if reach < trie.leased(lease) {
            trie.shorten(lease, reach);
            // Another point, perhaps in another file; what it takes is little.
            if let Some((_, Point::Disk(record))) = trie.point(lease) {
                needed.push(record.clone());
            }
        }
        needed.iter().for_each(|record| disk.want(record));
        footing.reading = needed;
    }

    /// Whole pages of the pool that the sequence will share.
    fn shared_pages(&self, footing: &Footing) -> usize {
        let Some(lease) = footing.lease else { return 0 };
        let resident =
            self.cache.trie.spans(lease).take_while(|(_, tier, _)| *tier == Tier::Device);
        resident.last().map_or(0, |(tokens, _, _)| tokens.end / PAGE_TOKENS)
    }

    /// Pages that are brought to the device for the sequence, and then copied because it goes on in
    /// the middle of them.
    fn copied_pages(&self, footing: &Footing) -> usize {
        let Some(lease) = footing.lease else { return 0 };
        let trie = &self.cache.trie;
        let is_inside = !trie.leased(lease).is_multiple_of(PAGE_TOKENS);
        let last = trie.spans(lease).last();
        usize::from(is_inside && last.is_some_and(|(_, tier, _)| tier != Tier::Device))
    }

    /// Opens a prepared sequence with what can be resumed, and takes the pages for its tokens.
    ///
    /// # Errors
    /// The pool refused; the sequence is prepared again then.
    pub(crate) fn open(&mut self, sequence: &mut Sequence) -> Result<SequenceId, StateError> {
        let opened = self.resume(&mut sequence.footing);
        self.unread(&mut sequence.footing);
        let opened = opened.and_then(|(id, resumed)| {
            let reserved = self.pool.reserve(id, sequence.tokens.len() - resumed);
            reserved.inspect_err(|_| {
                // Just opened, so closing it cannot fail.
                let _closed = self.pool.close(id);
            })?;
            Ok((id, resumed))
        });
        match opened {
            Ok((id, resumed)) => {
                sequence.computed = resumed;
                self.plan(sequence, resumed);
                Ok(id)
            }
            Err(error) => {
                self.read_ahead(&mut sequence.footing);
                Err(error)
            }
        }
    }

    fn resume(&mut self, footing: &mut Footing) -> Result<(SequenceId, usize), StateError> {
        let Some(lease) = footing.lease else { return Ok((self.pool.open()?, 0)) };
        let (trie, mut hands) = self.cache.with_hands(Some(self.pool));
        let before = bytes_up(trie);
        let len = trie.page_in(&mut hands, lease);
        footing.restored_bytes += bytes_up(trie) - before;
        if len == 0 {
            return Ok((self.pool.open()?, 0));
        }
        let mut copies = Vec::new();
        let opened = open_leased(trie, &mut hands, lease, &mut copies);
        // The sequence holds them now, or nobody does.
        hands.free_span(Span::of_pages(copies));
        match opened {
            Ok((id, copied)) => {
                footing.restored_bytes += copied;
                Ok((id, len))
            }
            Err(problem) => {
                tracing::warn!(problem, "what is remembered cannot be had; starting cold");
                trie.shorten(lease, 0);
                Ok((self.pool.open()?, 0))
            }
        }
    }

    /// How far `running` should get before `waiting` starts, for it computes what `waiting` begins
    /// with: `None` if waiting would not pay.
    pub(crate) fn meeting_point(
        &self,
        waiting: &Sequence,
        running: &mut Sequence,
    ) -> Option<usize> {
        let domain = self.domain.filter(|_| !waiting.cache.bypass)?;
        let salt = waiting.cache.salt.as_deref();
        if running.footing.lease.is_none() || running.cache.salt.as_deref() != salt {
            return None;
        }
        let usable = running.prompt_tokens.min(waiting.tokens.len() - 1);
        let pairs = running.tokens[..usable].iter().zip(&waiting.tokens);
        let common = on_grid(pairs.take_while(|(a, b)| a == b).count());
        if common <= running.computed || !running.has_room() {
            return None;
        }
        let resumed = self.cache.trie.lookup(domain, salt, &waiting.tokens).resumed;
        if common < resumed + WAIT_TOKENS_MIN {
            return None;
        }
        if self.pool.layout().recurrent.is_some()
            && let Err(place) = running.footing.points.binary_search(&common)
        {
            running.footing.points.insert(place, common);
        }
        Some(common)
    }
}

/// Bytes that were moved up so far.
fn bytes_up(trie: &Trie<Span, Point>) -> u64 {
    trie.counters().bytes_up.iter().sum()
}

/// Opens a sequence with what a lease covers. Pages that are not on the device are copied there,
/// beside `copies`, and stay where they are; so does the point. Tells how many bytes were copied.
fn open_leased(
    trie: &Trie<Span, Point>,
    hands: &mut Hands<'_>,
    lease: LeaseId,
    copies: &mut Vec<u32>,
) -> Result<(SequenceId, u64), String> {
    let len = trie.leased(lease);
    let mut restored = 0;
    let mut pages: Vec<u32> = Vec::new();
    for (tokens, _, span) in trie.spans(lease) {
        let first = page_range(&tokens).start;
        // The first page of a span has the tokens before it too.
        pages.truncate(first);
        if let Pages::Device(held) = &span.pages {
            pages.extend(held);
            continue;
        }
        let bytes = hands.copy_pages(span).map_err(|why| format!("{why:?}"))?;
        let wanted = bytes.len().min(len.div_ceil(PAGE_TOKENS) - first);
        let copied = hands.fill_pages(&bytes[..wanted])?;
        restored += bytes[..wanted].iter().map(|page| page.len() as u64).sum::<u64>();
        pages.extend(&copied);
        copies.extend(copied);
    }
    pages.truncate(len.div_ceil(PAGE_TOKENS));
    let bytes;
    let point = match trie.point(lease) {
        None => PrefixPoint::None,
        Some((_, Point::Device(point))) => PrefixPoint::Slot(*point),
        Some((_, point)) => {
            bytes = hands.point_bytes_of(point).map_err(|why| format!("{why:?}"))?;
            restored += bytes.len() as u64;
            PrefixPoint::Bytes(&bytes)
        }
    };
    let prefix = Prefix { len, pages: &pages, point };
    let opened = hands.pool()?.open_at(prefix).map_err(|error| error.to_string())?;
    Ok((opened, restored))
}
