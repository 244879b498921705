//! Llama checkpoints against `transformers` in float32: greedy tokens and logprobs.
//!
//! Every folder of `tests/fixtures` with a `golden.json`, and every `gguf_llama_<type>.gguf` beside
//! its `.golden.json`, is a tiny checkpoint and what transformers answered for its (dequantized)
//! weights; the scripts of `tests/reference` make them. SmolLM2 has a file of its own.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/gguf.rs"]
mod gguf;
#[path = "support/golden.rs"]
mod golden;
#[path = "support/stepping.rs"]
mod stepping;

use sconce_models::{LoadOptions, Model, Precision};
use serde_json::Value;

use stepping::{fixture, fixtures, load, options};

/// Largest difference of a logprob; both sides compute in f32, in other orders.
const TOLERANCE: f64 = 1e-3;

/// Steps every prompt of a golden file.
fn compare_all(model: &mut dyn Model, golden: &Value, name: &str) {
    let prompts = golden["prompts"].as_array().unwrap();
    assert!(!prompts.is_empty(), "{name} has no prompts");
    for (index, prompt) in prompts.iter().enumerate() {
        compare(model, prompt, &format!("{name}, prompt {index}"));
    }
    assert_eq!(model.state().pages_used(), 0);
}

/// Steps one prompt greedily beside the golden answer; returns the largest difference of a logprob.
fn compare(model: &mut dyn Model, prompt: &Value, name: &str) -> f64 {
    let difference = golden::follow(model, prompt, name);
    assert!(difference <= TOLERANCE, "{name}: logprobs differ by {difference}");
    difference
}

#[test]
fn every_fixture_answers_as_transformers_does() {
    for folder in fixtures() {
        let name = folder.file_name().unwrap().to_str().unwrap();
        let golden = golden::read(&folder.join("golden.json"));
        let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
        let mut options = options(Precision::Exact);
        if config.contains("dynamic") {
            // Dynamic rope is tested where it differs from plain rope: past the trained context.
            options = LoadOptions { context_length: Some(48), ..options };
        }
        let mut model = load(folder.to_str().unwrap(), &options);
        compare_all(model.as_mut(), &golden, name);
    }
}

#[test]
fn every_gguf_type_answers_as_its_dequantized_weights_do() {
    let mut compared = 0;
    for entry in std::fs::read_dir(fixture("")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_string();
        if !(name.starts_with("gguf_llama_") && name.ends_with(".gguf")) {
            continue;
        }
        let golden = golden::read(&path.with_extension("golden.json"));
        let mut model = load(path.to_str().unwrap(), &options(Precision::Exact));
        compare_all(model.as_mut(), &golden, &name);
        compared += 1;
    }
    assert!(compared > 0, "no gguf_llama_*.gguf among the fixtures");
}

#[test]
fn dense_weights_are_computed_in_f32_in_either_precision() {
    let folder = fixtures().into_iter().find(|path| path.ends_with("llama_bf16")).unwrap();
    let prompt = &golden::read(&folder.join("golden.json"))["prompts"][0];
    let path = folder.to_str().unwrap();
    let fast = compare(load(path, &options(Precision::Fast)).as_mut(), prompt, "fast");
    let exact = compare(load(path, &options(Precision::Exact)).as_mut(), prompt, "exact");
    assert_eq!(fast, exact);
}
