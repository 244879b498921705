//! Disks that lose, change, refuse and mix up what was written: no wrong token, no failed request.

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use sconce_cache::Tier;
use sconce_cache::disk::{DecodeLimits, Decoder, RecordHeader, RecordKind, encode};
use sconce_models::Precision;

use crate::support::*;

const ON: u64 = u64::MAX;

/// An engine that keeps everything in files at once.
fn on_disk(fixture: &'static Fixture, directory: &Path) -> Setup {
    Setup::warm(fixture, Precision::Fast).limits(0, 0, ON).directory(directory)
}

/// Every record of a cache directory, in order of their names.
fn records(directory: &Path) -> Vec<PathBuf> {
    let Ok(folder) = fs::read_dir(directory.join("records")) else { return Vec::new() };
    let mut found: Vec<PathBuf> = folder
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "record"))
        .collect();
    found.sort();
    found
}

/// What can become of a file.
#[derive(Debug, Clone, Copy)]
enum Damage {
    FlipAnywhere,
    FlipInTheHead,
    FlipNearTheEnd,
    Truncate,
    Empty,
    Append,
    Remove,
    SwapWithAnother,
}

const DAMAGES: [Damage; 8] = [
    Damage::FlipAnywhere,
    Damage::FlipInTheHead,
    Damage::FlipNearTheEnd,
    Damage::Truncate,
    Damage::Empty,
    Damage::Append,
    Damage::Remove,
    Damage::SwapWithAnother,
];

impl Damage {
    /// Does it to the record `path`, one of `all`.
    fn inflict(self, path: &Path, all: &[PathBuf], random: &mut Random) {
        let mut bytes = fs::read(path).unwrap();
        let len = bytes.len();
        let mut flip = |at: usize| bytes[at] ^= 1 << random.below(8);
        match self {
            Self::FlipAnywhere => flip(len / 2),
            Self::FlipInTheHead => flip(17),
            Self::FlipNearTheEnd => flip(len - 20),
            Self::Truncate => bytes.truncate(len * 2 / 3),
            Self::Empty => bytes.clear(),
            Self::Append => bytes.extend([0; 100]),
            Self::Remove => return fs::remove_file(path).unwrap(),
            Self::SwapWithAnother => {
                let other = random.pick(all);
                let theirs = fs::read(other).unwrap();
                fs::write(other, &bytes).unwrap();
                bytes = theirs;
            }
        }
        fs::write(path, bytes).unwrap();
    }
}

/// Two prompts that part in the middle.
fn pair(server: &Server) -> [Ask; 2] {
    let prompt = long_prompt(server, 1);
    let mut other = prompt.clone();
    other[prompt.len() / 2] ^= 1;
    [Ask::new(&prompt), Ask::new(&other)]
}

#[tokio::test]
async fn records_that_were_damaged_while_no_engine_ran_are_computed_again() {
    for (fixture, share) in [(&QWEN3, 2), (&QWEN3_5, 2), (&QWEN3_5, 1)] {
        for (seed, damage) in DAMAGES.into_iter().enumerate() {
            let folder = tempfile::tempdir().unwrap();
            let mut random = Random::new(seed as u64);
            let setup = on_disk(fixture, folder.path());
            let first = setup.start().await;
            let asks = pair(&first);
            for ask in &asks {
                first.ask(ask).await;
            }
            first.end().await;
            let all = records(folder.path());
            assert!(all.len() >= 2, "{}: {all:?}", fixture.name);
            // Some of them, or all.
            for path in &all {
                if random.below(share) == 0 {
                    damage.inflict(path, &all, &mut random);
                }
            }
            let twins = Twins::start(&setup).await;
            let case = format!("{}, seed {seed}, {damage:?} of 1 in {share}", fixture.name);
            for ask in asks.iter().chain(&asks) {
                twins.ask(ask, &case).await;
            }
            // What was computed again is kept again.
            for ask in &asks {
                let report = twins.ask(ask, &case).await.report;
                assert!(report.recomputed <= repeat_max(fixture), "{case}: {report:?}");
            }
            twins.end().await;
        }
    }
}

#[tokio::test]
async fn records_that_are_damaged_while_the_engine_runs_are_computed_again() {
    for fixture in [&GEMMA3, &QWEN3_NEXT] {
        for (seed, damage) in DAMAGES.into_iter().enumerate() {
            let folder = tempfile::tempdir().unwrap();
            let mut random = Random::new(seed as u64);
            let twins = Twins::start(&on_disk(fixture, folder.path())).await;
            let case = format!("{}, seed {seed}, {damage:?}", fixture.name);
            let asks = pair(&twins.warm);
            for ask in &asks {
                twins.ask(ask, &case).await;
            }
            // A record is read after it was written, so all of those read now are whole.
            for ask in &asks {
                let report = twins.ask(ask, &case).await.report;
                assert_eq!(report.tier, Some(Tier::Disk), "{case}");
            }
            let all = records(folder.path());
            for path in &all {
                if random.below(3) > 0 {
                    damage.inflict(path, &all, &mut random);
                }
            }
            for ask in asks.iter().chain(&asks).chain(&asks) {
                twins.ask(ask, &case).await;
            }
            let report = twins.ask(&asks[0], &case).await.report;
            assert!(report.recomputed <= repeat_max(fixture), "{case}: {report:?}");
            twins.end().await;
        }
    }
}

