//! What happened to the cached state, for subscribers: a bounded log read by sequence number.
//!
//! A gateway that routes by prefix follows it. Nothing waits for a subscriber: one that is too slow
//! is told that it lags, and starts again from the trie as it is.

use std::collections::VecDeque;
use std::sync::Arc;

use super::config::DomainKey;
use crate::ledger::Tier;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// State of a stretch of a path lies in a tier from now on. A move between tiers is `Stored`
    /// in the new one and `Removed` from the old one.
    Stored(Stretch),
    /// State of a stretch of a path no longer lies in a tier.
    Removed(Stretch),
    /// A path can be resumed at its end from now on; for domains that need points.
    PointStored(Landmark),
    /// A path can no longer be resumed at its end.
    PointRemoved(Landmark),
    /// Everything of a domain that was not in use is gone; what it was has been said before.
    Cleared {
        /// Whose state it was.
        domain: DomainKey,
    },
}

/// A stretch of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stretch {
    /// Whose state it is.
    pub domain: DomainKey,
    /// The namespace in the domain.
    pub salt: Option<Arc<str>>,
    /// Offset of its first token.
    pub start: usize,
    /// Its tokens.
    pub tokens: Box<[u32]>,
    /// Hash of the path before it. The hash of a path grows by `h = (rotl(h, 5) ^ token) *
    /// 0x517cc1b727220a95` for each token.
    pub hash_before: u64,
    /// Hash of the path with it.
    pub hash_after: u64,
    /// Where its first page begins, which may be before it.
    pub page: PageStart,
    /// Where the state lies, or lay.
    pub tier: Tier,
}

/// The end of the last full page before an offset of a path, so that a reader who thinks in pages
/// needs no memory of paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageStart {
    /// Its offset.
    pub offset: usize,
    /// Hash of the path up to it.
    pub hash: u64,
    /// The tokens from it on, less than a page.
    pub tokens: Box<[u32]>,
}

/// A place at which a path can be resumed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Landmark {
    /// Whose state it is.
    pub domain: DomainKey,
    /// The namespace in the domain.
    pub salt: Option<Arc<str>>,
    /// The offset.
    pub offset: usize,
    /// The last full page before it.
    pub page: PageStart,
}

/// A subscriber asked for events that are no longer kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lagged {
    /// The oldest sequence number that can be asked for.
    pub oldest: u64,
}

/// The latest events, numbered from 0 without gaps.
#[derive(Debug, Default)]
pub struct EventLog {
    kept: VecDeque<Event>,
    oldest: u64,
    tokens: usize,
    events_max: usize,
    tokens_max: usize,
}

impl EventLog {
    pub(super) fn new(events_max: usize, tokens_max: usize) -> Self {
        Self { events_max, tokens_max, ..Self::default() }
    }

    /// Whether anything is kept at all.
    pub fn is_on(&self) -> bool {
        self.events_max > 0
    }

    /// The number that the next event will have: where a new subscriber starts.
    pub fn next(&self) -> u64 {
        self.oldest + self.kept.len() as u64
    }

    /// The events from number `sequence` on, oldest first.
    ///
    /// # Errors
    /// [`Lagged`] if some of them are no longer kept.
    pub fn since(&self, sequence: u64) -> Result<impl Iterator<Item = &Event>, Lagged> {
        if sequence < self.oldest {
            return Err(Lagged { oldest: self.oldest });
        }
        let skip = usize::try_from(sequence - self.oldest).unwrap_or(usize::MAX);
        Ok(self.kept.iter().skip(skip))
    }

    pub(super) fn push(&mut self, event: Event) {
        if !self.is_on() {
            return;
        }
        self.tokens += tokens_of(&event);
        self.kept.push_back(event);
        while self.kept.len() > self.events_max || self.tokens > self.tokens_max {
            let Some(gone) = self.kept.pop_front() else { break };
            self.tokens -= tokens_of(&gone);
            self.oldest += 1;
        }
    }
}

fn tokens_of(event: &Event) -> usize {
    match event {
        Event::Stored(stretch) | Event::Removed(stretch) => stretch.tokens.len(),
        Event::PointStored(_) | Event::PointRemoved(_) | Event::Cleared { .. } => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(tokens: usize) -> Event {
        Event::Stored(Stretch {
            domain: DomainKey { fingerprint: 1, instance: 0 },
            salt: None,
            start: 0,
            tokens: vec![0; tokens].into(),
            hash_before: 0,
            hash_after: 0,
            page: PageStart { offset: 0, hash: 0, tokens: Box::default() },
            tier: Tier::Device,
        })
    }

    #[test]
    fn a_slow_subscriber_is_told_where_to_start_again() {
        let mut log = EventLog::new(3, 100);
        for _ in 0..5 {
            log.push(stored(1));
        }
        assert_eq!(log.next(), 5);
        assert_eq!(log.since(1).err(), Some(Lagged { oldest: 2 }));
        assert_eq!(log.since(3).unwrap().count(), 2);
        assert_eq!(log.since(5).unwrap().count(), 0);
        assert_eq!(log.since(9).unwrap().count(), 0);
    }

    #[test]
    fn events_of_many_tokens_push_older_ones_out() {
        let mut log = EventLog::new(10, 100);
        log.push(stored(60));
        log.push(stored(60));
        assert_eq!(log.since(0).err(), Some(Lagged { oldest: 1 }));
        log.push(stored(1000));
        assert_eq!((log.next(), log.since(3).unwrap().count()), (3, 0));
    }
}
