//! A process that is killed while it writes what it remembers: the next one starts on its directory
//! and says the same.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use sconce_models::Precision;

use crate::support::*;

/// Where the child finds its directory, and which model it loads.
const DIRECTORY: &str = "SCONCE_TEST_KILL_DIRECTORY";
const FIXTURE: &str = "SCONCE_TEST_KILL_FIXTURE";

/// What the child prints before it begins to unload.
const UNLOADING: &str = "the child unloads now";

/// Prompts of the child.
const PROMPTS: u64 = 6;

fn setup(fixture: &'static Fixture, directory: &Path) -> Setup {
    Setup::warm(fixture, Precision::Fast).limits(u64::MAX, 0, u64::MAX).directory(directory)
}

fn asks(server: &Server) -> Vec<Ask> {
    (0..PROMPTS).map(|seed| Ask::new(&long_prompt(server, seed))).collect()
}

#[tokio::test]
#[ignore = "run by the test that kills it"]
#[allow(clippy::print_stdout, reason = "the test that kills it listens")]
async fn the_child_computes_and_unloads_and_waits_for_its_end() {
    let (Some(directory), Ok(name)) = (std::env::var_os(DIRECTORY), std::env::var(FIXTURE)) else {
        panic!("{DIRECTORY} and {FIXTURE} are set by the test that kills this one");
    };
    let fixture = ALL.into_iter().find(|fixture| fixture.name == name).unwrap();
    let server = setup(fixture, &PathBuf::from(directory)).start().await;
    for ask in asks(&server) {
        server.ask(&ask).await;
    }
    println!("{UNLOADING}");
    server.unload().await;
    // Never the last to go: it is killed, or its standard input ends with its parent.
    let mut nothing = String::new();
    let _ended = std::io::stdin().read_line(&mut nothing);
}

fn start_child(fixture: &Fixture, directory: &Path) -> Child {
    let test = "kill::the_child_computes_and_unloads_and_waits_for_its_end";
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env(DIRECTORY, directory)
        .env(FIXTURE, fixture.name)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Files that are there, temporary ones included.
fn files(directory: &Path) -> usize {
    std::fs::read_dir(directory.join("records")).map_or(0, Iterator::count)
}

/// Starts a child and kills it when it has written `count` files, or begun to.
fn kill_in_the_middle(fixture: &Fixture, directory: &Path, count: usize) {
    let mut child = start_child(fixture, directory);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains(UNLOADING)), "the child has failed");
    let began = Instant::now();
    while files(directory) < count {
        assert!(began.elapsed() < PATIENCE, "the child writes nothing");
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test]
async fn a_process_killed_in_the_middle_of_an_unload_leaves_nothing_wrong() {
    for (fixture, counts) in [(&QWEN3, [1, 4]), (&QWEN3_5, [2, 9])] {
        for count in counts {
            let folder = tempfile::tempdir().unwrap();
            kill_in_the_middle(fixture, folder.path(), count);
            let twins = Twins::start(&setup(fixture, folder.path())).await;
            let case = format!("{}, killed after {count} files", fixture.name);
            let mut resumed = 0;
            for ask in asks(&twins.warm) {
                resumed += twins.ask(&ask, &case).await.report.resumed;
            }
            // Files that were there have lasted, but for the one that was being written. Those of a
            // hybrid serve with a restore point only, and restore points may come last.
            assert!(resumed > 0 || count < 4 || fixture.recurrent, "{case}");
            for ask in asks(&twins.warm) {
                let report = twins.ask(&ask, &case).await.report;
                assert!(report.recomputed <= repeat_max(fixture), "{case}: {report:?}");
            }
            twins.end().await;
        }
    }
}
