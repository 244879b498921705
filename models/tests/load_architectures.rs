//! What loading says of an architecture's own parameters: experts that do not fit, state by the token.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/gguf.rs"]
mod gguf;
#[path = "support/golden.rs"]
mod golden;
#[path = "support/stepping.rs"]
mod stepping;

use std::ops::ControlFlow;
use std::path::PathBuf;

use sconce_models::{Precision, StepShape, StepWork, estimate};
use serde_json::{Value, json};

use stepping::{fixture, load, options};

/// The error of loading a fixture whose configuration has other values.
fn refused(name: &str, change: Value) -> String {
    let (source, folder) = (PathBuf::from(fixture(name)), tempfile::tempdir().unwrap());
    for entry in std::fs::read_dir(&source).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let mut config = golden::read(&source.join("config.json"));
    config.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let options = options(Precision::Exact);
    let path = folder.path().to_str().unwrap();
    let loaded = sconce_models::load(path, &options, &mut |_| ControlFlow::Continue(()));
    loaded.err().map(|error| error.to_string()).unwrap()
}

#[test]
fn experts_that_do_not_fit_the_configuration_are_named() {
    let cases = [
        (
            "qwen3_moe_hub",
            json!({"num_experts": 9}),
            "model.layers.0.mlp.gate.weight: expected shape [9, 32], found [8, 32]",
        ),
        (
            "qwen3_moe_hub",
            json!({"moe_intermediate_size": 24}),
            "model.layers.0.mlp.experts.0.gate_proj.weight: expected shape [24, 32]",
        ),
        (
            "qwen3_moe_f32",
            json!({"moe_intermediate_size": 8}),
            "model.layers.0.mlp.experts.gate_up_proj: expected shape [5, 16, 32], found [5, 32, 32]",
        ),
        (
            "qwen3_moe_f32",
            json!({"mlp_only_layers": []}),
            "model.layers.1.mlp.gate.weight is missing",
        ),
        (
            "qwen3_moe_f32",
            json!({"num_experts_per_tok": 6}),
            "num_experts_per_tok: expected at most 5",
        ),
    ];
    for (name, change, expected) in cases {
        let error = refused(name, change);
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_token_is_cached_as_its_latent_and_one_rope_key_a_layer() {
    let foreseen = estimate(&fixture("glm4_moe_lite_f32"), &options(Precision::Exact)).unwrap();
    let (layers, latent, rope_key, f32_bytes) = (2, 16, 8, 4);
    assert_eq!(foreseen.state_bytes_per_token, layers * (latent + rope_key) * f32_bytes);
}

/// The loaded fixture's account of a step in which one sequence advances by `len` tokens.
fn step_work(name: &str, first_position: usize, len: usize) -> (StepWork, u64) {
    let model = load(&fixture(name), &options(Precision::Exact));
    let shape = StepShape { sequences: 1, first_position, len, logits: true };
    (model.work().unwrap().step(shape), model.footprint().weights_bytes)
}

#[test]
fn a_long_step_reads_every_weight_but_an_untied_table() {
    for (name, table) in [("gemma3_f32", 0), ("qwen3_moe_f32", 96 * 32 * 4)] {
        let (work, held) = step_work(name, 0, 10_000);
        assert_eq!(work.weight_bytes.round() as u64 + table, held, "{name}");
        let (one, _) = step_work(name, 0, 1);
        assert!(one.weight_bytes <= work.weight_bytes, "{name}");
    }
}

#[test]
fn windows_bound_what_a_late_token_reads() {
    let (early, late, later) = (
        step_work("gemma3_f32", 0, 1).0,
        step_work("gemma3_f32", 40, 1).0,
        step_work("gemma3_f32", 80, 1).0,
    );
    assert!(early.state_bytes < late.state_bytes && late.state_bytes < later.state_bytes);
    let per_token = estimate(&fixture("gemma3_f32"), &options(Precision::Exact)).unwrap();
    // One of the three layers has no window.
    let expected = (40 * per_token.state_bytes_per_token / 3) as f64;
    assert_eq!(later.state_bytes - late.state_bytes, expected);
}
