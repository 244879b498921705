//! What a tier promises on a disk that works.

use std::collections::HashSet;
use std::fs::{self, File};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::faulty::FaultyFiles;
use super::support::*;
use crate::disk::{
    BLOCK_BYTES, Completion, DiskConfig, DiskError, DiskTier, HEAD_BYTES_MAX, ManifestEntry,
    RecordHeader, RecordId,
};

#[test]
fn a_record_is_found_again_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let (header, below) = (span(7, 130, 130, 10_000), point(7, 130, 300));
    let ids = {
        let mut tier = open(directory.path());
        let ids = [write(&mut tier, &header), write(&mut tier, &below)];
        assert_eq!(read(&mut tier, ids[0]).unwrap(), whole(&payload(&header)));
        assert_eq!(flush(&mut tier), ids.map(|id| Completion::Written { id }));
        ids
    };
    let mut tier = open(directory.path());
    let found = everything(&mut tier);
    let expected = [(ids[0], header), (ids[1], below)]
        .map(|(id, header)| (id, header.clone(), Ok(whole(&payload(&header)))));
    assert_eq!(found, expected);
    // Its number is not given again.
    assert!(write(&mut tier, &span(7, 1, 1, 1)) > ids[1]);
}

#[test]
fn only_the_owner_may_read_what_was_asked_of_a_model() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("cache");
    let mut tier = open(&root);
    write(&mut tier, &span(1, 5, 5, 10));
    flush(&mut tier);
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&root), 0o700);
    assert_eq!(mode(&root.join("records")), 0o700);
    assert_eq!(mode(&root.join("records").join("0000000000000000.record")), 0o600);
}

#[test]
fn records_are_visited_by_instance_salt_and_start_and_only_those_of_one_model() {
    let directory = tempfile::tempdir().unwrap();
    let salted = |salt: &str, end| RecordHeader { salt: Some(salt.into()), ..span(5, end, end, 9) };
    let ordered = [
        span(5, 64, 64, 1),
        span(5, 128, 64, 2),
        point(5, 100, 6),
        span(5, 200, 72, 4),
        point(5, 128, 3),
        salted("a", 70),
        salted("b", 10),
        RecordHeader { instance: 1, ..span(5, 30, 30, 5) },
    ];
    {
        let mut tier = open(directory.path());
        for place in [4, 2, 6, 0, 5, 3, 7, 1] {
            write(&mut tier, &ordered[place]);
            write(&mut tier, &span(6, place as u32 + 1, 1, 7));
        }
        flush(&mut tier);
    }
    let mut tier = open(directory.path());
    let written_now = write(&mut tier, &span(5, 3, 3, 1));
    flush(&mut tier);
    let mut visited = Vec::new();
    tier.scan(5, &mut |id, header| visited.push((id, header)));
    assert!(visited.iter().all(|(id, _)| *id < written_now));
    assert_eq!(visited.into_iter().map(|(_, header)| header).collect::<Vec<_>>(), ordered);
    assert_eq!(tier.fingerprints()[&6], (8, 8 * BLOCK_BYTES));
}

#[test]
fn opening_reads_the_heads_alone_and_a_scan_the_tokens_of_one_model() {
    let directory = tempfile::tempdir().unwrap();
    let records = 10;
    {
        let mut tier = open(directory.path());
        for end in 0..records {
            write(&mut tier, &span(u64::from(end % 2), 20_000 + end, 1, 100_000));
        }
        flush(&mut tier);
    }
    let files = FaultyFiles::default();
    let config = config(directory.path());
    let mut tier = DiskTier::open_with(Arc::new(files.clone()), config, nobody()).unwrap();
    let opened = files.read_bytes();
    assert!(opened <= records as usize * HEAD_BYTES_MAX, "{opened} bytes");
    let mut visited = 0;
    tier.scan(1, &mut |_, _| visited += 1);
    assert_eq!(visited, records / 2);
    let scanned = files.read_bytes() - opened;
    assert!(scanned <= visited as usize * (4 * 20_010 + HEAD_BYTES_MAX), "{scanned} bytes");
}

#[test]
fn the_bytes_of_the_tier_are_the_blocks_of_its_files() {
    let directory = tempfile::tempdir().unwrap();
    let headers = [span(1, 1000, 1, 1), span(1, 3, 3, 4096), point(2, 2000, 50_000)];
    let on_disk = || -> u64 {
        let files = fs::read_dir(directory.path().join("records")).unwrap();
        let lengths = files.map(|file| file.unwrap().metadata().unwrap().len());
        lengths.map(|length| length.next_multiple_of(BLOCK_BYTES)).sum()
    };
    let mut tier = open(directory.path());
    let ids = headers.each_ref().map(|header| write(&mut tier, header));
    flush(&mut tier);
    let bytes: Vec<u64> = headers.iter().map(DiskTier::file_bytes).collect();
    assert_eq!(bytes, [2 * BLOCK_BYTES, 2 * BLOCK_BYTES, 15 * BLOCK_BYTES]);
    assert_eq!((tier.status().bytes, on_disk()), (bytes.iter().sum(), bytes.iter().sum()));
    tier.remove(ids[2]);
    tier.remove(ids[2]);
    assert_eq!(tier.status().bytes, 4 * BLOCK_BYTES);
    flush(&mut tier);
    assert_eq!(on_disk(), 4 * BLOCK_BYTES);
    assert_eq!(tier.counters().removed, 1);
    drop(tier);
    assert_eq!(open(directory.path()).status().bytes, 4 * BLOCK_BYTES);
}

