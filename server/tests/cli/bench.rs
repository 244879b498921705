//! `sconce bench engine` and `sconce bench kernels`: which cases, which form, and what is refused.
//! How long anything takes is of no concern here.

use serde_json::Value;

use crate::harness::{run, stderr, stdout};

/// A llama of a few kilobytes with real weights, of which the work can be counted.
const LLAMA: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tests/fixtures/gguf_llama_q4_0.gguf");

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn engine(path: &str, line: &str) -> std::process::Output {
    let words: Vec<&str> = line.split_whitespace().collect();
    run(&[&["bench", "engine", "--path", path][..], &words].concat())
}

#[test]
fn bench_engine_reports_every_case_it_was_asked_for() {
    let line = "--json --threads 1 -r 2 -p 8,16 -g 4 -d 0,5 -s 1,2 --pairs 8+2 --no-peaks";
    let report = json(&stdout(&engine("sim:", line)));
    let cases: Vec<String> = report["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|case| {
            assert!(case["tokens_per_second_median"].as_f64().unwrap() > 0.0, "{case}");
            assert_eq!(case["seconds"].as_array().unwrap().len(), 2);
            assert_eq!(case["threads"], 1);
            let work = case["work"].as_str().unwrap();
            format!("{work} {}@{}x{}", case["tokens"], case["depth"], case["streams"])
        })
        .collect();
    let at = |depth| {
        [
            format!("prefill 8@{depth}x1"),
            format!("prefill 16@{depth}x1"),
            format!("decode 4@{depth}x1"),
            format!("decode 4@{depth}x2"),
            format!("prefill+decode 10@{depth}x1"),
            format!("prefill+decode 10@{depth}x2"),
        ]
    };
    assert_eq!(cases, [at(0), at(5)].concat());
}

#[test]
fn bench_engine_counts_work_and_shares_of_peaks_on_each_number_of_threads() {
    let line = "-o json -r 3 -p 8 -g 4 -t 1,2 --step-tokens 4,8 --precision exact";
    let report = json(&stdout(&engine(LLAMA, line)));
    assert!(!report["machine"]["processor"].as_str().unwrap().is_empty());
    assert!(!report["machine"]["isa"].as_str().unwrap().is_empty());
    assert_eq!(report["precision"], "exact");
    assert_eq!(report["weight_format"], "Q4_0");
    for (peaks, threads) in report["peaks"].as_array().unwrap().iter().zip([1, 2]) {
        assert_eq!(peaks["threads"], threads);
        assert!(peaks["read_bytes_per_second"].as_f64().unwrap() > 0.0, "{peaks}");
    }
    let results = report["results"].as_array().unwrap();
    let held = report["weight_bytes"].as_f64().unwrap();
    assert_eq!(results.len(), 2 * 3);
    for case in results {
        let number =
            |field: &str| case[field].as_f64().unwrap_or_else(|| panic!("{field}: {case}"));
        for field in ["read_bandwidth_share", "compute_share", "float_macs_per_token"] {
            assert!(number(field) > 0.0 && number(field).is_finite(), "{field}: {case}");
        }
        assert_eq!(number("integer_macs_per_token"), 0.0);
        let (least, most) = (number("seconds_min"), number("seconds_max"));
        assert!(least <= number("seconds_median") && number("seconds_median") <= most);
        assert!(number("seconds_stddev") <= most - least);
        // The table of embeddings is held, and not read by a token.
        let read = number("weight_bytes_per_token");
        assert!(if case["work"] == "decode" { read <= held } else { read <= held / 4.0 }, "{case}");
    }
}

#[test]
fn bench_engine_writes_a_line_for_each_result_or_a_table() {
    let line = "-r 1 -p 4 -g 2 -s 1,3 --threads 1 --no-peaks --warm-up 0";
    let lines = stdout(&engine(LLAMA, &format!("{line} --output jsonl")));
    let lines: Vec<Value> = lines.lines().map(json).collect();
    assert_eq!(lines.len(), 3);
    for line in &lines {
        assert_eq!((&line["path"], &line["threads"]), (&Value::from(LLAMA), &Value::from(1)));
        assert!(line["read_bandwidth_share"].is_null() && line["machine"].is_object());
        assert_eq!(line["step_tokens_max"].is_null(), line["work"] == "decode", "{line}");
    }
    let table = stdout(&engine(LLAMA, line));
    // Tokens, depth, streams, threads, tokens of a step.
    let cells = |line: &str| line.split_whitespace().skip(1).take(5).collect::<Vec<_>>().join(" ");
    let rows: Vec<String> =
        table.lines().filter(|line| line.starts_with("decode")).map(cells).collect();
    assert_eq!(rows, ["2 0 1 1 1", "2 0 3 1 3"], "{table}");
    assert!(table.contains("llama") && table.contains("Q4_0"), "{table}");
}

