//! The tier against a plain map: any order of writes, reads, removals, faults and restarts.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;

use super::faulty::{EIO, ENOSPC, Fault, FaultyFiles, Op};
use super::support::*;
use crate::disk::{
    BLOCK_BYTES, Completion, DiskConfig, DiskError, DiskTier, RecordHeader, RecordId, Ticket,
};

const BLOCKS_MAX: u64 = 24;

#[derive(Debug, Clone)]
enum Step {
    Write { model: u64, end: u32, bytes: u64 },
    Read(prop::sample::Index),
    Remove(prop::sample::Index),
    RemoveForeign { model: u64, blocks: u64 },
    Poll,
    Flush,
    Fail(Op, Fault),
    Heal,
    Restart,
}

fn steps() -> impl Strategy<Value = Step> {
    let op = prop::sample::select(vec![
        Op::Create,
        Op::Write,
        Op::Sync,
        Op::Open,
        Op::Read,
        Op::Rename,
        Op::Remove,
        Op::SyncDirectory,
    ]);
    let error = prop::sample::select(vec![EIO, ENOSPC]).prop_map(Fault::Error);
    let slow = prop::sample::select(vec![Op::Write, Op::Read]);
    prop_oneof![
        8 => (0..3_u64, 1..90_u32, 0..9000_u64)
            .prop_map(|(model, end, bytes)| Step::Write { model, end, bytes }),
        6 => any::<prop::sample::Index>().prop_map(Step::Read),
        4 => any::<prop::sample::Index>().prop_map(Step::Remove),
        1 => (0..3_u64, 0..4_u64)
            .prop_map(|(model, blocks)| Step::RemoveForeign { model, blocks }),
        4 => Just(Step::Poll),
        2 => Just(Step::Flush),
        2 => (op, error).prop_map(|(op, error)| Step::Fail(op, error)),
        1 => (slow, 1..500_usize).prop_map(|(op, most)| Step::Fail(op, Fault::Short(most))),
        1 => (0..9000_usize).prop_map(|left| Step::Fail(Op::Write, Fault::FullAfter(left))),
        3 => Just(Step::Heal),
        1 => Just(Step::Restart),
    ]
}

/// The tier, and what we know of it.
struct Pair {
    files: FaultyFiles,
    tier: DiskTier,
    /// What should be there.
    records: BTreeMap<RecordId, RecordHeader>,
    /// What a failed write or removal may have left.
    ghosts: BTreeMap<RecordId, RecordHeader>,
    reads: BTreeMap<Ticket, RecordHeader>,
    /// Whether a fault was active since the last restart.
    failed: bool,
}

fn open_with(files: &FaultyFiles, directory: &Path) -> DiskTier {
    let config = DiskConfig {
        bytes_max: BLOCKS_MAX * BLOCK_BYTES,
        queue_bytes_max: 20_000,
        read_bytes_max: 20_000,
        queue_wait_max: LONG,
        ..config(directory)
    };
    DiskTier::open_with(Arc::new(files.clone()), config, nobody()).unwrap()
}

impl Pair {
    fn new(directory: &Path) -> Self {
        let files = FaultyFiles::default();
        let tier = open_with(&files, directory);
        Self {
            files,
            tier,
            records: BTreeMap::new(),
            ghosts: BTreeMap::new(),
            reads: BTreeMap::new(),
            failed: false,
        }
    }

    fn step(&mut self, step: Step, directory: &Path) {
        match step {
            Step::Write { model, end, bytes } => self.write(span(model, end, 1, bytes)),
            Step::Read(place) => self.read(place),
            Step::Remove(place) => {
                if let Some(id) = self.pick(place) {
                    self.tier.remove(id);
                    self.forget(id);
                }
            }
            Step::RemoveForeign { model, blocks } => self.remove_foreign(model, blocks),
            Step::Poll => {
                if let Some(done) = self.tier.poll() {
                    self.settle(done);
                }
            }
            Step::Flush => self.flush(),
            Step::Fail(op, fault) => {
                self.files.fail(&[op], fault);
                self.failed = true;
            }
            Step::Heal => self.files.heal(),
            Step::Restart => self.restart(directory),
        }
        assert!(self.failed || self.tier.status().bytes <= BLOCKS_MAX * BLOCK_BYTES);
    }

    fn pick(&self, place: prop::sample::Index) -> Option<RecordId> {
        let ids: Vec<RecordId> = self.records.keys().copied().collect();
        (!ids.is_empty()).then(|| ids[place.index(ids.len())])
    }

    fn forget(&mut self, id: RecordId) {
        self.ghosts.extend(self.records.remove(&id).map(|header| (id, header)));
    }

