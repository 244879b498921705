//! Models in the precision that servers have by default beside their golden answers. It rounds what
//! weights with codes read, and keys and values: how far answers are from those of the reference is
//! measured prompt by prompt, and bounded. `docs/NUMERICS.md` says what was measured.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::print_stderr, reason = "how far a bound is from what was measured")]

use sconce_models::{KvType, LoadOptions, Model, Precision};
use serde_json::Value;

use super::fixtures::{Fixture, Packing};
use super::golden::{self, differences, forced};
use super::stepping::{argmax, load};

/// Tokens from which kernels of both languages multiply a prompt in blocks, on tensor cores.
const MANY_TOKENS: usize = 33;

/// A fixture of each architecture whose weights read rounded activations on CUDA and which keeps keys
/// and values in 8 bits; latents, of `glm4_moe_lite`, stay f32.
pub(crate) const CHOSEN: &[&str] = &[
    "gguf_llama_q4_0.gguf",
    "gguf_qwen3_k_quants.gguf",
    "gguf_qwen3moe_mxfp4.gguf",
    "gguf_gemma3_q8_0.gguf",
    "gguf_deepseek2_q4_1.gguf",
    "gguf_qwen3next_q8_0.gguf",
    "gguf_qwen35_bf16.gguf",
    "gguf_qwen35moe_iq4_nl.gguf",
];

/// What runs the operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Runner {
    /// Weights with codes read 8 bits, plain ones f32.
    Cpu,
    /// Weights but those in f32 and f16 read bf16.
    Cuda,
    /// All weights read f32.
    Metal,
}

/// Which prompts of a fixture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Prompts {
    All,
    /// The first that is long enough to be multiplied in blocks.
    FirstLong,
}

/// What is rounded of a fixture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rounding {
    Nothing,
    /// Keys and values.
    State,
    /// What weights read; and keys and values, where they can be.
    Activations,
}

/// Bounds of a prompt.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    /// Of the median of its positions. One expert chosen instead of another takes a few positions
    /// beyond any bound; an operator that is wrong takes most of them.
    median: f64,
    /// Of their mean.
    mean: f64,
    /// Of the share of positions whose token is none that the reference has as likely.
    misses: f64,
}

/// Bounds by architecture of the median and the mean where state is rounded; where activations are,
/// too, on the CPU; and on CUDA. Two to three times the worst prompt of any fixture.
const BOUNDS: &[(&str, [[f64; 2]; 3])] = &[
    ("llama", [[0.045, 0.05], [0.09, 0.1], [0.05, 0.06]]),
    ("qwen3", [[0.12, 0.12], [0.25, 0.3], [0.15, 0.16]]),
    ("qwen3_moe", [[0.06, 0.07], [0.15, 0.25], [0.08, 0.1]]),
    ("gemma3", [[0.06, 0.07], [0.12, 0.13], [0.07, 0.08]]),
    ("glm4_moe_lite", [[UNROUNDED; 2], [0.15, 0.5], [0.05, 0.25]]),
    ("qwen3_next", [[0.01, 0.03], [0.3, 0.5], [0.08, 0.15]]),
    ("qwen3_5", [[0.009, 0.01], [0.35, 0.6], [0.08, 0.12]]),
    ("qwen3_5_moe", [[0.008, 0.01], [0.35, 0.7], [0.11, 0.3]]),
];

/// Of a prompt of which nothing is rounded: sums are in other orders, and f16 is two parts of bf16.
const UNROUNDED: f64 = 1e-4;

/// Steps prompts of a fixture beside their golden answers and asserts that each is within its bounds;
/// returns the mean difference of a log-probability over all of them. The precision is the default,
/// whatever the options say.
pub(crate) fn hold(fixture: &Fixture, which: Prompts, runner: Runner, options: LoadOptions) -> f64 {
    let context_length = fixture.context_length();
    let options = LoadOptions { precision: Precision::default(), context_length, ..options };
    let mut model = load(fixture.path.to_str().unwrap(), &options);
    let rounding = Rounding::of(fixture, runner, model.as_ref());
    let bounds = Bounds::of(fixture.architecture, runner, rounding);
    let mut prompts: Vec<_> =
        fixture.golden["prompts"].as_array().unwrap().iter().enumerate().collect();
    if which == Prompts::FirstLong {
        prompts.retain(|(_, prompt)| golden::ids(&prompt["input_ids"]).len() >= MANY_TOKENS);
        prompts.truncate(1);
    }
    assert!(!prompts.is_empty(), "{}: no prompt of {which:?}", fixture.name);
    let mut sum = 0.0;
    for (index, prompt) in &prompts {
        let distance = Distance::measure(model.as_mut(), prompt);
        let name = format!("{} on {runner:?}, prompt {index}, rounding {rounding:?}", fixture.name);
        distance.judge(bounds, &name);
        sum += distance.mean();
    }
    assert_eq!(model.state().pages_used(), 0, "{}", fixture.name);
    sum / prompts.len() as f64
}

