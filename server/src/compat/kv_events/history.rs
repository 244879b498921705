//! What readers were told: the latest batches, numbered without gaps, and all that they know.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, SystemTime};

use sconce_proto::compat::smg::grpc::common::kv_cache_event::Data;
use sconce_proto::compat::smg::grpc::common::{
    KvBlock, KvBlocksRemoved, KvBlocksStored, KvCacheCleared, KvCacheEvent, KvEventBatch,
    KvSnapshotChunk,
};

use super::BLOCK_TOKENS;
use super::mirror::{Changes, Mirror, StoredBlock};

/// Batches that a reader may be behind.
const BATCHES_MAX: usize = 1024;

/// Blocks in all batches kept, a removed one counting as one too: some 20 MB.
const BLOCKS_MAX: usize = 1 << 16;

/// Blocks of one batch: about 1 MB of tokens, which readers with the usual limit of 4 MB can take.
pub(super) const BATCH_BLOCKS_MAX: usize = 4096;

/// See the module.
#[derive(Debug)]
pub(super) struct History {
    mirror: Mirror,
    kept: VecDeque<KvEventBatch>,
    /// Numbers that a part of a snapshot had with others to come: who read up to one of these may know of
    /// a part only. Those that are too old anyway are forgotten, so that there are as many as batches.
    partial: BTreeSet<u64>,
    newest: u64,
    blocks: usize,
    events: u64,
}

/// A cursor is not one of this history, or older than it, or may be one within a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unknown {
    pub(super) oldest: u64,
    pub(super) newest: u64,
}

impl History {
    /// Nothing told yet. Numbers go on from the time of day, so that a cursor into the history of an
    /// earlier server is below all of this one's and is found out.
    pub(super) fn new() -> Self {
        let newest = u64::try_from(since_1970().as_millis()).unwrap_or(u64::MAX / 2).max(1);
        let mirror = Mirror::new(BLOCK_TOKENS, false);
        let (kept, partial) = (VecDeque::new(), BTreeSet::new());
        Self { mirror, kept, partial, newest, blocks: 0, events: 0 }
    }

    /// Number of the newest batch, or of the one before the first.
    pub(super) fn newest(&self) -> u64 {
        self.newest
    }

    /// What readers are to know, once published.
    pub(super) fn mirror(&mut self) -> &mut Mirror {
        &mut self.mirror
    }

    /// Tells what has changed.
    pub(super) fn publish(&mut self) {
        let Changes { removed, stored } = self.mirror.changes();
        for hashes in removed.chunks(BATCH_BLOCKS_MAX) {
            let block_hashes = hashes.iter().map(|hash| hash.cast_signed()).collect();
            let data =
                Data::Removed(KvBlocksRemoved { block_hashes, ..KvBlocksRemoved::default() });
            self.push(vec![data], hashes.len());
        }
        for blocks in stored.chunks(BATCH_BLOCKS_MAX) {
            self.push(chained(blocks).into_iter().map(Data::Stored).collect(), blocks.len());
        }
    }

    /// Tells that everything is different: what is in `mirror`, and nothing of before.
    pub(super) fn begin(&mut self, mirror: Mirror) {
        let knew = !self.mirror.told().is_empty();
        self.mirror = mirror;
        if knew {
            self.push(vec![Data::Cleared(KvCacheCleared::default())], 0);
        }
        self.publish();
    }

    /// Whether a reader that comes back can go on after `cursor`: not if that is what a part of a
    /// snapshot was numbered, for the parts that it did not get are among no batches.
    pub(super) fn check(&self, cursor: u64) -> Result<(), Unknown> {
        if self.partial.contains(&cursor) {
            return Err(Unknown { oldest: self.oldest(), newest: self.newest });
        }
        self.after(cursor, 0).map(drop)
    }

    /// Up to `most` batches after `cursor`.
    pub(super) fn after(&self, cursor: u64, most: usize) -> Result<Vec<KvEventBatch>, Unknown> {
        let oldest = self.oldest();
        if cursor > self.newest || cursor + 1 < oldest {
            return Err(Unknown { oldest, newest: self.newest });
        }
        // Kept batches fit memory, so the number does too.
        let skip = (cursor + 1 - oldest) as usize;
        Ok(self.kept.iter().skip(skip).take(most).cloned().collect())
    }

