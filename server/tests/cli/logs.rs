//! What a server writes to its log, as whoever collects it reads it: facts, and no prompts.

use std::process::Command;

use serde_json::Value;

use crate::harness::{Server, sconce, stdout};

/// Stands for what callers do not want to be read.
const SECRET: &str = "xylophone-in-the-cellar";

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// A server whose log is read when it has ended.
struct Logged {
    server: Server,
    log: tempfile::NamedTempFile,
}

impl Logged {
    fn start(variables: &[(&str, &str)]) -> Self {
        let mut command = sconce(&["serve", "--listen", "127.0.0.1:0", "--model", "sim=sim:"]);
        command.env("SCONCE__SERVER__WITHDRAWAL", "0s").envs(variables.iter().copied());
        let log = tempfile::NamedTempFile::new().expect("a file for the log");
        let server = Server::spawn_with_log(command, log.reopen().expect("opens again"));
        server.until_ready();
        Self { server, log }
    }

    fn run(&self, args: &[&str]) -> Command {
        sconce(&[args, &["--server", &self.server.address]].concat())
    }

    /// The lines, each an object.
    fn end(mut self) -> Vec<Value> {
        self.server.signal("TERM");
        assert!(self.server.wait().success());
        let text = std::fs::read_to_string(self.log.path()).expect("is text");
        let line = |line: &str| -> Value {
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
        };
        text.lines().map(line).collect()
    }
}

/// The lines about requests of one RPC.
fn of_rpc<'a>(lines: &'a [Value], rpc: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["message"] == "request" && line["rpc"] == rpc).collect()
}

