//! SmolLM2-135M-Instruct (the published Q4_1 file) against `transformers` on the dequantized weights.
//!
//! `tests/reference/smollm2_golden.py` writes the golden answers. The file itself is not in the
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

use stepping::{feed, fixture, load, options, smollm2};

/// Largest difference of a logprob from the reference when activations stay f32.
const TOLERANCE: f64 = 1e-3;

/// Share of positions whose likeliest token must be the reference's: llama.cpp, which quantizes
/// activations to 8 bits too, reaches 0.969 on this page.
const AGREEMENT: [(Precision, f64); 2] = [(Precision::Fast, 0.96), (Precision::Fine, 0.99)];

/// Reads the page teacher forced and hands each position's logits and golden entry to `check`.
fn read_page(path: &str, precision: Precision, check: &mut dyn FnMut(&[f32], &Value)) {
    let page = golden::read(fixture("smollm2_page.json").as_ref());
    let mut model = load(path, &options(precision));
    let id = model.state_mut().open().unwrap();
    for (token, top) in golden::ids(&page["input_ids"]).iter().zip(page["top5"].as_array().unwrap())
    {
        let logits = feed(model.as_mut(), id, &[*token]);
        check(&logits, top);
    }
}

#[test]
fn ten_chat_prompts_decode_greedily_as_the_reference_does() {
    let Some(path) = smollm2() else { return };
    let answers = golden::read(fixture("smollm2_golden.json").as_ref());
    let prompts = answers["prompts"].as_array().unwrap();
    assert_eq!(prompts.len(), 10);
    let mut model = load(&path, &options(Precision::Exact));
    for prompt in prompts {
        let name = prompt["name"].as_str().unwrap();
        let worst = golden::follow(model.as_mut(), prompt, name);
        eprintln!("{name}: logprobs differ by at most {worst:.2e}");
        assert!(worst <= TOLERANCE, "{name}: logprobs differ by {worst}");
    }
}

#[test]
fn a_page_read_exactly_has_the_logprobs_of_the_reference() {
    let Some(path) = smollm2() else { return };
    let mut worst = 0.0;
    read_page(&path, Precision::Exact, &mut |logits, top| {
        worst = f64::max(worst, golden::difference(logits, top));
    });
    eprintln!("page: logprobs differ by at most {worst:.2e}");
    assert!(worst <= TOLERANCE, "logprobs differ by {worst}");
}

#[test]
fn the_faster_precisions_choose_the_tokens_of_the_reference() {
    let Some(path) = smollm2() else { return };
    for (precision, least) in AGREEMENT {
        let (mut agreed, mut positions) = (0, 0);
        read_page(&path, precision, &mut |logits, top| {
            positions += 1;
            agreed += usize::from(golden::agrees(logits, top));
        });
        let agreement = f64::from(agreed as u32) / f64::from(positions);
        eprintln!("page, {precision}: {agreed} of {positions} positions agree");
        assert!(agreement > least, "{precision}: top-1 agreement {agreement}");
    }
}
