//! `sconce serve` as a supervisor sees it: its announcement, signals and exit codes.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use crate::harness::{Server, run, sconce, stderr, stdout};

/// A model slow enough for a stream to be in flight when a signal comes.
const SLOW: &str = "sim:decode_us=5000,context=100000";
/// Length of that stream.
const TOKENS: &str = "200";

#[test]
fn every_address_is_announced_on_a_line_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let socket = format!("unix:{}", folder.path().join("sconce.sock").display());
    let command = sconce(&["serve", "--listen", "127.0.0.1:0", "--listen", &socket]);
    let mut server = Server::spawn(command);
    assert_eq!(server.next_line(), format!("listening on {socket}"));
    assert!(!server.address.ends_with(":0"), "the port that was taken is told");
    for address in [server.address.as_str(), &socket] {
        let live = run(&["health", "--service", "liveness", "--server", address]);
        assert_eq!(stdout(&live), "SERVING\n");
    }
}

#[test]
fn a_server_without_a_model_is_alive_and_not_ready() {
    let server = Server::spawn(sconce(&["serve", "--listen", "127.0.0.1:0"]));
    let ready = run(&["health", "--service", "readiness", "--server", &server.address]);
    assert_eq!(ready.status.code(), Some(69), "{}", stderr(&ready));
    let complete = run(&["complete", "--server", &server.address, "hi"]);
    assert_eq!(complete.status.code(), Some(69));
    assert!(stderr(&complete).contains("no model"), "{}", stderr(&complete));
}

#[test]
fn sigterm_lets_a_stream_finish_and_exits_0() {
    let mut server = Server::start(SLOW, &[]);
    let mut client = sconce(&[
        "complete",
        "--json",
        "--ignore-eos",
        "-n",
        TOKENS,
        "--server",
        &server.address,
        "hello",
    ])
    .stdout(Stdio::piped())
    .spawn()
    .unwrap();
    let mut lines = BufReader::new(client.stdout.take().unwrap()).lines().map(Result::unwrap);
    let first = lines.find(|line| line.contains("\"delta\"")).expect("the stream has begun");
    server.signal("TERM");
    let rest: Vec<String> = lines.collect();
    assert!(server.wait().success());
    assert!(client.wait().unwrap().success());
    let last = rest.last().expect("the stream went on");
    assert!(last.contains("FINISH_REASON_LENGTH"), "{last}");
    let tokens: usize = std::iter::once(&first).chain(&rest).map(|line| token_count(line)).sum();
    assert_eq!(tokens.to_string(), TOKENS, "no token was lost to the drain");
}

fn token_count(line: &str) -> usize {
    let event: serde_json::Value = serde_json::from_str(line).expect("each line is JSON");
    event["delta"]["token_ids"].as_array().map_or(0, Vec::len)
}

#[test]
fn a_second_signal_ends_the_drain() {
    let mut server = Server::start(SLOW, &[]);
    let mut client = sconce(&[
        "complete",
        "--json",
        "--ignore-eos",
        "-n",
        "30000",
        "--server",
        &server.address,
        "hello",
    ])
    .stdout(Stdio::piped())
    .stderr(Stdio::null())
    .spawn()
    .unwrap();
    let mut lines = BufReader::new(client.stdout.take().unwrap()).lines().map(Result::unwrap);
    lines.find(|line| line.contains("\"delta\"")).expect("the stream has begun");
    server.signal("INT");
    // The drain has begun once the server says that it serves no more.
    while run(&["health", "--server", &server.address]).status.success() {}
    server.signal("INT");
    assert_eq!(server.wait().code(), Some(70));
    let _ = client.kill();
    client.wait().unwrap();
}

#[test]
fn an_address_in_use_exits_69() {
    let server = Server::spawn(sconce(&["serve", "--listen", "127.0.0.1:0"]));
    let second = run(&["serve", "--listen", &server.address]);
    assert_eq!(second.status.code(), Some(69));
    assert!(stderr(&second).contains(&server.address), "{}", stderr(&second));
}

#[test]
fn a_model_that_cannot_be_loaded_ends_the_server() {
    let output = run(&["serve", "--listen", "127.0.0.1:0", "--model", "m=/nonexistent/model.gguf"]);
    assert_eq!(output.status.code(), Some(69));
    let message = stderr(&output);
    assert!(message.contains("`m`") && message.contains("/nonexistent/model.gguf"), "{message}");
}

#[test]
fn logs_that_are_not_read_on_a_terminal_are_json_lines() {
    let output = run(&["serve", "--listen", "127.0.0.1:0", "--model", "m=/nonexistent/model.gguf"]);
    let log = stderr(&output);
    let first: serde_json::Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    assert_eq!(first["message"], "sconce starts");
    assert_eq!(first["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(first["device"], "cpu");
}
