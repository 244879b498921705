//! How many kernels a decode step launches on a GPU, and that the next one launches the same ones with
//! the same arguments: then it is replayed as a graph. What they compute is in `emulated.rs`.

#![cfg(feature = "emulate")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/gguf.rs"]
mod gguf;
#[path = "support/stepping.rs"]
mod stepping;

use sconce_kernels::gpu::{Language, RecordedStep, emulate, last_step};
use sconce_models::{Batch, Draw, Precision, RowUse};

use stepping::{feed, fixture, load, options};

const LANGUAGES: [Language; 2] = [Language::Cuda, Language::Metal];

/// What decode steps of two sequences record, one after another.
fn decoded(name: &str, language: Language, steps: usize) -> Vec<RecordedStep> {
    emulate(language, || {
        let mut model = load(&fixture(name), &options(Precision::Fast));
        let model = model.as_mut();
        let ids = [(); 2].map(|()| model.state_mut().open().unwrap());
        for (id, prompt) in ids.iter().zip([&[3, 1, 4, 1, 5][..], &[9, 2, 6]]) {
            feed(model, *id, prompt);
        }
        let step = |step: usize| {
            let mut batch = Batch::default();
            for id in ids {
                let at = model.state().len(id).unwrap();
                model.state_mut().reserve(id, 1).unwrap();
                batch.push(id, at, &[step as u32], true);
                // Another in every step, as the numbers of a draw are.
                let draw = Draw { temperature: 0.5 + step as f32, ..Draw::GREEDY };
                batch.uses.push(RowUse { draw: Some(draw), largest: step % 3 });
            }
            model.forward(&batch).unwrap();
            last_step()
        };
        (0..steps).map(step).collect()
    })
}

#[test]
fn a_decode_step_of_a_hybrid_launches_these_kernels_and_no_more() {
    let experts = [
        "matmul",
        "route",
        "expert_matmul",
        "matmul",
        "gate_mul",
        "expert_matmul",
        "combine_experts",
        "matmul",
        "add_gated",
    ];
    let delta = ["matmul", "gated_delta_step", "matmul"];
    let attention = ["matmul", "prepare_attention", "paged_attention", "gate_mul", "matmul"];
    let expected: [&[&str]; 4] = [&delta, &experts, &attention, &experts];
    for language in LANGUAGES {
        let operators = decoded("qwen3_next_f32", language, 1).remove(0).operators();
        // Rows without logits leave before the head; each mixer, each MLP and the head begin with a norm.
        let layers = operators.iter().take_while(|operator| **operator != "gather_rows");
        let layers: Vec<_> = layers.copied().collect();
        let parts: Vec<_> = layers.split(|operator| *operator == "rms_norm").collect();
        assert_eq!(parts[1..], expected, "{language:?}");
    }
}

#[test]
fn decode_steps_of_a_batch_record_the_same() {
    for name in ["qwen3_next_f32", "llama_f32", "gemma3_f32", "gguf_deepseek2_f32.gguf"] {
        for language in LANGUAGES {
            let steps = decoded(name, language, 14);
            for (index, step) in steps.iter().enumerate().skip(1) {
                assert!(*step == steps[0], "{name}, {language:?}: step {index} is another");
            }
        }
    }
}
