//! Golden answers written by `tests/reference/`: how they are read and how a model is held to them.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::path::Path;

use sconce_models::Model;
use serde_json::Value;

use super::stepping::{argmax, feed};

/// Reads a golden file.
pub(crate) fn read(path: &Path) -> Value {
    let text =
        std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap()
}

/// A list of token ids.
pub(crate) fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// Natural logarithms of the softmax, in f64.
pub(crate) fn logprobs(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - max).exp()).sum();
    logits.iter().map(|logit| f64::from(logit - max) - sum.ln()).collect()
}

/// Differences between `logits` and the `[[id, logprob], ...]` of a golden step.
pub(crate) fn differences(logits: &[f32], top: &Value) -> Vec<f64> {
    let found = logprobs(logits);
    let difference = |pair: &Value| {
        let (id, expected) = (pair[0].as_u64().unwrap() as usize, pair[1].as_f64().unwrap());
        let difference = (found[id] - expected).abs();
        // One logit that is no number makes all of these so, and `max` passes over them.
        assert!(!difference.is_nan(), "the log-probability of token {id} is no number");
        difference
    };
    top.as_array().unwrap().iter().map(difference).collect()
}

/// The largest of them.
pub(crate) fn difference(logits: &[f32], top: &Value) -> f64 {
    differences(logits, top).into_iter().fold(0.0, f64::max)
}

/// Tokens of a prompt that are evaluated in one step: fewer than a step may have, and odd.
const CHUNK_TOKENS: usize = 389;

/// Evaluates a prompt, then the golden continuation token by token, and gives `check` the logits and the
/// golden top of each continued position.
pub(crate) fn forced(model: &mut dyn Model, prompt: &Value, check: &mut dyn FnMut(&[f32], &Value)) {
    let greedy = ids(&prompt["greedy_tokens"]);
    let tops = prompt["top5"].as_array().unwrap();
    assert!(!greedy.is_empty() && greedy.len() == tops.len(), "a golden top for each token");
    let id = model.state_mut().open().unwrap();
    let mut logits = Vec::new();
    for chunk in ids(&prompt["input_ids"]).chunks(CHUNK_TOKENS) {
        logits = feed(model, id, chunk);
    }
    for (step, top) in tops.iter().enumerate() {
        check(&logits, top);
        if step + 1 < tops.len() {
            logits = feed(model, id, &[greedy[step]]);
        }
    }
    model.state_mut().close(id).unwrap();
}

/// Whether the likeliest token is that of the golden step.
pub(crate) fn agrees(logits: &[f32], top: &Value) -> bool {
    u64::from(argmax(logits)) == top[0][0].as_u64().unwrap()
}

/// Steps one prompt greedily beside its golden answer and asserts that every token is equal;
/// returns the largest difference of a logprob over the steps that have any.
pub(crate) fn follow(model: &mut dyn Model, prompt: &Value, name: &str) -> f64 {
    let mut worst = 0.0;
    let mut step = 0;
    let greedy = ids(&prompt["greedy_tokens"]);
    forced(model, prompt, &mut |logits, top| {
        worst = f64::max(worst, difference(logits, top));
        assert_eq!(argmax(logits), greedy[step], "{name}: token {step}");
        step += 1;
    });
    worst
}
