//! A disk that fails: what is refused, what goes on, what is said, and what is never returned.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::faulty::{EACCES, EIO, ENOSPC, EROFS, Fault, FaultyFiles, Op};
use super::support::*;
use crate::disk::{
    BLOCK_BYTES, Completion, DiskConfig, DiskError, DiskTier, RecordFault, RecordHeader, RecordId,
};

fn faulty(config: DiskConfig) -> (FaultyFiles, DiskTier) {
    let files = FaultyFiles::default();
    let tier = DiskTier::open_with(Arc::new(files.clone()), config, nobody()).unwrap();
    (files, tier)
}

fn errors(completions: Vec<Completion>) -> Vec<(RecordId, DiskError)> {
    let failed = completions.into_iter().map(|completion| match completion {
        Completion::WriteFailed { id, error } => (id, error),
        other => panic!("expected a failed write, found {other:?}"),
    });
    failed.collect()
}

#[test]
fn a_write_that_fails_anywhere_leaves_nothing_and_reads_go_on() {
    for op in Op::WRITING {
        for number in [ENOSPC, EIO, EROFS, EACCES] {
            let directory = tempfile::tempdir().unwrap();
            let (files, mut tier) = faulty(config(directory.path()));
            let fine = span(1, 3, 3, 5000);
            let id = write(&mut tier, &fine);
            flush(&mut tier);
            let bytes = tier.status().bytes;

            files.fail(&[op], Fault::Error(number));
            let failed = write(&mut tier, &span(1, 6, 3, 700));
            let completions = errors(flush(&mut tier));
            assert_eq!(completions.len(), 1);
            assert_eq!(completions[0].0, failed);
            let kind = std::io::Error::from_raw_os_error(number).kind();
            let DiskError::Io { kind: found, .. } = &completions[0].1 else {
                panic!("{op:?}: {}", completions[0].1);
            };
            assert_eq!(*found, kind);
            assert_eq!(tier.read(failed), Err(DiskError::Unknown { id: failed.0 }));
            assert_eq!(tier.status().bytes, bytes);
            assert_eq!(names(directory.path()), ["0000000000000000.record", "lock"], "{op:?}");
            assert_eq!(read(&mut tier, id).unwrap(), whole(&payload(&fine)));

            files.heal();
            let again = write(&mut tier, &span(1, 6, 3, 700));
            assert_eq!(flush(&mut tier), [Completion::Written { id: again }]);
            assert_eq!(tier.status().broken, None);
            assert_eq!(tier.counters().breaks, 1);
        }
    }
}

#[test]
fn a_tier_that_cannot_write_says_so_once_and_refuses_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let log = Log::default();
    let _log = log.listen();
    let later = DiskConfig { retry_after: Duration::from_secs(3600), ..config(directory.path()) };
    let (files, mut tier) = faulty(later);
    files.fail(&[Op::Write], Fault::Error(ENOSPC));
    files.fail(&[Op::Create], Fault::Gate);
    let header = span(1, 3, 3, 10);
    // These are queued before the first has failed.
    let ids = [(); 3].map(|()| write(&mut tier, &header));
    files.heal_one(Op::Create);
    let failed = errors(flush(&mut tier));
    assert_eq!(failed.iter().map(|(id, _)| *id).collect::<Vec<_>>(), ids);
    assert!(matches!(failed[0].1, DiskError::Io { .. }), "{}", failed[0].1);
    for (_, error) in &failed[1..] {
        assert_eq!(*error, DiskError::Broken { cause: failed[0].1.to_string() });
    }
    files.heal();
    for _ in 0..5 {
        let refused = tier.write(header.clone(), payload(&header)).unwrap_err();
        assert_eq!(refused, DiskError::Broken { cause: failed[0].1.to_string() });
        assert!(matches!(tier.write_manifest(&[]), Err(DiskError::Broken { .. })));
    }
    assert_eq!(tier.status().broken, Some(failed[0].1.to_string()));
    let lines = log.lines("not writing");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("cannot write ") && lines[0].contains("3600s"), "{lines:?}");
}

#[test]
fn a_disk_that_stays_full_is_told_once_however_often_it_is_tried() {
    let directory = tempfile::tempdir().unwrap();
    let log = Log::default();
    let _log = log.listen();
    let (files, mut tier) = faulty(config(directory.path()));
    files.fail(&[Op::Write], Fault::FullAfter(2000));
    let fits = write(&mut tier, &span(1, 3, 3, 500));
    assert_eq!(flush(&mut tier), [Completion::Written { id: fits }]);
    for _ in 0..5 {
        write(&mut tier, &span(1, 3, 3, 5000));
        assert_eq!(errors(flush(&mut tier)).len(), 1);
    }
    assert_eq!(log.lines("not writing").len(), 1);
    assert_eq!(names(directory.path()), ["0000000000000000.record", "lock"]);
    files.heal();
    write(&mut tier, &span(1, 3, 3, 5000));
    flush(&mut tier);
    assert_eq!(log.lines("writing again").len(), 1);
    assert_eq!(tier.counters().write_failures, 5);
}

