//! `sconce doctor`: each thing that can be wrong is told, with what to do, and the exit code says so.

use serde_json::Value;

use crate::harness::{Server, run, sconce, stderr, stdout};

/// The check of a name in the JSON of a run.
fn check<'a>(report: &'a Value, name: &str) -> &'a Value {
    let checks = report["checks"].as_array().expect("a list of checks");
    let found = checks.iter().find(|check| check["name"] == name);
    found.unwrap_or_else(|| panic!("no check `{name}` in {report:#}"))
}

/// A configuration that takes no address of others, with `more` lines.
fn config(more: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let text = format!("[server]\nlisten = \"127.0.0.1:0\"\n{more}");
    std::fs::write(file.path(), text).expect("is written");
    file
}

fn report(args: &[&str]) -> (Option<i32>, Value) {
    let output = run(&[&["doctor", "--json"], args].concat());
    let text = String::from_utf8(output.stdout.clone()).expect("is UTF-8");
    let json = serde_json::from_str(&text);
    (output.status.code(), json.unwrap_or_else(|error| panic!("{error}: {}", stderr(&output))))
}

#[test]
fn a_machine_in_order_exits_0_and_every_line_has_a_level() {
    let file = config("[models]\nsmall = \"sim:\"\n[engine]\nmemory_budget = \"1MiB\"\n");
    let text = stdout(&run(&["doctor", "--config", file.path().to_str().unwrap()]));
    let (checks, summary) = text.trim_end().rsplit_once("\n\n").expect("a summary at the end");
    assert!(summary.ends_with("failures: 0"), "{text}");
    for name in ["build", "instructions", "threads", "memory", "open files", "configuration"] {
        let line = checks.lines().find(|line| line.get(6..).is_some_and(|it| it.starts_with(name)));
        let line = line.unwrap_or_else(|| panic!("nothing about {name} in {text}"));
        assert!(line.starts_with("ok") || line.starts_with("warn"), "{line}");
    }
}

#[test]
fn a_wrong_setting_exits_64_and_is_named() {
    let file = config("[engine]\nsequences_max = 0\n");
    let (code, report) = report(&["--config", file.path().to_str().unwrap()]);
    assert_eq!(code, Some(64));
    let found = check(&report, "configuration");
    assert_eq!(found["level"], "fail");
    assert!(found["found"].as_str().unwrap().contains("engine.sequences_max"), "{found}");
}

#[test]
fn what_the_settings_name_and_is_not_there_exits_69() {
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    // Accepts nobody and answers nothing, as another program on the port may: closed when asked.
    let address = other.local_addr().unwrap();
    let closer =
        std::thread::spawn(move || drop(other.accept().map(|(stream, _)| (stream, other))));
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = format!("server.listen = \"{address}\"\nmodels.gone = \"/no/such/model\"\n");
    std::fs::write(file.path(), text).unwrap();
    let (code, report) = report(&["--config", file.path().to_str().unwrap()]);
    assert_eq!(code, Some(69));
    for name in ["model gone".to_owned(), format!("address {address}")] {
        let found = check(&report, &name);
        assert_eq!(found["level"], "fail", "{found}");
        assert_ne!(found["advice"], "", "{found}");
    }
    closer.join().unwrap();
}

#[test]
fn files_that_guard_a_server_are_read_as_it_reads_them() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens");
    let engine = "[engine]\nmemory_budget = \"1MiB\"\n";
    let file = config(&format!("auth.tokens = \"{}\"\n{engine}", tokens.display()));
    let args = ["--config", file.path().to_str().unwrap()];
    for (text, level, code) in [
        (None, "fail", 69),
        (Some("alice without a token\n"), "fail", 69),
        (Some("alice:0123456789abcdef\n"), "ok", 0),
    ] {
        text.into_iter().for_each(|text| std::fs::write(&tokens, text).unwrap());
        let (found, told) = report(&args);
        assert_eq!(found, Some(code), "{told:#}");
        assert_eq!(check(&told, "server.auth.tokens")["level"], level, "{told:#}");
    }
}

#[test]
fn a_server_that_runs_is_looked_at_with_its_models_and_its_cache() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let directory = cache.to_str().unwrap();
    let server = Server::start("sim:", &["--cache-dir", directory, "--cache-disk", "1MiB"]);
    let file = config(&format!("[cache]\ndirectory = \"{directory}\"\ndisk = \"1MiB\"\n"));
    let path = file.path().to_str().unwrap();
    let (code, told) = report(&["--config", path, "--server", &server.address]);
    assert_eq!(code, Some(0), "{told:#}");
    assert_eq!(check(&told, "health")["found"], "ready");
    assert_eq!(check(&told, "serving sim")["level"], "ok");
    let lock = check(&told, "cache lock")["found"].as_str().unwrap().to_owned();
    assert!(lock.starts_with("held by process "), "{lock}");
    // To whoever does not know of that server, the lock is in the way of his own.
    let mut command = sconce(&["doctor", "--json", "--config", path, "--server", "127.0.0.1:1"]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(69));
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(check(&told, "cache lock")["level"], "fail");
    assert_eq!(check(&told, "server")["level"], "fail");
}
