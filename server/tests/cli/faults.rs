//! Faults of the whole process: killed under load, and a device thread that keeps panicking.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::Stdio;

use crate::harness::{Server, run, sconce, stderr, stdout};

/// A model whose pool holds one of the prompts, so that each makes the one before leave for the disk.
const SMALL: &str = "sim:pages=18,decode_us=2000";

/// Eighteen pages, one of `kind`.
fn prompt(kind: usize) -> String {
    format!("{kind}: {}", "The lamp on the wall burns all night. ".repeat(30))
}

fn complete(server: &Server, prompt: &str) -> (String, String) {
    let args = ["complete", "--temperature", "0", "-n", "8", "--verbose", "--server"];
    let output = run(&[&args[..], &[&server.address, prompt]].concat());
    (stdout(&output), stderr(&output))
}

/// Records of the cache that are whole.
fn records(directory: &Path) -> usize {
    let files = std::fs::read_dir(directory.join("records")).into_iter().flatten().flatten();
    files.filter(|file| file.path().extension().is_some_and(|is| is == "record")).count()
}

#[test]
fn a_server_killed_under_load_finds_what_it_had_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().to_str().unwrap();
    let disk = ["--cache-host", "0", "--cache-disk", "64MiB", "--cache-dir", directory];
    let mut server = Server::start(SMALL, &disk);
    let said: Vec<String> = (0..4).map(|kind| complete(&server, &prompt(kind)).0).collect();
    while records(folder.path()) < 3 {
        std::thread::yield_now();
    }
    // In the middle of a stream, and of what it writes for those before.
    let args =
        ["complete", "--json", "--ignore-eos", "-n", "300", "--server", &server.address, "hi"];
    let mut client = sconce(&args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(client.stdout.take().unwrap()).lines().map(Result::unwrap);
    lines.find(|line| line.contains("\"delta\"")).expect("the stream has begun");
    server.signal("KILL");
    assert!(!server.wait().success());
    drop(lines);
    assert!(!client.wait().unwrap().success(), "the client hears that nobody answers");

    let server = Server::start(SMALL, &disk);
    let mut remarks = String::new();
    for (kind, said) in said.iter().enumerate() {
        let (again, remark) = complete(&server, &prompt(kind));
        assert_eq!(again, *said);
        remarks += &remark;
    }
    assert!(remarks.contains("resumed from disk"), "{remarks}");
}

#[test]
fn a_device_thread_that_keeps_panicking_ends_the_process() {
    let mut server = Server::start("sim:crash_at=50", &[]);
    let mut refused = 0;
    let ended = loop {
        // Each of the first four dies with the request; then nobody is there.
        // No two begin alike, or the second would be resumed past the token that kills.
        let killer = format!("{refused} {}", "x".repeat(60));
        let args = ["complete", "--ignore-eos", "--server", &server.address, &killer];
        let output = run(&args);
        assert!(!output.status.success());
        if stderr(&output).contains("cannot reach a server") {
            break server.wait();
        }
        refused += 1;
        assert!(refused < 1000, "it goes on and on: {}", stderr(&output));
    };
    assert!(refused >= 4, "{refused} requests");
    assert_eq!(ended.code(), Some(70));
}