#[test]
fn short_and_interrupted_reads_and_writes_are_whole_in_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let (files, mut tier) = faulty(config(directory.path()));
    files.fail(&[Op::Write, Op::Read], Fault::Short(7));
    let header = span(1, 50, 50, 3000);
    let id = write(&mut tier, &header);
    assert_eq!(flush(&mut tier), [Completion::Written { id }]);
    assert_eq!(read(&mut tier, id).unwrap(), whole(&payload(&header)));
    drop(tier);
    let config = config(directory.path());
    let mut tier = DiskTier::open_with(Arc::new(files), config, nobody()).unwrap();
    assert_eq!(everything(&mut tier), [(id, header.clone(), Ok(whole(&payload(&header))))]);
}

#[test]
fn a_disk_that_cannot_be_read_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let header = span(1, 50, 50, 3000);
    for op in [Op::Open, Op::Read] {
        let (files, mut tier) = faulty(config(directory.path()));
        let id = write(&mut tier, &header);
        files.fail(&[op], Fault::Error(EIO));
        let error = read(&mut tier, id).unwrap_err();
        assert!(!error.is_lost(), "{error}");
        assert_eq!(tier.counters().read_failures, 1);
        files.heal();
        assert_eq!(read(&mut tier, id).unwrap(), whole(&payload(&header)));
        tier.remove(id);
        flush(&mut tier);
    }
}

#[test]
fn a_disk_that_cannot_be_read_at_the_start_keeps_its_records_and_their_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let files = {
        let (files, mut tier) = faulty(config(directory.path()));
        write(&mut tier, &span(1, 3, 3, 10));
        flush(&mut tier);
        files
    };
    let open = || DiskTier::open_with(Arc::new(files.clone()), config(directory.path()), nobody());
    files.fail(&[Op::Read], Fault::Error(EIO));
    let mut tier = open().unwrap();
    assert_eq!((tier.status().records, tier.status().bytes), (0, BLOCK_BYTES));
    assert_eq!(everything(&mut tier), []);
    drop(tier);
    files.fail(&[Op::List], Fault::Error(EIO));
    let error = open().unwrap_err().to_string();
    assert!(error.starts_with("cannot list directory "), "{error}");
    files.heal();
    assert_eq!(everything(&mut open().unwrap()).len(), 1);
}

#[test]
fn a_read_only_disk_is_opened_for_reading() {
    let directory = tempfile::tempdir().unwrap();
    let header = span(1, 3, 3, 10);
    {
        let mut tier = open(directory.path());
        write(&mut tier, &header);
        flush(&mut tier);
    }
    let files = FaultyFiles::default();
    files.fail(&Op::CHANGING, Fault::Error(EROFS));
    let later = DiskConfig { retry_after: Duration::from_secs(3600), ..config(directory.path()) };
    let mut tier = DiskTier::open_with(Arc::new(files.clone()), later, nobody()).unwrap();
    assert_eq!(everything(&mut tier)[0].2, Ok(whole(&payload(&header))));
    let error = tier.write(header.clone(), payload(&header)).unwrap_err();
    assert!(matches!(error, DiskError::Broken { .. }), "{error}");
    drop(tier);
    // Nothing is there yet, and nothing can be made.
    let nowhere = config(&directory.path().join("none"));
    let error = DiskTier::open_with(Arc::new(files), nowhere, nobody()).unwrap_err().to_string();
    assert!(error.starts_with("cannot create directory "), "{error}");
}

#[test]
fn a_record_that_cannot_be_removed_counts_on() {
    let directory = tempfile::tempdir().unwrap();
    let (files, mut tier) = faulty(config(directory.path()));
    let id = write(&mut tier, &span(1, 3, 3, 10));
    flush(&mut tier);
    files.fail(&[Op::Remove], Fault::Error(EROFS));
    tier.remove(id);
    flush(&mut tier);
    assert_eq!((tier.status().records, tier.status().bytes), (0, BLOCK_BYTES));
    // So does a write of which something is left.
    files.fail(&[Op::Sync], Fault::Error(EIO));
    write(&mut tier, &span(1, 3, 3, 10));
    assert_eq!(errors(flush(&mut tier)).len(), 1);
    assert_eq!((tier.status().records, tier.status().bytes), (0, 2 * BLOCK_BYTES));
    files.heal();
    let keep = std::collections::HashSet::from([1]);
    assert_eq!(tier.remove_oldest_foreign(u64::MAX, &keep), 2 * BLOCK_BYTES);
    flush(&mut tier);
    assert_eq!(tier.status().bytes, 0);
    assert_eq!(names(directory.path()), ["lock"]);
}

