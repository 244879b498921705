//! The subcommands about what a server remembers: the cache drawn, snapshots kept and moved.

use serde_json::Value;

use crate::harness::{Server, run, sconce, stderr, stdout};

/// Longer than any restore point's distance from the end, and not a multiple of anything.
fn prompt() -> String {
    "The lamp on the wall burns all night. ".repeat(30)
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Runs a subcommand against `server` and returns what it printed.
fn ask(server: &Server, args: &[&str]) -> String {
    stdout(&run(&[args, &["--server", &server.address]].concat()))
}

fn complete(server: &Server, prompt: &str, flags: &[&str]) -> String {
    let args = ["complete", "--temperature", "0", "-n", "4", "--verbose", prompt];
    stderr(&run(&[&args[..], flags, &["--server", &server.address]].concat()))
}

#[test]
fn a_completion_remarks_what_was_remembered() {
    let server = Server::start("sim:", &[]);
    let first = complete(&server, &prompt(), &[]);
    assert!(first.contains("[cache: 0 tokens matched, 0 resumed, "), "{first}");
    let again = complete(&server, &prompt(), &[]);
    assert!(
        again.contains(" resumed from device, 1 computed; all of it is remembered]"),
        "{again}"
    );
    let bypassed = complete(&server, &prompt(), &["--no-cache"]);
    assert!(bypassed.contains("; the cache was bypassed]"), "{bypassed}");
    let salted = complete(&server, &prompt(), &["--salt", "another"]);
    assert!(salted.contains("[cache: 0 tokens matched"), "{salted}");
}

#[test]
fn the_access_log_tells_what_was_remembered() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let mut command = sconce(&["serve", "--listen", "127.0.0.1:0", "--model", "sim=sim:"]);
    command.env("SCONCE__SERVER__WITHDRAWAL", "0s");
    let mut server = Server::spawn_with_log(command, std::fs::File::create(&log).unwrap());
    server.until_ready();
    complete(&server, &prompt(), &[]);
    complete(&server, &prompt(), &[]);
    server.signal("TERM");
    assert!(server.wait().success());
    let text = std::fs::read_to_string(&log).unwrap();
    let lines: Vec<Value> = text
        .lines()
        .map(json)
        .filter(|l| l["rpc"] == "sconce.v1.InferenceService/Complete")
        .collect();
    let told = |line: &Value| {
        let number = |key: &str| line[key].as_u64().unwrap();
        let tier = line["cache_tier"].as_str().map(str::to_owned);
        let reason = line["cache_reason"].as_str().unwrap().to_owned();
        (number("matched_tokens"), number("cached_tokens"), tier, reason)
    };
    let most = prompt().len() as u64 - 1;
    assert_eq!(told(&lines[0]), (0, 0, None, "NOT_FOUND".into()));
    assert_eq!(told(&lines[1]), (most, most, Some("device".into()), "FULL".into()));
}

#[test]
fn a_completion_bypasses_the_cache_when_asked_in_process_too() {
    let args = ["complete", "--path", "sim:", "-n", "2", "--verbose", "--no-cache", "hello"];
    let output = run(&args);
    let remark = "[cache: 0 tokens matched, 0 resumed, 5 computed; the cache was bypassed]";
    assert!(stderr(&output).contains(remark), "{}", stderr(&output));
    let contradiction = run(&["complete", "--no-cache", "--pin", "hello"]);
    assert_eq!(contradiction.status.code(), Some(2));
}

#[test]
fn the_cache_is_drawn_and_told_as_json() {
    let server = Server::start("sim:", &[]);
    assert!(ask(&server, &["cache", "show", "sim"]).starts_with("nothing is remembered\n"));
    complete(&server, &prompt(), &[]);
    let drawn = ask(&server, &["cache", "show", "sim"]);
    assert!(drawn.starts_with("tokens "), "{drawn}");
    for tier in ["device", "host", "disk"] {
        assert!(drawn.lines().any(|line| line.starts_with(tier)), "no {tier} in {drawn}");
    }
    let told = json(&ask(&server, &["cache", "show", "sim", "--json"]));
    assert!(!told["nodes"].as_array().expect("a list").is_empty(), "{told}");
    assert_eq!(told["tiers"].as_array().expect("a list").len(), 3);
    let unknown = run(&["cache", "show", "nobody", "--server", &server.address]);
    assert_eq!(unknown.status.code(), Some(69));
}

