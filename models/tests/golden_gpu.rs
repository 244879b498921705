//! Whole models on the device that `SCONCE_PARITY_DEVICE` names: every fixture of every architecture
//! against its golden answers, exactly, as `golden_models.rs` has them on the CPU, and in the default
//! precision. Where none is named it is the CPU, exactly for one fixture of each. Emulated GPUs have
//! `emulated.rs`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stderr, reason = "how far a bound is from what was measured")]

#[path = "support/fixtures.rs"]
mod fixtures;
#[path = "support/gguf.rs"]
mod gguf;
#[path = "support/golden.rs"]
mod golden;
#[path = "support/rounded.rs"]
mod rounded;
#[path = "support/stepping.rs"]
mod stepping;

use sconce_kernels::gpu::{has_wgmma, with_wgmma};
use sconce_models::{DeviceChoice, LoadOptions, Precision};

use fixtures::Fixture;
use rounded::{Prompts, Runner};
use stepping::{load, options};

/// Names the device, as for the parity table of the kernels.
const DEVICE_VARIABLE: &str = "SCONCE_PARITY_DEVICE";
/// Largest difference of a log-probability from that of the reference, both in f32: sums are in other
/// orders than on the CPU, and in longer chains.
const LOGPROB_BOUND: f64 = 1e-3;

/// The device that is named, if one is.
fn named() -> Option<DeviceChoice> {
    let name = std::env::var(DEVICE_VARIABLE).ok()?;
    Some(name.parse::<DeviceChoice>().unwrap().resolve().unwrap())
}

/// The device, and options for it.
fn device_options(precision: Precision) -> (DeviceChoice, LoadOptions) {
    let device = named().unwrap_or_default();
    (device, LoadOptions { device, ..options(precision) })
}

/// Steps every prompt of a fixture beside its golden answer; returns the largest difference of a
/// log-probability.
fn follow(fixture: &Fixture) -> f64 {
    let (device, options) = device_options(Precision::Exact);
    let options = LoadOptions { context_length: fixture.context_length(), ..options };
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
    let device = named().unwrap_or_default();
    let all = fixtures::all();
    let of_it = all.iter().filter(|fixture| fixture.architecture == architecture);
    let chosen: Vec<_> = of_it.take(if named().is_some() { usize::MAX } else { 1 }).collect();
    assert!(!chosen.is_empty(), "no fixture of {architecture}");
    for fixture in chosen {
        let worst = follow(fixture);
        eprintln!(
            "{} on {device}: logprobs within {worst:.1e} of {LOGPROB_BOUND:.0e}",
            fixture.name
        );
        assert!(worst <= LOGPROB_BOUND, "{}: logprobs differ by {worst}", fixture.name);
    }
}

/// Compares all fixtures of an architecture in the default precision.
fn compare_rounded(architecture: &str) {
    let (device, options) = device_options(Precision::default());
    let all = fixtures::all();
    for fixture in all.iter().filter(|fixture| fixture.architecture == architecture) {
        rounded::hold(fixture, Prompts::All, runner(device), options.clone());
    }
}

/// What runs the operators on a device.
fn runner(device: DeviceChoice) -> Runner {
    match device {
        DeviceChoice::Cpu => Runner::Cpu,
        DeviceChoice::Cuda(_) => Runner::Cuda,
        DeviceChoice::Metal => Runner::Metal,
        DeviceChoice::Auto => panic!("{DEVICE_VARIABLE}: found no device, expected one"),
    }
}

/// A test of either precision for each architecture, and the list of them.
macro_rules! compared {
    ($($architecture:literal: $exact:ident, $rounded:ident;)*) => {
        $(#[test]
        fn $exact() {
            compare($architecture);
        }

        #[test]
        fn $rounded() {
            compare_rounded($architecture);
        })*

        const COMPARED: &[&str] = &[$($architecture),*];
    };
}

compared! {
    "llama": llama_answers_as_its_reference, llama_rounded_is_near_its_reference;
    "qwen3": qwen3_answers_as_its_reference, qwen3_rounded_is_near_its_reference;
    "qwen3_moe": qwen3_moe_answers_as_its_reference, qwen3_moe_rounded_is_near_its_reference;
    "gemma3": gemma3_answers_as_its_reference, gemma3_rounded_is_near_its_reference;
    "glm4_moe_lite": glm4_moe_lite_answers_as_its_reference, glm4_moe_lite_rounded_is_near_its_reference;
    "qwen3_next": qwen3_next_answers_as_its_reference, qwen3_next_rounded_is_near_its_reference;
    "qwen3_5": qwen3_5_answers_as_its_reference, qwen3_5_rounded_is_near_its_reference;
    "qwen3_5_moe": qwen3_5_moe_answers_as_its_reference, qwen3_5_moe_rounded_is_near_its_reference;
}

#[test]
fn no_architecture_is_left_out() {
    let all: Vec<_> = fixtures::ARCHITECTURES.iter().map(|(name, _)| *name).collect();
    assert_eq!(COMPARED, all);
}

/// On GPUs of compute capability 9.0, whatever `SCONCE_WGMMA` says.
#[test]
fn prompts_multiplied_by_wgmma_are_near_their_reference() {
    let (device, options) = device_options(Precision::default());
    if !has_wgmma(&device.open().unwrap()) {
        eprintln!("skipped: {device} has no wgmma");
        return;
    }
    for fixture in fixtures::all().iter().filter(|it| rounded::CHOSEN.contains(&&*it.name)) {
        let by = |wgmma| {
            with_wgmma(wgmma, || {
                rounded::hold(fixture, Prompts::FirstLong, Runner::Cuda, options.clone())
            })
        };
        assert_ne!(by(true), by(false), "{}: wgmma was not what ran", fixture.name);
    }
}