#[test]
fn a_panic_of_the_thread_breaks_the_tier_and_nothing_else() {
    let log = Log::default();
    let _log = log.listen();
    for op in [Op::Write, Op::Read, Op::Remove] {
        let directory = tempfile::tempdir().unwrap();
        let (files, mut tier) = faulty(config(directory.path()));
        let header = span(1, 3, 3, 10);
        let id = write(&mut tier, &header);
        let other = write(&mut tier, &header);
        flush(&mut tier);
        files.fail(&[op], Fault::Panic);
        let write = tier.write(header.clone(), payload(&header));
        let read = tier.read(id);
        tier.remove(other);
        assert!(!tier.flush(Instant::now() + LONG), "{op:?}");
        if let Ok(ticket) = read {
            let result = tier.wait(ticket, Instant::now() + LONG).unwrap();
            assert_eq!(result.is_ok(), op == Op::Remove, "{op:?}: {result:?}");
        }
        if let Ok(id) = write {
            let expected = Completion::Written { id };
            assert_eq!(tier.poll() == Some(expected), op != Op::Write, "{op:?}");
        }
        let error = tier.write(header.clone(), payload(&header)).unwrap_err();
        let cause = format!("the I/O thread panicked: a bug in {op:?}");
        assert_eq!(error, DiskError::Stopped { cause: cause.clone() });
        assert_eq!(tier.read(id), Err(DiskError::Stopped { cause: cause.clone() }));
        assert_eq!(tier.status().broken, Some(error.to_string()));
        tier.remove(id);
        assert_eq!(log.lines(&cause).len(), 1);
    }
}

#[test]
fn a_panic_of_the_callback_breaks_the_tier_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let notify = Arc::new(|| panic!("nobody listens"));
    let mut tier = DiskTier::open(config(directory.path()), notify).unwrap();
    let id = write(&mut tier, &span(1, 3, 3, 10));
    tier.flush(Instant::now() + LONG);
    assert_eq!(tier.poll(), Some(Completion::Written { id }));
    // Whether or not the thread has come to its end by now, it does nothing more.
    let result = tier.read(id).and_then(|ticket| {
        let payload = tier.wait(ticket, Instant::now() + LONG).unwrap();
        payload.map(|_| ())
    });
    let cause = "the I/O thread panicked: nobody listens".into();
    assert_eq!(result, Err(DiskError::Stopped { cause }));
}

#[test]
fn a_directory_that_vanishes_loses_its_records_and_is_made_anew() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("cache");
    let mut tier = open(&root);
    let header = span(1, 3, 3, 10);
    let id = write(&mut tier, &header);
    flush(&mut tier);
    fs::remove_dir_all(&root).unwrap();
    let path = root.join("records").join(format!("{id}.record"));
    let lost = DiskError::Record { path, fault: RecordFault::Missing };
    assert_eq!(read(&mut tier, id), Err(lost));
    assert_eq!((tier.status().records, tier.status().bytes), (0, 0));
    write(&mut tier, &header);
    assert_eq!(errors(flush(&mut tier)).len(), 1);
    let id = write(&mut tier, &header);
    assert_eq!(flush(&mut tier), [Completion::Written { id }]);
    // And it is ours.
    let error = DiskTier::open(config(&root), nobody()).unwrap_err();
    assert!(matches!(error, DiskError::Locked { .. }), "{error}");
}

#[test]
fn a_directory_that_became_that_of_another_server_is_left_to_it() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("cache");
    let (ours, theirs) = (span(1, 3, 3, 10), span(2, 3, 3, 10));
    let mut first = open(&root);
    let id = write(&mut first, &ours);
    flush(&mut first);
    fs::rename(&root, directory.path().join("away")).unwrap();
    let mut second = open(&root);
    assert_eq!(write(&mut second, &theirs), id);
    flush(&mut second);
    let error = read(&mut first, id).unwrap_err();
    assert!(
        matches!(&error, DiskError::Record { fault: RecordFault::Replaced { .. }, .. }),
        "{error}"
    );
    assert_eq!(first.status().bytes, 0);
    assert_eq!(read(&mut second, id).unwrap(), whole(&payload(&theirs)));
}

