//! The subcommands that ask a server, or run one in process.

use serde_json::Value;

use crate::harness::{Server, run, run_with, stderr, stdout};

/// Flags that make a completion the same every time.
const GREEDY: [&str; 4] = ["--temperature", "0", "-n", "24"];

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn complete_gives_the_same_text_from_a_server_and_in_process() {
    let server = Server::start("sim:", &[]);
    let prompt = "The lamp on the wall";
    let remote = run(&[&["complete", "--server", &server.address, prompt][..], &GREEDY].concat());
    let local = run(&[&["complete", "--path", "sim:", prompt][..], &GREEDY].concat());
    assert!(stdout(&remote).trim().len() > 1, "{remote:?}");
    assert_eq!(stdout(&remote), stdout(&local));
    for output in [remote, local] {
        assert!(stderr(&output).contains("24 tokens, decode"), "{}", stderr(&output));
    }
}

#[test]
fn complete_reads_its_prompt_from_standard_input() {
    let server = Server::start("sim:", &[]);
    let args = [&["complete", "--server", &server.address][..], &GREEDY].concat();
    let piped = run_with(&args, "one two");
    let given = run(&[&args[..], &["one two"]].concat());
    assert_eq!(stdout(&piped), stdout(&given));
}

#[test]
fn complete_as_json_is_the_stream_message_by_message() {
    let args = ["complete", "--path", "sim:", "--json", "--logprobs", "2", "hello"];
    let lines = stdout(&run(&[&args[..], &GREEDY].concat()));
    let events: Vec<Value> = lines.lines().map(json).collect();
    assert!(events[0]["started"]["prompt_tokens"].as_u64().unwrap() > 0);
    let deltas = &events[1..events.len() - 1];
    let tokens: usize =
        deltas.iter().map(|event| event["delta"]["token_ids"].as_array().map_or(0, Vec::len)).sum();
    let finished = &events[events.len() - 1]["finished"];
    assert_eq!(finished["usage"]["completion_tokens"], tokens);
    assert_eq!(finished["reason"], "FINISH_REASON_LENGTH");
    let logprobs = deltas.iter().find_map(|event| event["delta"]["logprobs"][0]["top"].as_array());
    assert_eq!(logprobs.expect("logprobs were asked for").len(), 2);
}

#[test]
fn a_refused_field_is_told_by_name_and_exits_2() {
    let output = run(&["complete", "--path", "sim:", "--top-p", "2", "hello"]);
    assert_eq!(output.status.code(), Some(2));
    let message = stderr(&output);
    assert!(message.contains("INVALID_ARGUMENT: "), "{message}");
    assert!(message.contains("  sampling.top_p: "), "{message}");
}

#[test]
fn nobody_listening_exits_69() {
    let output = run(&["complete", "--server", "127.0.0.1:1", "hello"]);
    assert_eq!(output.status.code(), Some(69));
    assert!(stderr(&output).contains("127.0.0.1:1"), "{}", stderr(&output));
}

#[test]
fn wrong_usage_exits_2() {
    for args in [
        &["complete", "--no-such-flag"][..],
        &["serve", "--model", "no-path"],
        &["complete", "--exact", "engine flags are of a server in process"],
        &["complete", "--logit-bias", "x=y", "hello"],
        &["detokenize", "one"],
        &[],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn models_are_loaded_listed_and_unloaded() {
    let server = Server::start("sim:", &[]);
    let at = ["--server", &server.address];
    let loaded = run(&[&["load", "second", "sim:", "--json"][..], &at].concat());
    assert_eq!(json(&stdout(&loaded))["model"], "second");
    let listed = json(&stdout(&run(&[&["models", "--json"][..], &at].concat())));
    let names: Vec<&Value> = listed.as_array().unwrap().iter().map(|m| &m["model"]).collect();
    assert_eq!(names, ["second", "sim"]);
    let ambiguous = run(&[&["complete", "hello"][..], &at].concat());
    assert_eq!(ambiguous.status.code(), Some(2));
    assert!(stderr(&ambiguous).contains("second, sim"), "{}", stderr(&ambiguous));
    stdout(&run(&[&["unload", "second"][..], &at].concat()));
    let table = stdout(&run(&[&["models"][..], &at].concat()));
    assert_eq!(table.lines().count(), 2, "{table}");
    let again = run(&[&["unload", "second"][..], &at].concat());
    assert_eq!(again.status.code(), Some(69));
    assert!(stderr(&again).contains("NOT_FOUND"), "{}", stderr(&again));
}

#[test]
fn tokens_of_a_text_give_the_text_back() {
    let server = Server::start("sim:", &[]);
    let at = ["--server", &server.address];
    let text = "a lamp, \u{1f56f} and 12 words";
    let ids = stdout(&run(&[&["tokenize", "--ids", text][..], &at].concat()));
    let back = run(&[&["detokenize", "--skip-special-tokens", ids.trim()][..], &at].concat());
    assert_eq!(stdout(&back), format!("{text}\n"));
    let pieces = stdout(&run(&[&["tokenize", text][..], &at].concat()));
    assert_eq!(pieces.lines().count(), ids.split_whitespace().count());
    let both = json(&stdout(&run(&[&["tokenize", "--json", text][..], &at].concat())));
    assert_eq!(both["token_ids"].as_array().unwrap().len(), pieces.lines().count());
}

#[test]
fn chat_answers_each_line_and_forgets_on_reset() {
    let server = Server::start("sim:", &[]);
    let args = ["chat", "--server", &server.address, "--temperature", "0", "-n", "8"];
    let twice = run_with(&args, "hello\n/reset\nhello\n/exit\nnot read\n");
    let answers = stdout(&twice);
    let lines: Vec<&str> = answers.lines().collect();
    assert_eq!(lines.len() % 2, 0, "{answers}");
    let (first, second) = lines.split_at(lines.len() / 2);
    assert_eq!(first, second, "after a reset the same question is a new conversation");
    let on = stderr(&run_with(&args, "hello\nhello\n"));
    let prompts: Vec<usize> = on.lines().filter_map(prompt_tokens).collect();
    assert!(prompts.len() == 2 && prompts[1] > prompts[0], "the second turn has the first: {on}");
}

/// The count in a line such as `[12 prompt tokens, ...`.
fn prompt_tokens(line: &str) -> Option<usize> {
    line.strip_prefix('[')?.split_once(" prompt tokens")?.0.parse().ok()
}

#[test]
fn the_version_is_the_packages() {
    let version = stdout(&run(&["--version"]));
    assert!(version.starts_with(concat!("sconce ", env!("CARGO_PKG_VERSION"))), "{version}");
}

#[test]
fn bench_accuracy_finds_that_the_simulated_model_has_one_precision() {
    let args = ["bench", "accuracy", "--path", "sim:", "--json", "--tokens-max", "65"];
    let report = json(&stdout(&run(&args)));
    assert_eq!(report["positions"], 64);
    assert_eq!(report["top1_agreement"], 1.0);
    assert_eq!(report["kl_max"], 0.0);
}

#[test]
fn a_deadline_in_the_stream_leaves_the_text_and_its_account() {
    let args = ["complete", "--path", "sim:decode_us=20000", "--deadline", "1500ms", "hello"];
    let output = run(&args);
    assert_eq!(output.status.code(), Some(69));
    assert!(output.stdout.len() > 1, "some text came before the deadline");
    let message = stderr(&output);
    assert!(message.contains("; deadline]"), "{message}");
    assert!(message.contains("DEADLINE_EXCEEDED: "), "{message}");
}
