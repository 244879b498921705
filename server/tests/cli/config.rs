//! Settings as the program takes them from files, the environment and flags.

use std::io::Write as _;

use crate::harness::{run, sconce, stderr, stdout};

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(text.as_bytes()).expect("a writable file");
    file
}

#[test]
fn a_bad_setting_exits_64_and_names_key_source_and_expectation() {
    let bad = file("[engine]\nwaiting_max = 0\n");
    let path = bad.path().to_str().unwrap();
    for args in [&["serve", "--config", path][..], &["config", "check", "--config", path]] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(64), "{args:?}");
        let message = stderr(&output);
        for part in ["engine.waiting_max", path, "from 1 to", "found 0"] {
            assert!(message.contains(part), "`{part}` not in {message}");
        }
    }
}

#[test]
fn a_bad_variable_is_named_as_it_is_spelled() {
    let output =
        sconce(&["config", "check"]).env("SCONCE__SERVER__DRAIN", "soon").output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    let message = stderr(&output);
    for part in ["server.drain", "environment variable SCONCE__SERVER__DRAIN", "soon", "30s"] {
        assert!(message.contains(part), "`{part}` not in {message}");
    }
}

#[test]
fn an_unknown_variable_is_refused() {
    let output = sconce(&["config", "check"]).env("SCONCE__SERVER__PORT", "1").output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    let message = stderr(&output);
    assert!(message.contains("SCONCE__SERVER__PORT") && message.contains("listen"), "{message}");
}

#[test]
fn a_device_that_is_not_there_is_refused() {
    let output = run(&["serve", "--device", "cuda:4096"]);
    assert_eq!(output.status.code(), Some(64));
    let message = stderr(&output);
    assert!(message.contains("flag --device") && message.contains("`cpu`"), "{message}");
}

#[test]
fn a_missing_file_is_refused() {
    let output = run(&["config", "show", "--config", "/nonexistent/sconce.toml"]);
    assert_eq!(output.status.code(), Some(64));
    assert!(stderr(&output).contains("/nonexistent/sconce.toml"));
}

#[test]
fn a_bad_log_filter_is_refused() {
    let output = sconce(&["serve"]).env("SCONCE_LOG", "a=b=c").output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert!(stderr(&output).contains("SCONCE_LOG"), "{}", stderr(&output));
}

#[test]
fn shown_settings_are_a_file_that_shows_the_same() {
    let given = file(
        "[server]\nlisten = [\"127.0.0.1:7\", \"unix:/run/sconce.sock\"]\ndrain = \"1m 5s\"\n\
         [engine]\nmemory_budget = \"8GiB\"\n[models.\"a.b\"]\npath = \"sim:\"\n",
    );
    let path = given.path().to_str().unwrap();
    let shown = stdout(&run(&["config", "show", "--config", path]));
    let copy = file(&shown);
    let again = stdout(&run(&["config", "show", "--config", copy.path().to_str().unwrap()]));
    assert_eq!(again, shown);
    assert!(shown.contains("\"1m 5s\"") && shown.contains("\"a.b\".path = \"sim:\""), "{shown}");
}

#[test]
fn origins_tell_file_variable_and_default_apart() {
    let given = file("[engine]\nthreads = 1\n");
    let path = given.path().to_str().unwrap();
    let output = sconce(&["config", "show", "--origin", "--config", path])
        .env("SCONCE__ENGINE__SEQUENCES_MAX", "5")
        .output()
        .unwrap();
    let shown = stdout(&output);
    for line in [
        format!("threads = 1  # file {path}"),
        "sequences_max = 5  # environment variable SCONCE__ENGINE__SEQUENCES_MAX".to_owned(),
        "reflection = true  # default".to_owned(),
    ] {
        assert!(shown.lines().any(|shown| shown == line), "`{line}` not in:\n{shown}");
    }
}