#[test]
fn a_match_tells_what_a_completion_would_resume() {
    let server = Server::start("sim:", &[]);
    let text = prompt();
    let args = ["cache", "match", "sim", "--prompt", &text, "--json"];
    let cold = json(&ask(&server, &args));
    let tokens = cold["prompt_tokens"].as_u64().expect("a number");
    assert_eq!(tokens as usize, text.len(), "every byte is a token of the simulated model");
    assert_eq!(cold["cache"]["reason"], "CACHE_REASON_NOT_FOUND");
    complete(&server, &text, &[]);
    let warm = json(&ask(&server, &args));
    assert_eq!(warm["cache"]["resumed_tokens"], tokens - 1);
    let line = ask(&server, &args[..5]);
    let matched = tokens - 1;
    assert!(line.starts_with(&format!("of {tokens} prompt tokens: {matched} tokens matched")));
}

#[test]
fn a_snapshot_moves_to_another_server_in_a_file() {
    let here = Server::start("sim:", &[]);
    let there = Server::start("sim:", &[]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lamp.snapshot");
    let file = path.to_str().unwrap();
    let text = prompt();

    let create =
        ["snapshot", "create", "lamp", "--prompt", &text, "--pin", "--ttl", "2h", "--json"];
    let kept = json(&ask(&here, &create));
    assert_eq!((&kept["name"], &kept["pinned"]), (&"lamp".into(), &true.into()));
    assert!(kept["ttl"].as_f64().unwrap() > 3600.0, "{kept}");
    let id = kept["id"].as_str().unwrap();
    let table = ask(&here, &["snapshot", "list"]);
    assert!(table.lines().nth(1).is_some_and(|line| line.contains(id)), "{table}");

    ask(&here, &["snapshot", "export", id, file]);
    let again = run(&["snapshot", "export", id, file, "--server", &here.address]);
    assert_eq!(again.status.code(), Some(2));
    assert!(stderr(&again).contains("--overwrite"), "{}", stderr(&again));
    ask(&here, &["snapshot", "export", id, file, "--overwrite"]);

    let moved = json(&ask(&there, &["snapshot", "import", file, "--json"]));
    assert_eq!((&moved["name"], &moved["pinned"]), (&"lamp".into(), &true.into()));
    assert_eq!(moved["token_count"], kept["token_count"]);
    let matched = json(&ask(&there, &["cache", "match", "sim", "--prompt", &text, "--json"]));
    assert_eq!(matched["cache"]["reason"], "CACHE_REASON_FULL");

    ask(&here, &["snapshot", "drop", id]);
    assert_eq!(json(&ask(&here, &["snapshot", "list", "--json"])), Value::Array(Vec::new()));
    let gone = run(&["snapshot", "drop", id, "--server", &here.address]);
    assert_eq!(gone.status.code(), Some(69));
}

#[test]
fn a_file_that_is_no_snapshot_is_refused_by_name() {
    let server = Server::start("sim:", &[]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other");
    std::fs::write(&path, "something else altogether").unwrap();
    let import = |path: &std::path::Path| {
        run(&["snapshot", "import", path.to_str().unwrap(), "--server", &server.address])
    };
    let refused = import(&path);
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("expected a snapshot"), "{}", stderr(&refused));
    std::fs::write(&path, "short").unwrap();
    assert!(stderr(&import(&path)).contains("the end of the file"));
    assert_eq!(import(&folder.path().join("none")).status.code(), Some(70));
}

#[test]
fn nothing_is_left_of_an_export_that_failed() {
    let server = Server::start("sim:", &[]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("never");
    let file = path.to_str().unwrap();
    let failed = run(&["snapshot", "export", "nobody", file, "--server", &server.address]);
    assert_eq!(failed.status.code(), Some(69));
    assert!(stderr(&failed).contains("NOT_FOUND"), "{}", stderr(&failed));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