impl Rounding {
    fn of(fixture: &Fixture, runner: Runner, model: &dyn Model) -> Self {
        let on_cpu = runner == Runner::Cpu;
        let read_in_f32 = match &fixture.packing {
            _ if runner == Runner::Metal => true,
            Packing::Plain(kind) | Packing::Gguf(kind) => match kind.as_str() {
                "F32" | "F16" => true,
                kind => kind == "BF16" && on_cpu,
            },
            Packing::BlockFp8 => on_cpu,
            Packing::Mlx(_) => false,
        };
        let groups = &model.state().layout().attention;
        match (read_in_f32, groups.iter().any(|group| group.kv_type == KvType::Int8)) {
            (true, false) => Self::Nothing,
            (true, true) => Self::State,
            (false, _) => Self::Activations,
        }
    }
}

impl Bounds {
    fn of(architecture: &str, runner: Runner, rounding: Rounding) -> Self {
        let row = BOUNDS.iter().find(|(name, _)| *name == architecture);
        let (_, [state, cpu, cuda]) = row.unwrap_or_else(|| panic!("no bounds of {architecture}"));
        let ([median, mean], misses) = match (rounding, runner) {
            (Rounding::Nothing, _) => ([UNROUNDED; 2], 0.0),
            // One position of 32, where another expert may have been chosen; none was found.
            (Rounding::State, _) => (*state, 0.04),
            (Rounding::Activations, Runner::Cpu) => (*cpu, 0.18),
            (Rounding::Activations, _) => (*cuda, 0.1),
        };
        Self { median, mean, misses }
    }
}

/// How far a model is from the golden answer of a prompt.
#[derive(Debug, Default)]
struct Distance {
    /// Of each position, the mean difference of the log-probabilities of the five best tokens.
    differences: Vec<f64>,
    /// Of each position, by how much the reference prefers its own token to that of the model.
    preferences: Vec<f64>,
}

impl Distance {
    /// Steps a prompt, and the tokens of its golden answer whatever the model would choose.
    fn measure(model: &mut dyn Model, prompt: &Value) -> Self {
        let mut distance = Self::default();
        forced(model, prompt, &mut |logits, top| distance.add(logits, top));
        distance
    }

    fn add(&mut self, logits: &[f32], top: &Value) {
        let found = differences(logits, top);
        self.differences.push(found.iter().sum::<f64>() / found.len() as f64);
        let (best, top) = (u64::from(argmax(logits)), top.as_array().unwrap());
        let chosen = top.iter().find(|pair| pair[0].as_u64() == Some(best));
        let logprob = |pair: &Value| pair[1].as_f64().unwrap();
        let preference = chosen.map_or(f64::INFINITY, |pair| logprob(&top[0]) - logprob(pair));
        self.preferences.push(preference);
    }

    fn median(&self) -> f64 {
        let mut sorted = self.differences.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    }

    fn mean(&self) -> f64 {
        self.differences.iter().sum::<f64>() / self.differences.len() as f64
    }

    fn judge(&self, bounds: Bounds, name: &str) {
        let (median, mean, positions) = (self.median(), self.mean(), self.differences.len());
        // Two tokens may each move by the bound before they change places.
        let margin = 2.0 * bounds.mean;
        let misses = self.preferences.iter().filter(|preference| **preference > margin).count();
        let found = format!(
            "{name}: median {median:.1e} of {:.1e}, mean {mean:.1e} of {:.1e}, \
             {misses} of {positions} tokens others",
            bounds.median, bounds.mean
        );
        eprintln!("{found}");
        assert!(median <= bounds.median && mean <= bounds.mean, "{found}");
        assert!(misses as f64 <= bounds.misses * positions as f64, "{found}");
    }
}