#[test]
fn a_record_that_does_not_fit_is_refused_until_another_goes() {
    let directory = tempfile::tempdir().unwrap();
    let config = DiskConfig { bytes_max: 3 * BLOCK_BYTES, ..config(directory.path()) };
    let mut tier = DiskTier::open(config, nobody()).unwrap();
    let (small, large) = (span(1, 3, 3, 10), span(1, 6, 3, 5000));
    let first = write(&mut tier, &small);
    write(&mut tier, &small);
    let error = tier.write(large.clone(), payload(&large)).unwrap_err();
    let (wanted, free, budget) = (2 * BLOCK_BYTES, BLOCK_BYTES, 3 * BLOCK_BYTES);
    assert_eq!(error, DiskError::Full { wanted, free, budget });
    tier.remove(first);
    let id = write(&mut tier, &large);
    assert_eq!(read(&mut tier, id).unwrap(), whole(&payload(&large)));
    assert_eq!(tier.status().bytes, budget);
}

#[test]
fn operations_are_done_in_the_order_in_which_they_were_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let mut tier = open(directory.path());
    let header = span(1, 70, 70, 1000);
    let id = write(&mut tier, &header);
    let ticket = tier.read(id).unwrap();
    tier.remove(id);
    assert_eq!(tier.read(id), Err(DiskError::Unknown { id: 0 }));
    let expected = whole(&payload(&header)).into();
    let read = Completion::Read { ticket, id, result: Ok(expected) };
    assert_eq!(flush(&mut tier), [Completion::Written { id }, read]);
    assert_eq!(names(directory.path()), ["lock"]);
}

#[test]
fn a_second_server_on_the_same_directory_is_refused_by_name_of_the_first() {
    let directory = tempfile::tempdir().unwrap();
    let first = open(directory.path());
    let error = DiskTier::open(config(directory.path()), nobody()).unwrap_err();
    let holder = format!("process {}", std::process::id());
    assert_eq!(error, DiskError::Locked { path: directory.path().into(), holder });
    drop(first);
    open(directory.path());
}

#[test]
fn what_a_killed_process_left_is_removed_and_what_is_not_ours_stays() {
    let directory = tempfile::tempdir().unwrap();
    let header = span(1, 3, 3, 10);
    {
        let mut tier = open(directory.path());
        write(&mut tier, &header);
        flush(&mut tier);
    }
    let records = directory.path().join("records");
    fs::write(records.join("0000000000000007.tmp"), b"half").unwrap();
    fs::write(directory.path().join("snapshots.tmp"), b"half").unwrap();
    let theirs = ["notes.tmp", "7.record", "FFFFFFFFFFFFFFFF.record", "ffffffffffffffff.record"];
    for name in theirs {
        fs::write(records.join(name), b"not ours").unwrap();
    }
    let mut tier = open(directory.path());
    assert_eq!(tier.counters().temporary, 2);
    assert_eq!(everything(&mut tier).len(), 1);
    let mut expected = vec!["0000000000000000.record", "lock"];
    expected.extend(theirs);
    expected.sort();
    assert_eq!(names(directory.path()), expected);
    assert_eq!(tier.status().bytes, BLOCK_BYTES);
}

#[test]
fn a_smaller_budget_than_before_keeps_the_newest_records() {
    let directory = tempfile::tempdir().unwrap();
    let ids = {
        let mut tier = open(directory.path());
        let ids = [(); 5].map(|()| write(&mut tier, &span(1, 3, 3, 10)));
        flush(&mut tier);
        age(directory.path(), &[ids[4], ids[1], ids[0], ids[3], ids[2]]);
        ids
    };
    let config = DiskConfig { bytes_max: 2 * BLOCK_BYTES + 1, ..config(directory.path()) };
    let mut tier = DiskTier::open(config, nobody()).unwrap();
    flush(&mut tier);
    let kept: Vec<RecordId> = everything(&mut tier).into_iter().map(|(id, ..)| id).collect();
    assert_eq!(kept, [ids[2], ids[3]]);
    assert_eq!(names(directory.path()).len(), 3);
}

/// Makes the records look as if they were written on day 0, 1, 2, ...
fn age(directory: &std::path::Path, ids: &[RecordId]) {
    for (day, id) in ids.iter().enumerate() {
        let file = File::options()
            .write(true)
            .open(directory.join("records").join(format!("{id}.record")))
            .unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(86_400 * (day as u64 + 1));
        file.set_modified(time).unwrap();
    }
}

