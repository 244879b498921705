//! A server that is killed while it writes: whatever the moment, what is found again is whole.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use super::support::*;
use crate::disk::{Completion, DiskConfig, DiskTier, RecordHeader, RecordId};

/// Names the directory to a child process.
const DIRECTORY: &str = "SCONCE_TEST_KILLED_DIRECTORY";
const ROUNDS: usize = 20;
/// Most lines of a child before it is killed.
const LINES_MAX: u64 = 24;
/// Records that a child leaves in place.
const KEPT: usize = 12;

#[test]
fn whatever_the_moment_of_a_kill_what_is_found_again_is_whole() {
    let directory = tempfile::tempdir().unwrap();
    let mut promised = BTreeMap::new();
    for round in 0..ROUNDS {
        let lines = 1 + RandomState::new().hash_one(round) % LINES_MAX;
        run_and_kill(directory.path(), lines, &mut promised);
        // No other than the killed process had the lock, and it is free.
        let mut tier = open(directory.path());
        let found = everything(&mut tier);
        for (id, header, read) in &found {
            assert_eq!(read.as_ref().unwrap(), &whole(&payload(header)), "record {id}");
        }
        assert_eq!(tier.counters().refused, 0, "a record was half there after {lines} lines");
        let found: Vec<String> = found.iter().map(|(id, ..)| id.to_string()).collect();
        for (id, there) in &promised {
            assert!(!there || found.contains(id), "{id} was written and is not there");
        }
        promised.retain(|id, _| found.contains(id));
        let records = found.iter().map(|id| format!("{id}.record"));
        let mut expected: Vec<String> = records.chain(["lock".into()]).collect();
        expected.sort();
        assert_eq!(names(directory.path()), expected);
    }
    assert!(!promised.is_empty());
}

/// Runs a child until it has told of so many records, then kills it. `promised` tells of each record
/// whether it must be there.
fn run_and_kill(directory: &Path, lines: u64, promised: &mut BTreeMap<String, bool>) {
    let name = "disk::tests::kill::child_that_writes_until_it_is_killed";
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--ignored", "--nocapture"])
        .env(DIRECTORY, directory)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut left = lines;
    let mut killed = false;
    // What it has said before it died counts, up to the last whole line.
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        match line.split_once(' ') {
            Some(("written", id)) => {
                promised.insert(id.into(), true);
                left = left.saturating_sub(1);
            }
            Some(("removing", id)) => {
                promised.insert(id.into(), false);
            }
            _ => {}
        }
        if left == 0 && !killed {
            child.kill().unwrap();
            killed = true;
        }
    }
    let status = child.wait().unwrap();
    assert!(killed && status.code().is_none(), "it ended by itself: {status}");
}

#[test]
#[ignore = "runs in a process of its own, started by the test above"]
fn child_that_writes_until_it_is_killed() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    // Little fits the queue, so that there is a write under way at every moment and a few wait.
    let config = DiskConfig {
        queue_bytes_max: 250_000,
        queue_wait_max: LONG,
        ..config(Path::new(&directory))
    };
    let mut tier = DiskTier::open(config, nobody()).unwrap();
    let mut there: Vec<RecordId> = everything(&mut tier).into_iter().map(|(id, ..)| id).collect();
    let records: Vec<_> = (0..21).map(header).map(|one| (payload(&one), one)).collect();
    let mut say = std::io::stdout();
    let mut say = |word: &str, id: RecordId| writeln!(say, "{word} {id}").unwrap();
    for (payload, header) in records.iter().cycle().take(1_000_000) {
        tier.write(header.clone(), payload.clone()).unwrap();
        while let Some(done) = tier.poll() {
            let Completion::Written { id } = done else { panic!("{done:?}") };
            there.push(id);
            say("written", id);
        }
        while there.len() > KEPT {
            let oldest = there.remove(0);
            say("removing", oldest);
            tier.remove(oldest);
        }
    }
}

/// Of all sizes, so that a kill meets the middle of a write as well as its end.
fn header(turn: u32) -> RecordHeader {
    let end = 1 + turn % 500;
    let payload_bytes = u64::from(turn % 7) * 20_000 + 1;
    let model = u64::from(turn % 4);
    if turn.is_multiple_of(3) {
        point(model, end, payload_bytes)
    } else {
        span(model, end, 1, payload_bytes)
    }
}