#[test]
fn bench_engine_refuses_what_the_model_has_no_room_for_by_its_flag() {
    for (line, flag) in [
        ("-d 100000000", "--depths"),
        ("-d 18446744073709551615", "--depths"),
        ("--pairs 18446744073709551615+1", "--pairs"),
        ("-s 100000", "--streams"),
        ("--step-tokens 100000", "--step-tokens"),
        ("--threads 0", "--threads"),
        ("--threads 5000", "--threads"),
        ("-r 0", "--repetitions"),
        ("-p 0 -g 0", "--prompts"),
    ] {
        let output = engine(LLAMA, &format!("{line} --no-peaks"));
        assert_eq!(output.status.code(), Some(2), "{line}");
        assert!(stderr(&output).contains(flag), "{line}: {}", stderr(&output));
    }
}

/// Sizes of operators that take no time.
const TINY: &str = "--hidden 64 --intermediate 128 --vocab 80 --heads 4 --kv-heads 2 --head-dim 16 \
                    --experts 4 --experts-per-token 2 --expert-width 64 --key-heads 2 \
                    --value-heads 4 --key-dim 16 --value-dim 16 --latent-heads 2 --latent-dim 64 \
                    --rope-dim 8";

fn kernels(line: &str) -> std::process::Output {
    let words: Vec<&str> = line.split_whitespace().collect();
    run(&[&["bench", "kernels"][..], &words].concat())
}

#[test]
fn bench_kernels_measures_what_it_is_asked_for_on_each_level_and_number_of_threads() {
    let wanted = "--only matmul,attention,rope --formats q4_0 --activations f32,int8 --rows 1,3";
    let how = "-d 0,70 -r 2 --warm --isa portable -t 1,2 --output json";
    let report = json(&stdout(&kernels(&format!("{TINY} {wanted} {how}"))));
    assert_eq!(report["sizes"]["hidden"], 64);
    assert!(report["machine"].is_object() && report["machine"]["isa"].is_null());
    assert_eq!(report["peaks"].as_array().unwrap().len(), 2);
    let results = report["results"].as_array().unwrap();
    let count = |operator: &str| results.iter().filter(|row| row["operator"] == operator).count();
    // Two shapes, two forms, two rows; storage of keys and values, two depths, two rows; two rows.
    assert_eq!([count("matmul"), count("attention"), count("rope")], [2 * 8, 2 * 8, 2 * 2]);
    assert_eq!(results.len(), 2 * (8 + 8 + 2));
    for row in results {
        assert_eq!(row["isa"], "portable");
        assert_eq!(row["seconds"].as_array().unwrap().len(), 2);
        let share = row["bound_share"].as_f64().unwrap();
        assert!(share > 0.0 && share.is_finite(), "{row}");
        assert!(row["bound"] == "read" || row["bound"] == "compute", "{row}");
        assert!(row["gigabytes_per_second"].as_f64().unwrap() > 0.0, "{row}");
    }
}

#[test]
fn bench_kernels_writes_a_table_or_lines() {
    let line = format!("{TINY} --only rms_norm --rows 1 -r 1 --no-peaks -t 1 --warm");
    let table = stdout(&kernels(&line));
    assert!(table.contains("operator") && table.contains("rms_norm"), "{table}");
    let lines = stdout(&kernels(&format!("{line} --output jsonl")));
    let row = json(&lines);
    assert_eq!((&row["operator"], &row["rows"]), (&Value::from("rms_norm"), &Value::from(1)));
    assert!(row["bound_share"].is_null() && row["machine"].is_object(), "{row}");
}

#[test]
fn bench_kernels_prints_what_was_measured_before_a_failure() {
    // The table of embeddings, which is the last, has no room.
    let line = "--only rms_norm,embedding --formats f32 --hidden 1048576 --vocab 1048576";
    for form in ["table", "json", "jsonl"] {
        let output = kernels(&format!("{line} --rows 1 -r 1 --no-peaks -t 1 --warm -o {form}"));
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(stderr(&output).contains("expected at most 4294967296 bytes"));
        let printed = String::from_utf8_lossy(&output.stdout);
        assert_eq!(printed.matches("rms_norm").count(), 1, "{form}: {printed}");
    }
}

#[test]
fn bench_kernels_refuses_options_that_leave_nothing_to_measure() {
    for form in ["table", "json", "jsonl"] {
        let output = kernels(&format!("{TINY} --only lm_head --rows 64 --no-peaks -o {form}"));
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains("nothing to measure"), "{}", stderr(&output));
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn bench_kernels_refuses_bad_values_by_their_flag() {
    for (line, flag) in [
        ("--only matmul,frobnicate", "--only"),
        ("--formats q9", "--formats"),
        ("--activations int4", "--activations"),
        ("--isa sse9", "--isa"),
        ("--rows 0", "--rows"),
        ("--hidden 100", "--hidden"),
        ("--heads 5 --kv-heads 2", "--heads"),
        ("--repetitions 0", "--repetitions"),
        ("--threads 0", "--threads"),
        ("--preset gpt", "--preset"),
    ] {
        let output = kernels(&format!("{line} --no-peaks"));
        assert_eq!(output.status.code(), Some(2), "{line}");
        assert!(stderr(&output).contains(flag), "{line}: {}", stderr(&output));
    }
}
