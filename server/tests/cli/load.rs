//! `sconce bench server` and `sconce bench soak`: what they count, and what they refuse. How long
//! anything takes is of no concern here.

use serde_json::Value;

use crate::harness::{Server, run, sconce, stderr, stdout};

/// Requests that take next to no time.
const SHORT: &str = "--prompt-tokens 8-24 --output-tokens 2-6 --prefix-tokens 16";

fn bench(command: &str, line: &str) -> std::process::Output {
    let words: Vec<&str> = line.split_whitespace().collect();
    run(&[&["bench", command][..], &words].concat())
}

fn json(output: &std::process::Output) -> Value {
    let text = stdout(output);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn number(value: &Value, place: &str) -> f64 {
    value.pointer(place).and_then(Value::as_f64).unwrap_or_else(|| panic!("{place} of {value}"))
}

#[test]
fn bench_server_counts_every_request_of_every_case() {
    let line = "--path sim: --json --rate 300,500 --streams 3 --requests 40 --seed 7 --time 1m";
    let report = json(&bench("server", &format!("{line} {SHORT} --turn-share 0.5")));
    let results = report["results"].as_array().unwrap();
    let cases: Vec<(&Value, &Value)> =
        results.iter().map(|case| (&case["rate"], &case["streams"])).collect();
    let (none, three) = (&Value::Null, &Value::from(3));
    let rates = [Value::from(300.0), Value::from(500.0)];
    assert_eq!(cases, [(&rates[0], none), (&rates[1], none), (none, three)]);
    for case in results {
        assert_eq!((&case["requests_sent"], &case["requests_done"]), (&40.into(), &40.into()));
        assert_eq!(case["requests_unsent"], 0);
        assert!(case["refused_seconds"].as_object().unwrap().is_empty(), "{case}");
        for times in ["/ttft_seconds", "/total_seconds", "/queue_seconds", "/late_seconds"] {
            assert_eq!(number(case, &format!("{times}/count")), 40.0, "{times}");
            let at = |share: &str| number(case, &format!("{times}/{share}"));
            assert!(at("p50") <= at("p90") && at("p90") <= at("p95"), "{case}");
            assert!(at("p95") <= at("p99") && at("p99") <= at("max"), "{case}");
        }
        assert!(number(case, "/ttft_seconds/p50") <= number(case, "/total_seconds/p50"));
        // Of 2 to 6 tokens, one has nothing before it.
        let gaps = number(case, "/itl_seconds/count");
        assert!((40.0..=200.0).contains(&gaps), "{gaps}");
        let share = number(case, "/cached_share");
        assert!(share > 0.0 && share < 1.0, "conversations and prefixes are remembered: {share}");
        // Without an objective every request that is done is good.
        let good = number(case, "/goodput_per_second") * number(case, "/seconds");
        assert!((good - 40.0).abs() < 1e-6, "{good}");
    }
}

#[test]
fn bench_server_measures_a_running_server_and_compares() {
    let server = Server::start("sim:", &[]);
    let folder = tempfile::tempdir().unwrap();
    let old = folder.path().join("old.json");
    let line = format!("--server {} --streams 2 --requests 12 {SHORT}", server.address);
    std::fs::write(&old, stdout(&bench("server", &format!("{line} --json")))).unwrap();
    let table = stdout(&bench("server", &format!("{line} --compare {}", old.display())));
    for word in ["2 streams", "first token", "between tokens", "compared", "ttft_seconds/p99"] {
        assert!(table.contains(word), "{word}: {table}");
    }
    let other = format!("{line} --rate 100 --json --compare {}", old.display());
    let compared = json(&bench("server", &other))["compared"].as_array().unwrap().clone();
    assert!(!compared.is_empty() && compared.iter().all(|row| row["arrivals"] == "2 streams"));
}

#[test]
fn bench_server_tells_what_was_refused_and_how_fast() {
    let mut command =
        sconce(&["serve", "--listen", "127.0.0.1:0", "--model", "sim=sim:decode_us=5000"]);
    command
        .env("SCONCE__ENGINE__SEQUENCES_MAX", "1")
        .env("SCONCE__ENGINE__WAITING_MAX", "1")
        .env("SCONCE__SERVER__WITHDRAWAL", "0s");
    let server = Server::spawn(command);
    server.until_ready();
    let line = "--streams 8 --requests 40 --json --slo-ttft 1h --slo-itl 1us --warm-up 0";
    let report = json(&bench("server", &format!("--server {} {line} {SHORT}", server.address)));
    let case = &report["results"][0];
    let refused = number(case, "/refused_seconds/RESOURCE_EXHAUSTED/count");
    assert!(refused > 0.0, "{case}");
    assert_eq!(refused + number(case, "/requests_done"), 40.0);
    assert_eq!(number(case, "/goodput_per_second"), 0.0, "no token comes within a microsecond");
}

#[test]
fn bench_server_refuses_bad_values_by_their_flag() {
    for (line, flag) in [
        ("--rate 0", "--rate"),
        ("--rate x", "--rate"),
        ("--streams 0", "--streams"),
        ("--requests 0", "--requests"),
        ("--prompt-tokens 9-3", "--prompt-tokens"),
        ("--prompt-tokens 100000", "--prompt-tokens"),
        ("--turn-share 2", "--turn-share"),
        ("--prefixes 0", "--prefixes"),
        ("--connections 0", "--connections"),
        ("--compare /nonexistent.json", "--compare"),
    ] {
        let output = bench("server", &format!("--path sim: {line}"));
        assert_eq!(output.status.code(), Some(2), "{line}");
        assert!(stderr(&output).contains(flag), "{line}: {}", stderr(&output));
    }
}

/// An overload of a second, of a server that can run two and hold two more.
const SOAK: &str = "--path sim:decode_us=3000 --time 1s --cycle 1s --peak-time 1s --sequences 2 \
                    --waiting 2 --cache 1MiB";
/// Bounds that any machine keeps.
const LOOSE: &str = "--goodput-share 0 --leak-share 100 --refusal-time 1h";

#[test]
fn bench_soak_overloads_a_server_of_its_own_and_judges_it() {
    let report = json(&bench("soak", &format!("{SOAK} {SHORT} {LOOSE} --json")));
    assert!(report["broken"].as_array().unwrap().is_empty(), "{report}");
    let findings = &report["findings"];
    let cycle = &findings["cycles"][0];
    assert!(number(cycle, "/overload/tokens_per_second") > 0.0, "{cycle}");
    assert!(number(cycle, "/overload/refusal_seconds/count") > 0.0, "{cycle}");
    assert!(number(cycle, "/overload/loads") >= 1.0);
    for reading in [&findings["first"], &findings["last"]] {
        assert!(number(reading, "/resident_bytes") > 1e6, "{reading}");
        assert!(number(reading, "/open_files") > 3.0, "{reading}");
    }
    assert_eq!(findings["first"]["open_files"], findings["last"]["open_files"]);
    assert!(findings["violations"].as_array().unwrap().is_empty(), "{findings}");
}

#[test]
fn bench_soak_fails_where_a_promise_is_not_kept() {
    let bounds = "--goodput-share 1000 --leak-share 100 --refusal-time 0s";
    let output = bench("soak", &format!("{SOAK} {SHORT} {bounds}"));
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    for promise in ["goodput under overload", "99th percentile of the time until a refusal"] {
        assert!(stderr(&output).contains(promise), "{}", stderr(&output));
    }
    let output = bench("soak", "--path sim: --time 0s");
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--time"), "{}", stderr(&output));
}
