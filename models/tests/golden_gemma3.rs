//! Gemma 3 270M (the published Q4_K_M file) against `transformers` on the dequantized weights.
//!
//! `tests/reference/gemma3_golden.py` writes the golden answers. The file itself is not in the
//! repository: without it these tests say that they skip, except in CI, where they fail.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stderr, reason = "a skipped test says so")]

#[path = "support/gguf.rs"]
mod gguf;
#[path = "support/golden.rs"]
mod golden;
#[path = "support/stepping.rs"]
mod stepping;

use sconce_models::Precision;
use serde_json::Value;

use stepping::{fetched, fixture, load, options};

const FILE: &str = "gemma-3-270m-q4_k_m.gguf";

/// Largest difference of a logprob from the reference when activations stay f32.
const TOLERANCE: f64 = 1e-3;

/// Share of decoded positions whose likeliest token must be the reference's.
const AGREEMENT: [(Precision, f64); 2] = [(Precision::Fast, 0.96), (Precision::Fine, 0.99)];

/// Tokens that a layer with a window sees.
const WINDOW: usize = 512;

fn prompts() -> Vec<Value> {
    let answers = golden::read(fixture("gemma3_golden.json").as_ref());
    answers["prompts"].as_array().unwrap().clone()
}

#[test]
fn ten_prompts_decode_greedily_as_the_reference_does() {
    let Some(path) = fetched("SCONCE_GEMMA3", FILE) else { return };
    let prompts = prompts();
    assert_eq!(prompts.len(), 10);
    assert!(prompts.iter().any(|prompt| golden::ids(&prompt["input_ids"]).len() > WINDOW + 256));
    let mut model = load(&path, &options(Precision::Exact));
    for prompt in &prompts {
        let name = prompt["name"].as_str().unwrap();
        let worst = golden::follow(model.as_mut(), prompt, name);
        eprintln!("{name}: logprobs differ by at most {worst:.2e}");
        assert!(worst <= TOLERANCE, "{name}: logprobs differ by {worst}");
    }
}

#[test]
fn the_faster_precisions_choose_the_tokens_of_the_reference() {
    let Some(path) = fetched("SCONCE_GEMMA3", FILE) else { return };
    AGREEMENT.into_iter().for_each(|(precision, least)| agree(&path, precision, least));
}

fn agree(path: &str, precision: Precision, least: f64) {
    let mut model = load(path, &options(precision));
    let (mut agreed, mut positions, mut worst) = (0, 0, 0.0);
    for prompt in prompts() {
        golden::forced(model.as_mut(), &prompt, &mut |logits, top| {
            positions += 1;
            agreed += usize::from(golden::agrees(logits, top));
            worst = f64::max(worst, golden::difference(logits, top));
        });
    }
    let agreement = f64::from(agreed as u32) / f64::from(positions);
    eprintln!(
        "{precision}: {agreed} of {positions} positions agree; logprobs differ by {worst:.2e}"
    );
    assert!(agreement > least, "{precision}: top-1 agreement {agreement}");
}
