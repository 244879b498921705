//! `sconce quantize` on the tiny checkpoints of the models crate.

use serde_json::Value;

use crate::harness::{run, stderr, stdout};

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tests/fixtures/llama_f32");

#[test]
fn a_directory_is_written_that_inspect_can_read() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = folder.path().join("model");
    let output = output.to_str().expect("UTF-8");
    let written = run(&["quantize", SOURCE, output, "--format", "nvfp4", "--json"]);
    let report: Value = serde_json::from_str(&stdout(&written)).expect("is JSON");
    assert_eq!(report["format"], "nvfp4");
    assert!(report["bytes_after"].as_u64() < report["bytes_before"].as_u64(), "{report}");
    assert!(stderr(&written).contains("quantize: "), "{}", stderr(&written));
    let inspected = run(&["inspect", output, "--json"]);
    let inspected: Value = serde_json::from_str(&stdout(&inspected)).expect("is JSON");
    assert_eq!(inspected["load_error"], Value::Null);

    let again = run(&["quantize", SOURCE, output, "--format", "int4"]);
    assert_eq!(again.status.code(), Some(2));
    assert!(stderr(&again).contains("exists already"), "{}", stderr(&again));
}

#[test]
fn what_cannot_be_quantized_is_wrong_usage_and_says_why() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = folder.path().join("model");
    let output = output.to_str().expect("UTF-8");
    let gguf =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tests/fixtures/gguf_llama_q4_0.gguf");
    for (source, format, expected) in [
        (SOURCE, "int5", "possible values: int4, int8, mxfp4, mxfp8, nvfp4"),
        (gguf, "int4", "a GGUF file"),
        ("/nowhere/model", "int4", "/nowhere/model"),
    ] {
        let refused = run(&["quantize", source, output, "--format", format]);
        assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
        assert!(stderr(&refused).contains(expected), "{}", stderr(&refused));
    }
    assert_eq!(std::fs::read_dir(folder.path()).expect("is there").count(), 0);
}
