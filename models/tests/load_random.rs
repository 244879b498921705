//! Models with random weights: the same again from a seed, on the processor and emulated, and what is
//! told of them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/gguf.rs"]
mod gguf;
#[path = "support/stepping.rs"]
mod stepping;

use std::ops::ControlFlow;

use sconce_models::{LoadOptions, Model, Precision, QuantizeFormat, load_random};
use serde_json::{Value, json};

use stepping::{feed, options};

fn config() -> Value {
    json!({
        "model_type": "qwen3_next", "vocab_size": 96, "hidden_size": 128, "num_hidden_layers": 2,
        "full_attention_interval": 2, "num_attention_heads": 4, "num_key_value_heads": 1,
        "head_dim": 32, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
        "linear_key_head_dim": 16, "linear_value_head_dim": 32, "num_experts": 6,
        "num_experts_per_tok": 2, "moe_intermediate_size": 128,
        "shared_expert_intermediate_size": 128, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 256,
    })
}

fn load(seed: u64, options: &LoadOptions) -> Box<dyn Model> {
    load_random(config(), seed, options, &mut |_| ControlFlow::Continue(())).unwrap()
}

/// Logits after a prompt and one more token.
fn answer(seed: u64) -> Vec<u32> {
    let mut model = load(seed, &options(Precision::Fast));
    let id = model.state_mut().open().unwrap();
    feed(model.as_mut(), id, &[1, 5, 90, 17, 2]);
    let logits = feed(model.as_mut(), id, &[7]);
    assert!(logits.iter().all(|logit| logit.is_finite()), "{logits:?}");
    let spread = logits.iter().fold(0.0_f32, |most, logit| most.max((logit - logits[0]).abs()));
    assert!(spread > 0.01, "all logits are alike: {spread}");
    logits.iter().map(|logit| logit.to_bits()).collect()
}

fn expect_answers() {
    let first = answer(3);
    assert_eq!(answer(3), first, "the same seed");
    assert_ne!(answer(4), first, "another seed");
}

#[test]
fn a_seed_answers_the_same_twice_and_another_differently() {
    expect_answers();
}

#[cfg(feature = "emulate")]
#[test]
fn emulated_a_seed_answers_the_same_twice_and_another_differently() {
    use sconce_kernels::gpu::{Language, emulate};
    for language in [Language::Cuda, Language::Metal] {
        emulate(language, expect_answers);
    }
}

#[test]
fn a_random_model_says_what_it_is() {
    let model = load(3, &options(Precision::Fast));
    let info = model.info();
    assert_eq!((info.architecture.as_str(), info.layers), ("qwen3_next", 2));
    assert_eq!(info.weight_format, "random, 4-bit");
    // The experts alone are 2 layers of 6 of 3 matrices.
    assert!(info.parameters > 2 * 6 * 3 * 128 * 128, "{}", info.parameters);
    assert!(model.footprint().weights_bytes > info.parameters / 2);
    let other = load(4, &options(Precision::Fast));
    assert_ne!(other.info().fingerprint, info.fingerprint);
    assert_eq!(load(3, &options(Precision::Fast)).info().fingerprint, info.fingerprint);
}

#[test]
fn random_weights_are_not_quantized_and_their_shape_must_be_known() {
    let format = QuantizeFormat::ALL[0];
    let quantized = LoadOptions { quantize: Some(format), ..options(Precision::Fast) };
    let load = |config, options: &LoadOptions| {
        load_random(config, 1, options, &mut |_| ControlFlow::Continue(()))
            .err()
            .unwrap()
            .to_string()
    };
    assert!(load(config(), &quantized).contains("quantize"));
    let unknown = load(json!({"model_type": "abacus"}), &options(Precision::Fast));
    assert!(unknown.contains("abacus"), "{unknown}");
}