#[test]
fn a_request_is_one_line_with_its_facts() {
    let logged = Logged::start(&[]);
    let args = ["complete", "-n", "7", "--ignore-eos", "--priority", "3", "hello"];
    let completed = logged.run(&args).env("TRACEPARENT", PARENT).output().unwrap();
    stdout(&completed);
    let unknown = logged.run(&["complete", "--model", "other", "hello"]).output().unwrap();
    assert!(!unknown.status.success());
    stdout(&logged.run(&["tokenize", "hello"]).output().unwrap());
    stdout(&logged.run(&["load", "again", "sim:seed=1,weights_bytes=1000"]).output().unwrap());
    let create = ["snapshot", "create", "kept", "--model", "sim", "--prompt", "hello"];
    stdout(&logged.run(&create).output().unwrap());
    let lines = logged.end();

    let completions = of_rpc(&lines, "sconce.v1.InferenceService/Complete");
    let [line, failed] = completions[..] else { panic!("{completions:#?}") };
    let text = |key: &str| line[key].as_str().unwrap_or_else(|| panic!("no {key} in {line:#}"));
    assert_eq!((text("code"), text("model"), text("finish_reason")), ("OK", "sim", "length"));
    assert_eq!(text("trace_id"), "0af7651916cd43dd8448eb211c80319c");
    assert!(text("peer").starts_with("127.0.0.1:"));
    assert!(!text("request_id").is_empty());
    assert_eq!((&line["prompt_tokens"], &line["completion_tokens"]), (&5.into(), &7.into()));
    assert_eq!((&line["priority"], &line["cached_tokens"]), (&3.into(), &0.into()));
    for key in ["ms", "queue_ms", "prefill_ms", "decode_ms", "first_token_ms", "tokens_per_second"]
    {
        assert!(line[key].as_f64().is_some_and(|number| number >= 0.0), "{key}: {line:#}");
    }
    assert_eq!(line["error_reason"], Value::Null);
    assert_eq!(
        (&failed["code"], &failed["error_reason"]),
        (&"NOT_FOUND".into(), &"MODEL_NOT_FOUND".into())
    );
    assert_eq!(failed["model"], "other");
    assert_eq!(failed["trace_id"], Value::Null);

    let tokenized = of_rpc(&lines, "sconce.v1.InferenceService/Tokenize");
    assert_eq!(
        (&tokenized[0]["model"], &tokenized[0]["prompt_tokens"]),
        (&"sim".into(), &5.into())
    );
    let loaded = of_rpc(&lines, "sconce.v1.ModelService/Load");
    assert_eq!((&loaded[0]["model"], &loaded[0]["bytes"]), (&"again".into(), &1000.into()));
    assert_eq!(loaded[0]["path"], "sim:seed=1,weights_bytes=1000");
    let kept = of_rpc(&lines, "sconce.v1.StateService/Snapshot");
    assert_eq!((&kept[0]["snapshot"], &kept[0]["prompt_tokens"]), (&"kept".into(), &5.into()));
    assert!(kept[0]["bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{kept:#?}");
}

#[test]
fn the_first_line_tells_what_runs() {
    let lines = Logged::start(&[("SCONCE__ENGINE__MEMORY_BUDGET", "1GiB")]).end();
    let first = &lines[0];
    assert_eq!(first["message"], "sconce starts");
    assert_eq!(first["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(first["memory_budget"], "1GiB");
    assert_eq!(first["cache_device"], "512MiB");
    for key in ["commit", "device", "precision", "cache_host", "cache_disk"] {
        assert!(first[key].as_str().is_some_and(|text| !text.is_empty()), "{key}: {first:#}");
    }
    assert!(first["threads"].as_u64().is_some_and(|threads| threads > 0));
}

#[test]
fn prompts_are_in_no_line_whatever_the_filter_says() {
    for filter in ["trace", "sconce::prompts=trace,trace"] {
        let logged = Logged::start(&[("SCONCE_LOG", filter)]);
        stdout(&logged.run(&["complete", "-n", "3", SECRET]).output().unwrap());
        stdout(&logged.run(&["complete", "-n", "3", "--chat", SECRET]).output().unwrap());
        stdout(&logged.run(&["tokenize", SECRET]).output().unwrap());
        // Too long for the context, so that an error is told.
        let long = SECRET.repeat(2000);
        assert!(!logged.run(&["complete", &long]).output().unwrap().status.success());
        let match_prefix = ["cache", "match", "sim", "--prompt", SECRET];
        stdout(&logged.run(&match_prefix).output().unwrap());
        let lines = logged.end();
        let told = |target: &str| {
            lines.iter().any(|line| line["target"].as_str().is_some_and(|t| t.starts_with(target)))
        };
        assert!(told("h2") && told("sconce_engine"), "the filter lets everything through");
        let ids: Vec<String> = SECRET.bytes().map(|byte| byte.to_string()).collect();
        for line in lines {
            let line = line.to_string();
            assert!(!line.contains(SECRET) && !line.contains(&ids.join(", ")), "{line}");
        }
    }
}

#[test]
fn prompts_that_are_asked_for_are_logged_up_to_a_bound_with_a_warning() {
    let logged = Logged::start(&[("SCONCE__TELEMETRY__LOG_PROMPTS", "true")]);
    stdout(&logged.run(&["complete", "-n", "3", SECRET]).output().unwrap());
    let long = format!("{}{SECRET}", "x".repeat(2048));
    stdout(&logged.run(&["complete", "-n", "3", &long]).output().unwrap());
    let lines = logged.end();
    let warned = |line: &&Value| {
        line["level"] == "WARN" && line["message"].as_str().unwrap().contains("prompts are logged")
    };
    assert_eq!(lines.iter().filter(warned).count(), 1);
    let prompts: Vec<&str> = lines
        .iter()
        .filter(|line| line["message"] == "prompt")
        .filter_map(|l| l["prompt"].as_str())
        .collect();
    assert_eq!(prompts, [SECRET, &"x".repeat(2048)]);
}

#[test]
#[cfg(not(feature = "otlp"))]
fn a_build_that_sends_no_spans_says_so() {
    let mut check = sconce(&["config", "check"]);
    let output = check.env("SCONCE__TELEMETRY__OTLP", "http://127.0.0.1:4317").output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    let message = crate::harness::stderr(&output);
    assert!(message.contains("telemetry.otlp") && message.contains("feature `otlp`"), "{message}");
    // Variables may be meant for others: the server starts.
    let lines = Logged::start(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317")]).end();
    let told = |line: &Value| line["variable"] == "OTEL_EXPORTER_OTLP_ENDPOINT";
    assert!(lines.iter().any(told), "{lines:#?}");
}