#[test]
fn records_of_models_that_nobody_opened_go_first_and_the_oldest_before_all() {
    let directory = tempfile::tempdir().unwrap();
    {
        let mut tier = open(directory.path());
        let ids = [1, 2, 3, 4, 1].map(|model| write(&mut tier, &span(model, 3, 3, 10)));
        flush(&mut tier);
        age(directory.path(), &[ids[3], ids[0], ids[2], ids[1], ids[4]]);
    }
    let mut tier = open(directory.path());
    let keep = HashSet::from([1]);
    assert_eq!(tier.foreign_bytes(&keep), 3 * BLOCK_BYTES);
    assert_eq!(tier.remove_oldest_foreign(0, &keep), 0);
    assert_eq!(tier.remove_oldest_foreign(BLOCK_BYTES + 1, &keep), 2 * BLOCK_BYTES);
    // The oldest of all was of model 4, the next that is not of model 1 of model 3.
    assert_eq!(tier.fingerprints().into_keys().collect::<Vec<_>>(), [1, 2]);
    assert_eq!(tier.remove_oldest_foreign(u64::MAX, &keep), BLOCK_BYTES);
    assert_eq!(tier.remove_oldest_foreign(u64::MAX, &keep), 0);
    flush(&mut tier);
    assert_eq!(everything(&mut tier).len(), 2);
    assert_eq!(names(directory.path()).len(), 3);
}

#[test]
fn a_record_of_another_version_stays_and_counts_until_the_room_is_needed() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("records")).unwrap();
    let path = directory.path().join("records").join("0000000000000003.record");
    let mut bytes = b"\x89sconce\n\x02\0".to_vec();
    bytes.resize(5000, 1);
    fs::write(&path, bytes).unwrap();
    let mut tier = open(directory.path());
    assert_eq!(everything(&mut tier), []);
    assert_eq!((tier.counters().other_version, tier.counters().refused), (1, 0));
    assert_eq!((tier.status().records, tier.status().bytes), (0, 2 * BLOCK_BYTES));
    assert!(path.exists());
    assert_eq!(tier.remove_oldest_foreign(1, &HashSet::new()), 2 * BLOCK_BYTES);
    flush(&mut tier);
    assert!(!path.exists());
}

fn snapshot(name: &str, tokens: std::ops::Range<u32>) -> ManifestEntry {
    ManifestEntry {
        fingerprint: u64::MAX,
        instance: 1,
        salt: Some("tenant".into()),
        name: name.into(),
        tokens: tokens.collect(),
        pinned: true,
        expires_unix_ms: Some(1_800_000_000_000),
    }
}

#[test]
fn whoever_looks_learns_who_has_the_directory_and_takes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let holder = || crate::disk::holder(directory.path()).unwrap();
    assert_eq!(holder(), None);
    let files = fs::read_dir(directory.path()).unwrap().count();
    assert_eq!(files, 0, "looking makes no file");
    let tier = open(directory.path());
    assert_eq!(holder(), Some(format!("process {}", std::process::id())));
    drop(tier);
    assert_eq!(holder(), None);
    drop(open(directory.path()));
}

#[test]
fn the_names_of_snapshots_outlive_the_server_and_the_last_ones_count() {
    let directory = tempfile::tempdir().unwrap();
    let named = [snapshot("a \"quoted\" name", 0..5), snapshot("b", 0..1)];
    {
        let mut tier = open(directory.path());
        assert_eq!(tier.read_manifest(), Ok(Vec::new()));
        tier.write_manifest(&named[..1]).unwrap();
        tier.write_manifest(&named).unwrap();
        flush(&mut tier);
    }
    let mut tier = open(directory.path());
    assert_eq!(tier.read_manifest().unwrap(), named);
    tier.write_manifest(&[]).unwrap();
    flush(&mut tier);
    assert_eq!(tier.read_manifest(), Ok(Vec::new()));
    assert_eq!(names(directory.path()), ["lock", "snapshots.json"]);
}

#[test]
fn a_manifest_with_a_flipped_bit_or_a_lost_end_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let named = [snapshot("a", 0..20)];
    let mut tier = open(directory.path());
    tier.write_manifest(&named).unwrap();
    flush(&mut tier);
    let path = directory.path().join("snapshots.json");
    let bytes = fs::read(&path).unwrap();
    let refused = |damaged: &[u8]| {
        fs::write(&path, damaged).unwrap();
        match tier.read_manifest() {
            Err(DiskError::Manifest { reason, .. }) => reason,
            other => panic!("{other:?} from {}", String::from_utf8_lossy(damaged)),
        }
    };
    for place in 0..bytes.len() {
        for bit in [0, 4] {
            let mut damaged = bytes.clone();
            damaged[place] ^= 1 << bit;
            refused(&damaged);
        }
        refused(&bytes[..place]);
    }
    let text = String::from_utf8(bytes).unwrap();
    let version = refused(text.replace("\"version\":1", "\"version\":2").as_bytes());
    assert_eq!(version, "version: expected 1, found 2");
    let checksum = refused(text.replace("[0,1,", "[1,1,").as_bytes());
    assert!(checksum.starts_with("checksum: expected "), "{checksum}");
}
