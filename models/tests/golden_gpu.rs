//! Whole models on the device that `SCONCE_PARITY_DEVICE` names: every fixture of every architecture
//! against its golden answers, as `golden_models.rs` has them on the CPU. Where none is named it is the
//! CPU, and one fixture of each. Emulated GPUs have `emulated.rs`.

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

use sconce_models::{DeviceChoice, LoadOptions, Precision};

use fixtures::Fixture;
use stepping::{load, options};

/// Names the device, as for the parity table of the kernels.
const DEVICE_VARIABLE: &str = "SCONCE_PARITY_DEVICE";
/// Largest difference of a log-probability from that of the reference, both in f32: sums are in other
/// orders than on the CPU, and in longer chains.
const LOGPROB_BOUND: f64 = 1e-3;

/// Steps every prompt of a fixture beside its golden answer; returns the largest difference of a
/// log-probability.
fn follow(fixture: &Fixture, device: DeviceChoice) -> f64 {
    // Dynamic rope is tested where it differs from plain rope: past the trained context.
    let context_length = (fixture.name == "llama_dynamic").then_some(48);
    let options = LoadOptions { device, context_length, ..options(Precision::Exact) };
    let mut model = load(fixture.path.to_str().unwrap(), &options);
    let prompts = fixture.golden["prompts"].as_array().unwrap();
    assert!(!prompts.is_empty(), "{}", fixture.name);
    let mut worst = 0.0;
    for (index, prompt) in prompts.iter().enumerate() {
        let name = format!("{} on {device}, prompt {index}", fixture.name);
        worst = f64::max(worst, golden::follow(model.as_mut(), prompt, &name));
    }
    assert_eq!(model.state().pages_used(), 0, "{}", fixture.name);
    worst
}

/// Compares the fixtures of an architecture.
fn compare(architecture: &str) {
    let named = std::env::var(DEVICE_VARIABLE).ok();
    let device: DeviceChoice = named.as_deref().unwrap_or("cpu").parse().unwrap();
    let all = fixtures::all();
    let of_it = all.iter().filter(|fixture| fixture.architecture == architecture);
    let chosen: Vec<_> = of_it.take(if named.is_some() { usize::MAX } else { 1 }).collect();
    assert!(!chosen.is_empty(), "no fixture of {architecture}");
    for fixture in chosen {
        let worst = follow(fixture, device);
        eprintln!(
            "{} on {device}: logprobs within {worst:.1e} of {LOGPROB_BOUND:.0e}",
            fixture.name
        );
        assert!(worst <= LOGPROB_BOUND, "{}: logprobs differ by {worst}", fixture.name);
    }
}

/// A test for each architecture, and the list of them.
macro_rules! compared {
    ($($test:ident: $architecture:literal,)*) => {
        $(#[test]
        fn $test() {
            compare($architecture);
        })*

        const COMPARED: &[&str] = &[$($architecture),*];
    };
}

compared! {
    llama_answers_as_its_reference: "llama",
    qwen3_answers_as_its_reference: "qwen3",
    qwen3_moe_answers_as_its_reference: "qwen3_moe",
    gemma3_answers_as_its_reference: "gemma3",
    glm4_moe_lite_answers_as_its_reference: "glm4_moe_lite",
    qwen3_next_answers_as_its_reference: "qwen3_next",
    qwen3_5_answers_as_its_reference: "qwen3_5",
    qwen3_5_moe_answers_as_its_reference: "qwen3_5_moe",
}

#[test]
fn no_architecture_is_left_out() {
    let all: Vec<_> = fixtures::ARCHITECTURES.iter().map(|(name, _)| *name).collect();
    assert_eq!(COMPARED, all);
}