    /// All that readers know, as batches the last of which has the newest number.
    pub(super) fn snapshot(&mut self) -> VecDeque<KvEventBatch> {
        let told = self.mirror.told();
        let mut parts: Vec<_> = told.chunks(BATCH_BLOCKS_MAX).collect();
        if parts.is_empty() {
            parts.push(&[]);
        }
        let count = parts.len();
        let first = self.newest - (count - 1) as u64;
        let batch = |(i, blocks): (usize, &[StoredBlock])| {
            let cleared = (i == 0).then(|| Data::Cleared(KvCacheCleared::default()));
            let stored = chained(blocks).into_iter().map(Data::Stored);
            let events = cleared.into_iter().chain(stored);
            KvEventBatch {
                sequence_number: first + i as u64,
                timestamp: since_1970().as_secs_f64(),
                events: events.map(|data| KvCacheEvent { event_id: 0, data: Some(data) }).collect(),
                snapshot: Some(KvSnapshotChunk {
                    index: u32::try_from(i).unwrap_or(u32::MAX),
                    count: u32::try_from(count).unwrap_or(u32::MAX),
                    blocks: told.len() as u64,
                    unknown_before: 0,
                }),
                ..KvEventBatch::default()
            }
        };
        let batches = parts.into_iter().enumerate().map(batch).collect();
        self.partial.extend(first.max(self.oldest() - 1)..self.newest);
        batches
    }

    /// Number of the oldest batch that is kept, or of the next one.
    fn oldest(&self) -> u64 {
        self.newest + 1 - self.kept.len() as u64
    }

    fn push(&mut self, events: Vec<Data>, blocks: usize) {
        self.newest += 1;
        let events = events.into_iter().map(|data| {
            self.events += 1;
            KvCacheEvent { event_id: self.events, data: Some(data) }
        });
        self.kept.push_back(KvEventBatch {
            sequence_number: self.newest,
            timestamp: since_1970().as_secs_f64(),
            events: events.collect(),
            ..KvEventBatch::default()
        });
        self.blocks += blocks;
        while self.kept.len() > BATCHES_MAX || self.blocks > BLOCKS_MAX {
            let Some(gone) = self.kept.pop_front() else { break };
            self.blocks -= blocks_of(&gone);
        }
        // The batch before the oldest is one that a reader can go on after.
        self.partial = self.partial.split_off(&(self.oldest() - 1));
    }
}

fn blocks_of(batch: &KvEventBatch) -> usize {
    let blocks = |event: &KvCacheEvent| match &event.data {
        Some(Data::Stored(stored)) => stored.blocks.len(),
        Some(Data::Removed(removed)) => removed.block_hashes.len(),
        Some(Data::Cleared(_)) | None => 0,
    };
    batch.events.iter().map(blocks).sum()
}

