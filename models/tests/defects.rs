//! Defects that servers of the same models have had, each as a test that it is not ours: what
//! crosses a window, a page, a chunk or a fork, and what a configuration says and nobody reads.
//!
//! Against references the same is held by `golden_models.rs`; here models are compared with
//! themselves, so that a failure says which rule was broken.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/gguf.rs"]
mod gguf;
#[path = "support/stepping.rs"]
mod stepping;

use std::path::Path;

use sconce_models::{Model, Precision, SequenceId};
use serde_json::{Value, json};
use tempfile::TempDir;

use stepping::{Random, feed, fixture, load, options};

fn exact(path: &str) -> Box<dyn Model> {
    load(path, &options(Precision::Exact))
}

fn tokens(len: usize, seed: u64) -> Vec<u32> {
    let mut random = Random(seed);
    (0..len).map(|_| random.below(90)).collect()
}

/// A copy of a fixture whose configuration has other values for some keys.
fn changed(name: &str, change: Value) -> TempDir {
    let source = fixture(name);
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(&source).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let file = folder.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    config.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    std::fs::write(&file, config.to_string()).unwrap();
    folder
}

/// Logits after all tokens, fed at once to a new sequence, which stays open.
fn answer(model: &mut dyn Model, tokens: &[u32]) -> (SequenceId, Vec<f32>) {
    let id = model.state_mut().open().unwrap();
    let logits = feed(model, id, tokens);
    (id, logits)
}

fn differ(a: &[f32], b: &[f32]) -> bool {
    a.iter().zip(b).any(|(a, b)| (a - b).abs() > 1e-3)
}