    fn write(&mut self, header: RecordHeader) {
        let before = self.free();
        match self.tier.write(header.clone(), payload(&header)) {
            Ok(id) => {
                self.ghosts.remove(&id);
                assert_eq!(self.records.insert(id, header), None, "{id} is given twice");
            }
            Err(DiskError::Full { wanted, .. }) => {
                assert_eq!(wanted, DiskTier::file_bytes(&header));
                // A removal may fail meanwhile.
                assert!(wanted > before.min(self.free()));
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn free(&self) -> u64 {
        (BLOCKS_MAX * BLOCK_BYTES).saturating_sub(self.tier.status().bytes)
    }

    fn read(&mut self, place: prop::sample::Index) {
        let Some(id) = self.pick(place) else { return };
        match self.tier.read(id) {
            Ok(ticket) => {
                self.reads.insert(ticket, self.records[&id].clone());
            }
            Err(DiskError::QueueFull { .. }) => self.flush(),
            // Its write has failed, and that was not polled yet.
            Err(error @ DiskError::Unknown { .. }) => assert!(self.failed, "{error}"),
            Err(error) => panic!("{error}"),
        }
    }

    fn remove_foreign(&mut self, model: u64, blocks: u64) {
        let keep = HashSet::from([model]);
        let foreign = self.tier.foreign_bytes(&keep);
        let before = self.tier.status().records;
        let freed = self.tier.remove_oldest_foreign(blocks * BLOCK_BYTES, &keep);
        assert!(freed >= foreign.min(blocks * BLOCK_BYTES) || self.failed);
        // Numbers grow with age, so the oldest of the others are the first of them.
        let mut left = before - self.tier.status().records;
        let others = self.records.iter().filter(|(_, header)| header.fingerprint != model);
        let others: Vec<RecordId> = others.map(|(id, _)| *id).collect();
        for id in others {
            if self.tier.read(id) == Err(DiskError::Unknown { id: id.0 }) {
                left = left.saturating_sub(1);
                self.forget(id);
            }
        }
        assert!(left == 0 || self.failed);
    }

    fn settle(&mut self, done: Completion) {
        match done {
            Completion::Written { .. } => {}
            Completion::WriteFailed { id, error } => {
                assert!(self.failed, "{error}");
                self.forget(id);
            }
            Completion::Read { ticket, id, result } => {
                // Reads that only tell whether a record is there are not in the map.
                let Some(header) = self.reads.remove(&ticket) else { return };
                match result {
                    Ok(bytes) => assert_eq!(bytes[..], whole(&payload(&header))),
                    Err(error) => {
                        assert!(self.failed, "{error}");
                        if error.is_lost() {
                            self.forget(id);
                        }
                    }
                }
            }
        }
    }

    fn flush(&mut self) {
        for done in flush(&mut self.tier) {
            self.settle(done);
        }
        assert_eq!(self.reads.len(), 0, "every read has its completion");
    }

    /// Whatever has failed, on a disk that works again the tier finds what was promised.
    fn restart(&mut self, directory: &Path) {
        self.flush();
        let status = self.tier.status();
        let on_disk = self.bytes_on_disk(directory);
        assert!(on_disk <= status.bytes, "{on_disk} bytes in files, {status:?}");
        assert!(self.failed || on_disk == status.bytes, "{on_disk} bytes in files, {status:?}");
        assert_eq!(status.records, self.records.len());
        self.files.heal();
        // The old one has the lock.
        let elsewhere = tempfile::tempdir().unwrap();
        drop(std::mem::replace(&mut self.tier, open_with(&self.files, elsewhere.path())));
        self.tier = open_with(&self.files, directory);
        assert_eq!(self.tier.counters().refused, 0);
        let mut found = BTreeMap::new();
        for (id, header, read) in everything(&mut self.tier) {
            assert_eq!(read.unwrap(), whole(&payload(&header)));
            found.insert(id, header);
        }
        // What failed to go may leave no room for the oldest of what should be there.
        let over = on_disk > BLOCKS_MAX * BLOCK_BYTES;
        let oldest = found.keys().next().copied();
        for (id, header) in &self.records {
            let gone = over && oldest.is_none_or(|oldest| *id < oldest);
            assert!(gone || found.get(id) == Some(header), "{id} is lost");
        }
        for (id, header) in &found {
            let known = self.records.get(id).or_else(|| self.ghosts.get(id));
            assert_eq!(known, Some(header));
            assert!(self.failed || self.records.contains_key(id), "{id} came back");
        }
        assert_eq!(self.tier.status().bytes, self.bytes_on_disk(directory));
        self.records = found;
        self.ghosts.clear();
        self.failed = false;
    }

    fn bytes_on_disk(&self, directory: &Path) -> u64 {
        let files = std::fs::read_dir(directory.join("records")).unwrap();
        let lengths = files.map(|file| file.unwrap().metadata().unwrap().len());
        lengths.map(|length| length.next_multiple_of(BLOCK_BYTES)).sum()
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        cases: 60,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_tier_is_a_map_whatever_fails(steps in prop::collection::vec(steps(), 1..80)) {
        let directory = tempfile::tempdir().unwrap();
        let mut pair = Pair::new(directory.path());
        for step in steps {
            pair.step(step, directory.path());
        }
        pair.restart(directory.path());
    }
}