/// Blocks, parents before children, as runs in which each follows the one before.
fn chained(blocks: &[StoredBlock]) -> Vec<KvBlocksStored> {
    let mut runs: Vec<KvBlocksStored> = Vec::new();
    // Which run a block is the last of.
    let mut last_of: HashMap<u64, usize> = HashMap::new();
    for block in blocks {
        let run = block.parent.and_then(|parent| last_of.remove(&parent)).unwrap_or_else(|| {
            runs.push(KvBlocksStored {
                parent_block_hash: block.parent.map(u64::cast_signed),
                ..KvBlocksStored::default()
            });
            runs.len() - 1
        });
        last_of.insert(block.hash, run);
        runs[run].blocks.push(KvBlock {
            block_hash: block.hash.cast_signed(),
            token_ids: block.tokens.to_vec(),
            block_size: i32::try_from(block.tokens.len()).unwrap_or(i32::MAX),
            ..KvBlock::default()
        });
    }
    runs
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
pub(super) mod tests {
    use sconce_cache::{DomainKey, Event, PageStart, Stretch, Tier};

    use super::*;

    /// A history with `blocks` blocks, told in as many batches.
    fn history(blocks: usize) -> History {
        let mut history = History::new();
        for block in 0..blocks {
            history.mirror().take(&Event::Stored(stretch(block)));
            history.publish();
        }
        history
    }

    pub(in super::super) fn stretch(block: usize) -> Stretch {
        let tokens: Box<[u32]> = vec![block as u32; BLOCK_TOKENS].into();
        Stretch {
            domain: DomainKey { fingerprint: 1, instance: 0 },
            salt: None,
            start: 0,
            tokens,
            hash_before: 1,
            hash_after: 0,
            page: PageStart { offset: 0, hash: 1, tokens: Box::default() },
            tier: Tier::Device,
        }
    }

    #[test]
    fn a_reader_goes_on_from_any_batch_that_is_kept() {
        let history = history(10);
        let newest = history.newest();
        let numbers = |cursor, most| {
            let batches = history.after(cursor, most).expect("is kept").into_iter();
            batches.map(|batch| batch.sequence_number).collect::<Vec<_>>()
        };
        assert_eq!(numbers(newest - 3, 16), [newest - 2, newest - 1, newest]);
        assert_eq!(numbers(newest - 10, 2), [newest - 9, newest - 8]);
        assert!(numbers(newest, 16).is_empty());
        let unknown = Unknown { oldest: newest - 9, newest };
        assert_eq!(history.after(newest - 11, 1), Err(unknown));
        assert_eq!(history.after(newest + 1, 1), Err(unknown));
    }

    #[test]
    fn old_batches_are_forgotten_and_a_snapshot_has_everything() {
        let mut history = history(BATCHES_MAX + 5);
        let newest = history.newest();
        assert_eq!(history.kept.len(), BATCHES_MAX);
        assert!(history.after(newest - BATCHES_MAX as u64 - 1, 1).is_err());
        let parts = history.snapshot();
        assert_eq!(parts.len(), 1);
        assert_eq!(parts[0].sequence_number, newest);
        assert_eq!(blocks_of(&parts[0]), BATCHES_MAX + 5);
        assert!(matches!(parts[0].events[0].data, Some(Data::Cleared(_))));
    }

    #[test]
    fn a_large_snapshot_comes_in_parts_that_end_at_the_newest_number() {
        let mut mirror = Mirror::new(BLOCK_TOKENS, false);
        let blocks = 2 * BATCH_BLOCKS_MAX + 1;
        (0..blocks).for_each(|block| mirror.take(&Event::Stored(stretch(block))));
        let mut history = History::new();
        let before = history.newest();
        history.begin(mirror);
        assert_eq!(history.newest(), before + 3, "no batch is too large for a reader");
        let parts = history.snapshot();
        let numbers: Vec<_> = parts.iter().map(|part| part.sequence_number).collect();
        assert_eq!(numbers, [before + 1, before + 2, before + 3]);
        assert_eq!(parts.iter().map(blocks_of).sum::<usize>(), blocks);
        let chunk = parts[2].snapshot.expect("is a part");
        assert_eq!((chunk.index, chunk.count, chunk.blocks), (2, 3, blocks as u64));

        // Who got a part only is found out, for as long as its number is one of a batch.
        assert!(history.check(numbers[0]).is_err() && history.check(numbers[1]).is_err());
        assert_eq!(history.check(numbers[2]), Ok(()));
        assert_eq!(history.check(before), Ok(()), "no part had this number");
        assert_eq!(
            history.after(numbers[0], 16).map(|batches| batches.len()),
            Ok(2),
            "who has all"
        );
        history.snapshot();
        assert_eq!(history.partial.len(), 2);
        for block in blocks..blocks + BATCHES_MAX {
            history.mirror().take(&Event::Stored(stretch(block)));
            history.publish();
        }
        assert!(history.partial.is_empty() && history.check(numbers[1]).is_err());
        assert_eq!(history.check(numbers[2]), Ok(()), "the one before the oldest");
    }

    #[test]
    fn another_model_begins_with_a_clean_slate() {
        let mut history = history(3);
        let before = history.newest();
        history.begin(Mirror::new(BLOCK_TOKENS, false));
        let batches = history.after(before, 16).expect("is kept");
        assert_eq!(batches.len(), 1);
        assert!(matches!(batches[0].events[0].data, Some(Data::Cleared(_))));
        history.begin(Mirror::new(BLOCK_TOKENS, false));
        assert_eq!(history.newest(), before + 1, "nothing is no news");
    }
}
