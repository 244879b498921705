//! Faults of the whole process: killed under load, a disk that is full under load, a device thread
//! that keeps panicking, and a GPU that is lost.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::harness::{Server, run, sconce, stderr, stdout};

/// A model whose pool holds one of the prompts, so that each makes the one before leave for the disk.
const SMALL: &str = "sim:pages=18,decode_us=2000";

/// Eighteen pages, one of `kind`.
fn prompt(kind: usize) -> String {
    format!("{kind}: {}", "The lamp on the wall burns all night. ".repeat(30))
}

/// Rounds of load until a disk must be full.
const ROUNDS_MAX: usize = 20;

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

/// A small file system in memory, which only root may mount; unmounted when dropped.
struct Mount(tempfile::TempDir);

impl Mount {
    /// `None` where it is not allowed; says so.
    #[allow(clippy::print_stdout, reason = "a test that is skipped says so")]
    fn new(size: &str) -> Option<Self> {
        let mount = Self(tempfile::tempdir().expect("a folder is made"));
        let options = format!("size={size},mode=700");
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(mount.0.path());
        let output = command.output();
        if output.as_ref().is_ok_and(|output| output.status.success()) {
            return Some(mount);
        }
        println!("skipped: cannot mount a file system: {output:?}");
        // Nothing is mounted, so there is nothing to unmount.
        std::mem::forget(mount);
        None
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(self.0.path()).status();
        let is_done = unmounted.as_ref().is_ok_and(std::process::ExitStatus::success);
        assert!(is_done || std::thread::panicking(), "{unmounted:?}");
    }
}

/// Clients that ask at once, and prompts of each.
const CLIENTS: usize = 3;
const PROMPTS: usize = 4;

/// What a server answers to all prompts of all clients, and what it remarks on them.
fn under_load(server: &Server) -> Vec<(String, String)> {
    std::thread::scope(|scope| {
        let client = |client| {
            move || -> Vec<_> {
                let prompts = client * PROMPTS..(client + 1) * PROMPTS;
                prompts.map(|kind| complete(server, &prompt(kind))).collect()
            }
        };
        let clients: Vec<_> = (0..CLIENTS).map(|number| scope.spawn(client(number))).collect();
        clients.into_iter().flat_map(|client| client.join().expect("the client ends")).collect()
    })
}

#[test]
fn a_disk_that_is_full_under_load_costs_no_answer() {
    let Some(mount) = Mount::new("256k") else { return };
    let directory = mount.0.path().to_str().unwrap();
    let disk = ["--cache-host", "0", "--cache-disk", "64MiB", "--cache-dir", directory];
    let expected: Vec<String> =
        under_load(&Server::start(SMALL, &[])).into_iter().map(|(text, _)| text).collect();

    let log = tempfile::NamedTempFile::new().unwrap();
    let mut command = sconce(&["serve", "--listen", "127.0.0.1:0", "--model"]);
    command.arg(format!("sim={SMALL}")).args(disk).env("SCONCE__SERVER__WITHDRAWAL", "0s");
    let mut server = Server::spawn_with_log(command, log.reopen().unwrap());
    server.until_ready();
    let mut told = 0;
    for _ in 0..ROUNDS_MAX {
        let said = under_load(&server);
        assert!(said.iter().map(|(text, _)| text).eq(&expected));
        let text = std::fs::read_to_string(log.path()).unwrap();
        told = text.lines().filter(|line| line.contains("not writing")).count();
        if told > 0 {
            break;
        }
    }
    assert_eq!(told, 1, "{}", std::fs::read_to_string(log.path()).unwrap());
    let whole = records(mount.0.path());
    assert!(whole > 0);
    server.signal("TERM");
    assert!(server.wait().success());

    // What was whole is found on the disk, which is as full as before.
    let server = Server::start(SMALL, &disk);
    let said = under_load(&server);
    assert!(said.iter().map(|(text, _)| text).eq(&expected));
    assert!(said.iter().any(|(_, remark)| remark.contains("resumed from disk")), "{said:?}");
}

#[test]
fn a_device_thread_that_keeps_panicking_ends_the_process() {
    // Each of the first four dies with the request; then nobody is there.
    ends("sim:crash_at=50", 4);
}

#[test]
fn a_gpu_that_is_lost_ends_the_process() {
    ends("sim:lost_at=50", 3);
}

/// Asks a server until it is gone, which is not before `least` requests and with a code of its own.
fn ends(model: &str, least: usize) {
    let mut server = Server::start(model, &[]);
    let mut refused = 0;
    let ended = loop {
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
    assert!(refused >= least, "{refused} requests");
    assert_eq!(ended.code(), Some(70));
}
