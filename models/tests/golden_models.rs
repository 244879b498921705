//! Every architecture in every packing against `transformers` in float32: greedy tokens and the five
//! best log-probabilities of each step, for each checkpoint of `tests/fixtures` with golden answers.
//!
//! The answers are those of the weights a checkpoint stands for, `scale * code + bias` in float32, so
//! what is tested is the reading and the arithmetic, not the loss by quantization. The table in
//! `docs/MODELS.md` says what was compared; published checkpoints have test files of their own.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stderr, reason = "how far a bound is from what was measured")]

#[path = "support/fixtures.rs"]
mod fixtures;
#[path = "support/gguf.rs"]
mod gguf;
#[path = "support/golden.rs"]
mod golden;
#[path = "support/stepping.rs"]
mod stepping;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use sconce_models::{LoadOptions, Precision};
use serde_json::Value;

use fixtures::Fixture;
use stepping::{load, options};

/// Smallest distance between the two best tokens of any step of a golden answer, many times the loosest
/// bound on log-probabilities: no token may hang on rounding.
const LEAST_MARGIN: f64 = 0.05;

/// Where the table in `docs/MODELS.md` starts and ends.
const MARKERS: [&str; 2] = ["<!-- compared: begin -->\n", "<!-- compared: end -->\n"];

/// Steps every prompt of a fixture beside its golden answer.
fn compare(fixture: &Fixture, precision: Precision) -> f64 {
    let context_length = fixture.context_length();
    let options = LoadOptions { context_length, ..options(precision) };
    let mut model = load(fixture.path.to_str().unwrap(), &options);
    let mut worst = 0.0;
    for (index, prompt) in prompts(&fixture.golden).iter().enumerate() {
        let name = format!("{}, prompt {index}", fixture.name);
        worst = f64::max(worst, golden::follow(model.as_mut(), prompt, &name));
    }
    assert_eq!(model.state().pages_used(), 0, "{}", fixture.name);
    worst
}

/// Compares all fixtures of an architecture.
fn compare_all(architecture: &str) {
    let all = fixtures::all();
    let chosen: Vec<_> = all.iter().filter(|f| f.architecture == architecture).collect();
    assert!(!chosen.is_empty(), "no fixture of {architecture}");
    for fixture in chosen {
        let (worst, bound) = (compare(fixture, Precision::Exact), fixture.logprob_bound());
        eprintln!("{}: logprobs within {worst:.1e} of {bound:.0e}", fixture.name);
        assert!(worst <= bound, "{}: logprobs differ by {worst}", fixture.name);
    }
}

fn prompts(golden: &Value) -> &[Value] {
    let prompts = golden["prompts"].as_array().unwrap();
    assert!(!prompts.is_empty());
    prompts
}

/// A test for each architecture, and the list of them.
macro_rules! compared {
    ($($test:ident: $architecture:literal,)*) => {
        $(#[test]
        fn $test() {
            compare_all($architecture);
        })*

        const COMPARED: &[&str] = &[$($architecture),*];
    };
}

compared! {
    llama_answers_as_transformers_does: "llama",
    qwen3_answers_as_transformers_does: "qwen3",
    qwen3_moe_answers_as_transformers_does: "qwen3_moe",
    gemma3_answers_as_transformers_does: "gemma3",
    glm4_moe_lite_answers_as_transformers_does: "glm4_moe_lite",
    qwen3_next_answers_as_transformers_does: "qwen3_next",
    qwen3_5_answers_as_transformers_does: "qwen3_5",
    qwen3_5_moe_answers_as_transformers_does: "qwen3_5_moe",
}

#[test]
fn no_token_of_a_golden_answer_hangs_on_rounding() {
    for fixture in fixtures::all() {
        for prompt in prompts(&fixture.golden) {
            let margin = prompt["min_margin"].as_f64().unwrap();
            assert!(margin >= LEAST_MARGIN, "{}: {margin}", fixture.name);
        }
    }
}

#[test]
fn dense_weights_are_computed_in_f32_in_the_fine_precision_too() {
    let all = fixtures::all();
    let fixture = all.iter().find(|fixture| fixture.name == "llama_bf16").unwrap();
    assert_eq!(compare(fixture, Precision::Fine), compare(fixture, Precision::Exact));
}

/// One row for each architecture and packing: how many checkpoints, how many tokens, which bound.
fn table() -> String {
    let mut rows = BTreeMap::new();
    for fixture in fixtures::all() {
        let order = COMPARED.iter().position(|name| *name == fixture.architecture).unwrap();
        let bound = fixture.logprob_bound();
        let lengths =
            prompts(&fixture.golden).iter().map(|p| golden::ids(&p["greedy_tokens"]).len());
        let (checkpoints, tokens, _) =
            rows.entry((order, fixture.packing.clone())).or_insert((0, 0, bound));
        *checkpoints += 1;
        *tokens += lengths.sum::<usize>();
    }
    let mut text = String::from(
        "| architecture | weights | checkpoints | greedy tokens, all equal | log-probabilities of the best five within |\n\
         |---|---|---|---|---|\n",
    );
    for ((order, packing), (checkpoints, tokens, bound)) in rows {
        let (architecture, packing) = (COMPARED[order], packing.label());
        writeln!(text, "| `{architecture}` | {packing} | {checkpoints} | {tokens} | {bound:.0e} |")
            .unwrap();
    }
    text
}

/// `SCONCE_BLESS=1` rewrites the table instead.
#[test]
fn the_documented_comparisons_are_those_that_are_made() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/MODELS.md");
    let document = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = document.split_once(MARKERS[0]).unwrap();
    let (found, after) = rest.split_once(MARKERS[1]).unwrap();
    let expected = table();
    if std::env::var_os("SCONCE_BLESS").is_some() {
        let text = [before, MARKERS[0], &expected, MARKERS[1], after].concat();
        std::fs::write(&path, text).unwrap();
    } else {
        assert_eq!(found, expected, "docs/MODELS.md: run this test with SCONCE_BLESS=1");
    }
}