#[test]
fn rope_scaling_is_read_by_every_family() {
    let linear = json!({"rope_type": "linear", "factor": 4.0});
    let nested = json!({"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6});
    let both = json!({"full_attention": nested, "sliding_attention": {"rope_type": "default"}});
    for (name, key, scaling) in [
        ("llama_f32", "rope_parameters", nested.clone()),
        ("qwen3_f32", "rope_parameters", nested.clone()),
        ("qwen3_f16", "rope_scaling", linear.clone()),
        ("qwen3_moe_f32", "rope_parameters", nested.clone()),
        ("gemma3_f16", "rope_scaling", linear),
        ("gemma3_f32", "rope_parameters", both),
    ] {
        let folder = changed(name, json!({key: scaling}));
        let prompt = tokens(40, 1);
        let plain = answer(exact(&fixture(name)).as_mut(), &prompt).1;
        let scaled = answer(exact(folder.path().to_str().unwrap()).as_mut(), &prompt).1;
        assert!(differ(&plain, &scaled), "{name}: {key} changes nothing");
    }
}

/// Gemma's windows are 16 tokens here. What lies further back than all windows of all layers in a
/// row can only be seen through full layers, so both masks are at work in one prompt.
#[test]
fn a_window_holds_inside_a_prompt_as_it_does_between_steps() {
    let mut model = exact(&fixture("gemma3_f32"));
    let prompt = tokens(150, 2);
    let whole = answer(model.as_mut(), &prompt).1;
    for len in [1, 7, 15, 16, 17, 64, 149] {
        let id = model.state_mut().open().unwrap();
        let mut last = Vec::new();
        for piece in prompt.chunks(len) {
            last = feed(model.as_mut(), id, piece);
        }
        assert_eq!(last, whole, "pieces of {len} tokens");
        model.state_mut().close(id).unwrap();
    }
}

#[test]
fn a_window_forgets_what_is_behind_it_and_nothing_else() {
    let types = vec!["sliding_attention"; layers("gemma3_f32")];
    let folder = changed("gemma3_f32", json!({"layer_types": types}));
    let mut model = exact(folder.path().to_str().unwrap());
    // Every layer looks 15 tokens further back than the one above it.
    let reach = 15 * types.len();
    let prompt = tokens(2 * reach, 3);
    let plain = answer(model.as_mut(), &prompt).1;
    for (position, seen) in [(2 * reach - reach - 2, false), (2 * reach - 1 - 15, true)] {
        let mut other = prompt.clone();
        other[position] = (other[position] + 1) % 90;
        let found = answer(model.as_mut(), &other).1;
        assert_eq!(found != plain, seen, "a change of token {position} of {}", 2 * reach);
    }
}

fn layers(name: &str) -> usize {
    exact(&fixture(name)).info().layers
}

#[test]
fn recurrent_state_is_f32_and_outlives_any_cut_of_the_prompt() {
    for name in ["qwen3_next_bf16", "qwen3_5_bf16", "qwen3_5_moe_bf16"] {
        let mut model = exact(&fixture(name));
        let layer = model.state().recurrent_layer(0).unwrap();
        for tensor in [&layer.conv, &layer.delta] {
            assert_eq!(tensor.dtype(), candle_core::DType::F32, "{name}");
        }
        let prompt = tokens(130, 4);
        let whole = answer(model.as_mut(), &prompt).1;
        for cut in [1, 2, 3, 63, 64, 65, 129] {
            let id = model.state_mut().open().unwrap();
            feed(model.as_mut(), id, &prompt[..cut]);
            let last = feed(model.as_mut(), id, &prompt[cut..]);
            assert_eq!(last, whole, "{name}: cut after {cut}");
            model.state_mut().close(id).unwrap();
        }
    }
}

#[test]
fn experts_of_one_stack_keep_the_formats_they_have() {
    for (name, part) in
        [("qwen3_moe_mlx_mixed", "switch_mlp"), ("qwen3_5_moe_mlx_mixed", "shared_expert.")]
    {
        let text = std::fs::read_to_string(Path::new(&fixture(name)).join("config.json")).unwrap();
        let config: Value = serde_json::from_str(&text).unwrap();
        let quantization = config["quantization"].as_object().unwrap();
        let overrides: Vec<&String> =
            quantization.iter().filter(|(_, v)| v.is_object()).map(|(key, _)| key).collect();
        let experts = overrides.iter().filter(|key| key.contains(part)).count();
        assert!(experts > 0, "{name} has no {part} of another format: {overrides:?}");
        // Were they read in the format of the model, their shapes would not fit.
        exact(&fixture(name));
    }
}

#[test]
fn groups_of_experts_are_chosen_from() {
    let prompt = tokens(40, 5);
    let plain = answer(exact(&fixture("glm4_moe_lite_f32")).as_mut(), &prompt).1;
    let one = changed("glm4_moe_lite_f32", json!({"n_group": 1, "topk_group": 1}));
    let ungrouped = answer(exact(one.path().to_str().unwrap()).as_mut(), &prompt).1;
    assert!(differ(&plain, &ungrouped), "n_group changes nothing");
}

/// A state that was copied keeps no other alive, and growing a sequence moves nothing it has.
#[test]
fn growing_and_forking_take_exactly_what_they_need() {
    let mut model = exact(&fixture("qwen3_5_f32"));
    let layout = model.state().layout().clone();
    let (page, slot) = (layout.bytes_per_page(), layout.bytes_per_sequence());
    let prompt = tokens(200, 6);
    let (id, _) = answer(model.as_mut(), &prompt[..64]);
    let first = model.state().page_table(id).unwrap().to_vec();
    assert_eq!(model.state().bytes_used(), page + slot);
    for piece in prompt[64..].chunks(17) {
        feed(model.as_mut(), id, piece);
    }
    assert_eq!(model.state().page_table(id).unwrap()[..1], first, "a page moved");
    assert_eq!(model.state().bytes_used(), 4 * page + slot);
    let forks: Vec<_> = (0..4).map(|_| model.state_mut().fork(id).unwrap()).collect();
    assert_eq!(model.state().bytes_used(), 4 * page + 5 * slot);
    for fork in forks {
        model.state_mut().close(fork).unwrap();
    }
    assert_eq!(model.state().bytes_used(), 4 * page + slot);
}

/// A prompt whose owner went away between two steps: what was computed stays, and whoever goes on
/// with it, or with a copy of it, computes the rest only.
#[test]
fn a_prefill_that_stops_half_way_has_lost_nothing() {
    for name in ["llama_f32", "gemma3_f32", "glm4_moe_lite_f32", "qwen3_5_moe_f32"] {
        let mut model = exact(&fixture(name));
        let prompt = tokens(150, 8);
        let (other, whole) = answer(model.as_mut(), &prompt);
        model.state_mut().close(other).unwrap();
        let (stopped, _) = answer(model.as_mut(), &prompt[..70]);
        let copy = model.state_mut().fork(stopped).unwrap();
        model.state_mut().close(stopped).unwrap();
        // Somebody else takes the slot that became free.
        answer(model.as_mut(), &tokens(80, 9));
        assert_eq!(model.state().len(copy).unwrap(), 70, "{name}");
        assert_eq!(feed(model.as_mut(), copy, &prompt[70..]), whole, "{name}");
    }
}

#[test]
fn what_a_pool_has_no_room_for_is_the_error_of_one_sequence() {
    let mut small = options(Precision::Exact);
    (small.sequences_max, small.points_max) = (2, Some(0));
    let layout = load(&fixture("qwen3_5_f32"), &small).state().layout().clone();
    small.state_bytes_max = Some(layout.recurrent_bytes_max() + 2 * layout.bytes_per_page());
    let mut model = load(&fixture("qwen3_5_f32"), &small);
    let prompt = tokens(60, 7);
    let (first, _) = answer(model.as_mut(), &prompt);
    let second = model.state_mut().open().unwrap();
    let error = model.state_mut().reserve(second, 65).unwrap_err().to_string();
    assert!(error.contains("out of state pages"), "{error}");
    // Neither has lost anything.
    let third = answer_again(model.as_mut(), first, &prompt);
    assert!(third.iter().all(|logit| logit.is_finite()));
    model.state_mut().reserve(second, 64).unwrap();
}

fn answer_again(model: &mut dyn Model, id: SequenceId, prompt: &[u32]) -> Vec<f32> {
    feed(model, id, &prompt[..1])
}