#[tokio::test]
async fn a_full_disk_keeps_what_fits_and_refuses_the_rest() {
    for fixture in [&QWEN3, &QWEN3_5] {
        let folder = tempfile::tempdir().unwrap();
        let (page, point) = on_disk(fixture, folder.path()).sizes();
        // Nothing fits, then a little does: a record takes blocks of its own besides its pages.
        for limit in [4096, 4 * (page + 16_384) + 2 * (point + 16_384)] {
            let setup = on_disk(fixture, folder.path()).limits(0, 0, limit);
            let twins = Twins::start(&setup).await;
            let case = format!("{}, {limit} bytes", fixture.name);
            for ask in (0..3).chain(0..3).map(|i| Ask::new(&long_prompt(&twins.warm, i))) {
                twins.ask(&ask, &case).await;
            }
            twins.end().await;
            let sizes =
                records(folder.path()).into_iter().map(|path| fs::metadata(path).unwrap().len());
            let held: u64 = sizes.map(|len| len.next_multiple_of(4096)).sum();
            assert!(held <= limit, "{case}: {held} bytes in files");
        }
    }
}

#[tokio::test]
async fn a_directory_that_cannot_be_written_costs_no_request() {
    for fixture in [&QWEN3, &QWEN3_5] {
        let folder = tempfile::tempdir().unwrap();
        let setup = on_disk(fixture, folder.path());
        let first = setup.start().await;
        let asks = pair(&first);
        first.ask(&asks[0]).await;
        first.end().await;
        // Who may do anything, as the superuser, writes there all the same; the answers are right.
        let inner = folder.path().join("records");
        set_writable(&inner, false);
        set_writable(folder.path(), false);
        let twins = Twins::start(&setup).await;
        let report = twins.ask(&asks[0], fixture.name).await.report;
        assert_eq!(report.tier, Some(Tier::Disk), "what can be read is used: {report:?}");
        for ask in asks.iter().chain(&asks) {
            twins.ask(ask, fixture.name).await;
        }
        twins.end().await;
        set_writable(folder.path(), true);
        set_writable(&inner, true);
    }
}

fn set_writable(path: &Path, writable: bool) {
    use std::os::unix::fs::PermissionsExt;
    let mode = if writable { 0o755 } else { 0o555 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[tokio::test]
async fn a_directory_that_is_none_or_that_another_engine_uses_is_an_error_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "not a directory").unwrap();
    let used = folder.path().join("used");
    let owner = on_disk(&QWEN3, &used).start().await;
    for (directory, expected) in [(&file, "create directory"), (&used, "in use")] {
        let error = on_disk(&QWEN3, directory).refused();
        assert!(error.contains(expected), "{error}");
    }
    // The owner was not disturbed.
    let ask = Ask::new(&long_prompt(&owner, 1));
    owner.ask(&ask).await;
    assert_eq!(owner.ask(&ask).await.report.tier, Some(Tier::Disk));
    owner.end().await;
}

#[tokio::test]
async fn records_of_another_model_are_left_alone_and_serve_that_model_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut said = Vec::new();
    let fixtures = [&QWEN3, &GEMMA3, &QWEN3_5, &QWEN3_NEXT];
    for fixture in fixtures {
        let setup = on_disk(fixture, folder.path());
        let twins = Twins::start(&setup).await;
        // The same tokens for all, which all of them know.
        let ask = Ask::new(&long_prompt(&twins.warm, 1));
        let answer = twins.ask(&ask, fixture.name).await;
        assert_eq!(answer.report.resumed, 0, "{}: {:?}", fixture.name, answer.report);
        said.push((fixture, ask, answer.said));
        twins.end().await;
    }
    for (fixture, ask, said) in &said {
        let warm = on_disk(fixture, folder.path()).start().await;
        let answer = warm.ask(ask).await;
        assert_eq!(answer.said, *said, "{}", fixture.name);
        assert_eq!(answer.report.tier, Some(Tier::Disk), "{}", fixture.name);
        warm.end().await;
    }
}

#[tokio::test]
async fn records_with_the_right_fingerprint_and_the_wrong_size_are_refused() {
    for fixture in [&GLM4, &QWEN3_5] {
        let folder = tempfile::tempdir().unwrap();
        let setup = on_disk(fixture, folder.path());
        let first = setup.start().await;
        let fingerprint = first.model.info.fingerprint;
        let ask = Ask::new(&long_prompt(&first, 1));
        first.ask(&ask).await;
        first.end().await;
        for (number, path) in records(folder.path()).iter().enumerate() {
            let mut decoder = Decoder::new(DecodeLimits::default());
            let record = decoder.feed(&fs::read(path).unwrap()).unwrap().remove(0);
            assert_eq!(record.header.fingerprint, fingerprint);
            fs::write(path, forged(&record.header, number)).unwrap();
        }
        let twins = Twins::start(&setup).await;
        assert_eq!(twins.ask(&ask, fixture.name).await.report.resumed, 0);
        let report = twins.ask(&ask, fixture.name).await.report;
        assert!(report.recomputed <= repeat_max(fixture), "{report:?}");
        twins.end().await;
    }
}

/// A sound record like one of the engine's, of another size in one of several ways.
fn forged(header: &RecordHeader, number: usize) -> Vec<u8> {
    let mut header = header.clone();
    match number % 3 {
        0 => header.payload_bytes -= 4,
        1 => header.payload_bytes *= 2,
        _ if header.kind == RecordKind::Span => header.page_tokens /= 2,
        _ => header.payload_bytes = 4,
    }
    let payload = Bytes::from(vec![7; header.payload_bytes as usize]);
    encode(&header, &[payload]).unwrap().concat()
}
