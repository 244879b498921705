//! What waits, for how long, and who is told. A gate in the file system holds the I/O thread up, so
//! that nothing here depends on speed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::faulty::{EIO, Fault, FaultyFiles, Op};
use super::support::*;
use crate::disk::{Completion, DiskConfig, DiskError, DiskTier, ManifestEntry};

fn gated(config: DiskConfig) -> (FaultyFiles, DiskTier) {
    let files = FaultyFiles::default();
    let tier = DiskTier::open_with(Arc::new(files.clone()), config, nobody()).unwrap();
    files.fail(&[Op::Sync], Fault::Gate);
    (files, tier)
}

#[test]
fn a_full_queue_makes_a_write_wait_and_then_refuses_it() {
    let directory = tempfile::tempdir().unwrap();
    let (files, mut tier) = gated(DiskConfig {
        queue_bytes_max: 3000,
        queue_wait_max: Duration::ZERO,
        ..config(directory.path())
    });
    let header = span(1, 3, 3, 2000);
    write(&mut tier, &header);
    assert_eq!(tier.pending_bytes(), header.record_bytes() - 16);
    let error = tier.write(header.clone(), payload(&header)).unwrap_err();
    let (most, found) = (3000, tier.pending_bytes());
    assert_eq!(error, DiskError::QueueFull { most, found, unit: "bytes" });
    assert_eq!(tier.status().bytes, DiskTier::file_bytes(&header));
    files.heal();
    flush(&mut tier);
    assert_eq!(tier.pending_bytes(), 0);
    // A record that is larger than the queue goes alone.
    write(&mut tier, &span(1, 3, 3, 100_000));
}

#[test]
fn a_write_that_waits_for_room_goes_on_when_there_is_some() {
    let directory = tempfile::tempdir().unwrap();
    let (files, mut tier) = gated(DiskConfig {
        queue_bytes_max: 3000,
        queue_wait_max: LONG,
        ..config(directory.path())
    });
    write(&mut tier, &span(1, 3, 3, 2000));
    std::thread::scope(|scope| {
        scope.spawn(|| files.heal());
        write(&mut tier, &span(1, 6, 3, 2000));
    });
    assert_eq!(flush(&mut tier).len(), 2);
}

#[test]
fn a_write_that_waits_for_room_learns_that_the_disk_has_failed() {
    let directory = tempfile::tempdir().unwrap();
    let (files, mut tier) = gated(DiskConfig {
        queue_bytes_max: 3000,
        queue_wait_max: LONG,
        retry_after: LONG,
        ..config(directory.path())
    });
    files.fail(&[Op::Rename], Fault::Error(EIO));
    write(&mut tier, &span(1, 3, 3, 2000));
    std::thread::scope(|scope| {
        scope.spawn(|| files.heal_one(Op::Sync));
        let header = span(1, 6, 3, 2000);
        let error = tier.write(header.clone(), payload(&header)).unwrap_err();
        assert!(matches!(error, DiskError::Broken { .. }), "{error}");
    });
}

#[test]
fn of_the_manifests_that_wait_only_the_last_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let (files, mut tier) = gated(config(directory.path()));
    let named = |names: &[&str]| -> Vec<ManifestEntry> {
        let entry = |name: &&str| ManifestEntry {
            fingerprint: 1,
            instance: 0,
            salt: None,
            name: (*name).into(),
            tokens: vec![1, 2, 3],
            pinned: false,
            expires_unix_ms: None,
        };
        names.iter().map(entry).collect()
    };
    write(&mut tier, &span(1, 3, 3, 2000));
    let before = tier.pending_bytes();
    tier.write_manifest(&named(&["long", "longer", "longest"])).unwrap();
    tier.write_manifest(&named(&["last"])).unwrap();
    let waiting = tier.pending_bytes() - before;
    files.heal();
    flush(&mut tier);
    assert_eq!(tier.pending_bytes(), 0);
    assert_eq!(tier.read_manifest().unwrap(), named(&["last"]));
    let file = directory.path().join("snapshots.json");
    assert_eq!(std::fs::metadata(file).unwrap().len(), waiting);
}

#[test]
fn the_payload_is_held_once_and_let_go_when_it_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let (files, mut tier) = gated(config(directory.path()));
    let header = span(1, 3, 3, 2000);
    let pieces = payload(&header);
    tier.write(header, pieces.clone()).unwrap();
    assert!(pieces.iter().all(|piece| !piece.is_unique()));
    files.heal();
    flush(&mut tier);
    assert!(pieces.iter().all(|piece| piece.is_unique()));
}

#[test]
fn a_deadline_ends_the_waiting_and_not_the_work() {
    let directory = tempfile::tempdir().unwrap();
    let (files, mut tier) = gated(config(directory.path()));
    let header = span(1, 3, 3, 2000);
    let id = write(&mut tier, &header);
    let ticket = tier.read(id).unwrap();
    assert!(!tier.flush(Instant::now()));
    assert_eq!(tier.wait(ticket, Instant::now()), None);
    assert_eq!(tier.poll(), None);
    files.heal();
    assert!(tier.flush(Instant::now() + LONG));
    assert_eq!(tier.poll(), Some(Completion::Written { id }));
    let payload = tier.wait(ticket, Instant::now() + LONG).unwrap().unwrap();
    assert_eq!(payload[..], whole(&self::payload(&header)));
    assert_eq!(tier.wait(ticket, Instant::now() + LONG), None, "it was handed out");
    assert_eq!(tier.poll(), None);
}

#[test]
fn reads_that_nobody_polls_are_bounded_by_their_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let config = DiskConfig { read_bytes_max: 3000, ..config(directory.path()) };
    let mut tier = DiskTier::open(config, nobody()).unwrap();
    let header = span(1, 3, 3, 2000);
    let id = write(&mut tier, &header);
    let large = write(&mut tier, &span(1, 6, 3, 50_000));
    let first = tier.read(id).unwrap();
    let (most, found) = (3000, 2000);
    assert_eq!(tier.read(id), Err(DiskError::QueueFull { most, found, unit: "bytes read" }));
    assert!(tier.wait(first, Instant::now() + LONG).unwrap().is_ok());
    assert_eq!(read(&mut tier, large).unwrap().len(), 50_000);
}

#[test]
fn the_owner_is_told_of_every_operation_that_is_done() {
    let directory = tempfile::tempdir().unwrap();
    let told = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&told);
    let notify = Arc::new(move || {
        count.fetch_add(1, Ordering::SeqCst);
    });
    let mut tier = DiskTier::open(config(directory.path()), notify).unwrap();
    let id = write(&mut tier, &span(1, 3, 3, 10));
    tier.read(id).unwrap();
    tier.remove(id);
    assert_eq!(flush(&mut tier).len(), 2);
    drop(tier);
    assert_eq!(told.load(Ordering::SeqCst), 3);
}

#[test]
fn dropping_the_tier_ends_after_the_operation_under_way_and_drops_what_waits() {
    let directory = tempfile::tempdir().unwrap();
    let (files, mut tier) = gated(config(directory.path()));
    for end in 3..9 {
        write(&mut tier, &span(1, end, 3, 2000));
    }
    std::thread::scope(|scope| {
        scope.spawn(|| files.heal());
        drop(tier);
    });
    let mut tier = open(directory.path());
    assert_eq!(tier.counters().temporary, 0);
    let found = everything(&mut tier);
    for (place, (id, header, payload)) in found.iter().enumerate() {
        assert_eq!(id.to_string(), format!("{place:016x}"), "they were written in order");
        assert_eq!(payload.as_ref().unwrap(), &whole(&self::payload(header)));
    }
}