/// A tier of one record, closed, whose file was changed.
fn damaged(header: &RecordHeader, damage: impl FnOnce(&mut Vec<u8>)) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    {
        let mut tier = open(directory.path());
        write(&mut tier, header);
        flush(&mut tier);
    }
    let path = directory.path().join("records").join("0000000000000000.record");
    let mut bytes = fs::read(&path).unwrap();
    damage(&mut bytes);
    fs::write(&path, bytes).unwrap();
    directory
}

/// Opens, scans and reads; the record is either right, or it and its file are gone and counted.
fn is_right_or_gone(directory: &Path, header: &RecordHeader) -> bool {
    let mut tier = open(directory);
    let found = everything(&mut tier);
    let right = found.iter().filter(|(_, found, read)| {
        // What is returned is never wrong.
        read.as_ref().is_ok_and(|bytes| {
            assert_eq!((found, bytes), (header, &whole(&payload(header))));
            true
        })
    });
    let right = right.count() == 1;
    assert_eq!(tier.counters().refused, u64::from(!right));
    assert_eq!(tier.status().records, usize::from(right));
    assert_eq!(names(directory).len(), 1 + usize::from(right));
    right
}

#[test]
fn a_truncated_record_is_gone_wherever_it_ends() {
    let header = RecordHeader { salt: Some("salt".into()), ..span(3, 20, 7, 50) };
    let (head, tokens, payload) = (72 + 4 + 16, 80, 50);
    let ends = [0, 1, 8, 15, 16, 17, 71, 75, head - 1, head, head + 1, head + tokens - 1];
    let later = [head + tokens, head + tokens + 1, head + tokens + payload].map(|end| end..end + 1);
    let last = head + tokens + payload + 16;
    for end in ends.into_iter().chain(later.into_iter().flatten()).chain([last - 1]) {
        let directory = damaged(&header, |bytes| {
            assert_eq!(bytes.len(), last);
            bytes.truncate(end);
        });
        assert!(!is_right_or_gone(directory.path(), &header), "cut at {end}");
    }
    let directory = damaged(&header, |bytes| bytes.push(0));
    assert!(!is_right_or_gone(directory.path(), &header), "one byte more");
    let directory = damaged(&header, |_| {});
    assert!(is_right_or_gone(directory.path(), &header), "not damaged");
}

#[test]
fn a_refused_record_has_one_line_in_the_log_that_says_why() {
    let header = span(3, 20, 7, 50);
    let log = Log::default();
    let _log = log.listen();
    let directory = damaged(&header, |bytes| bytes[200] ^= 1);
    assert!(!is_right_or_gone(directory.path(), &header));
    let lines = log.lines("refused and removed");
    assert_eq!(lines.len(), 1, "{lines:?}");
    let file = "0000000000000000.record: checksum of the payload: expected ";
    assert!(lines[0].starts_with("WARN ") && lines[0].contains(file), "{lines:?}");
}

#[test]
fn damage_between_the_start_and_the_read_is_found_too() {
    let directory = tempfile::tempdir().unwrap();
    let mut tier = open(directory.path());
    let headers = [span(3, 20, 7, 50), span(3, 21, 7, 50)];
    let ids = headers.each_ref().map(|header| write(&mut tier, header));
    flush(&mut tier);
    let records = directory.path().join("records");
    // One record takes the place of the other: whole, and still the wrong one.
    fs::copy(
        records.join(format!("{}.record", ids[1])),
        records.join(format!("{}.record", ids[0])),
    )
    .unwrap();
    let error = read(&mut tier, ids[0]).unwrap_err();
    assert!(
        matches!(&error, DiskError::Record { fault: RecordFault::Replaced { .. }, .. }),
        "{error}"
    );
    assert_eq!(read(&mut tier, ids[1]).unwrap(), whole(&payload(&headers[1])));
    assert_eq!(tier.read(ids[0]), Err(DiskError::Unknown { id: 0 }));
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        cases: 100,
        ..ProptestConfig::default()
    })]

    #[test]
    fn flipped_bits_and_cut_ends_never_yield_wrong_bytes(
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0..8_u8), 0..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
        bytes in 0..300_u64,
    ) {
        let header = span(3, 20, 7, bytes);
        let mut same = false;
        let directory = damaged(&header, |bytes| {
            let before = bytes.clone();
            for (place, bit) in flips {
                let place = place.index(bytes.len());
                // Another version is none of ours to remove; that has its own test.
                if !(8..10).contains(&place) {
                    bytes[place] ^= 1 << bit;
                }
            }
            bytes.truncate(cut.map_or(bytes.len(), |cut| cut.index(bytes.len())));
            same = *bytes == before;
        });
        prop_assert_eq!(is_right_or_gone(directory.path(), &header), same);
    }
}
