//! Models to step in tests, and the few lines it takes to step them.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use half::f16;
use sconce_models::{Batch, LoadOptions, Model, Precision, SequenceId};

use super::gguf::GgufFile;

/// One fixture by name.
pub(crate) fn fixture(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    root.join(name).to_str().unwrap().to_string()
}

/// SmolLM2, where the machine has it: named by `SCONCE_SMOLLM2`, or in `.models/`.
pub(crate) fn smollm2() -> Option<String> {
    fetched("SCONCE_SMOLLM2", "SmolLM2-135M-Instruct.Q4_1.gguf")
}

/// A file that the environment variable names or `tests/reference/fetch.sh` put into `.models/`. Says so
/// when there is none, so that a test which needs it can skip; in CI it must be there.
#[allow(clippy::print_stderr, reason = "a skipped test says so")]
pub(crate) fn fetched(variable: &str, file: &str) -> Option<String> {
    let path = match std::env::var(variable) {
        Ok(path) => PathBuf::from(path),
        Err(_) => Path::new(env!("CARGO_MANIFEST_DIR")).join("../.models").join(file),
    };
    if path.exists() {
        return Some(path.to_str().unwrap().to_string());
    }
    assert!(std::env::var_os("CI").is_none(), "{file} is missing: CI must fetch it first");
    eprintln!("skipped: {file} is not in .models/ (tests/reference/fetch.sh fetches it)");
    None
}

/// Options of a small load.
pub(crate) fn options(precision: Precision) -> LoadOptions {
    let state_bytes_max = Some(256 << 20);
    LoadOptions {
        precision,
        step_tokens_max: 512,
        sequences_max: 8,
        state_bytes_max,
        ..LoadOptions::default()
    }
}

/// Loads without listening.
pub(crate) fn load(path: &str, options: &LoadOptions) -> Box<dyn Model> {
    sconce_models::load(path, options, &mut |_| ControlFlow::Continue(()))
        .unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Appends tokens to a sequence in one step and returns the logits after the last.
pub(crate) fn feed(model: &mut dyn Model, id: SequenceId, tokens: &[u32]) -> Vec<f32> {
    let mut batch = Batch::default();
    let at = model.state().len(id).unwrap();
    model.state_mut().reserve(id, tokens.len()).unwrap();
    batch.push(id, at, tokens, true);
    model.forward(&batch).unwrap().row(0).unwrap().to_vec()
}

/// The token with the largest logit; the first of equals.
pub(crate) fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (index, value) in logits.iter().enumerate() {
        if *value > logits[best] {
            best = index;
        }
    }
    best as u32
}

/// Numbers that look random and are the same in every run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// The next one, below `bound`.
    pub(crate) fn below(&mut self, bound: u32) -> u32 {
        // The multiplier and increment are Knuth's for a 64-bit linear congruential generator.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        ((self.0 >> 33) % u64::from(bound)) as u32
    }
}

/// Vocabulary of [`quantized_llama`].
pub(crate) const VOCABULARY: u32 = 96;

const HIDDEN: u64 = 64;
const KV: u64 = 32;
const WIDE: u64 = 128;

/// A GGUF llama of two layers in Q4_1, Q4_0 and Q8_0, with random weights.
pub(crate) fn quantized_llama() -> Vec<u8> {
    let mut random = Random(7);
    let mut file = GgufFile::new()
        .string("general.architecture", "llama")
        .u32("llama.block_count", 2)
        .u32("llama.context_length", 1024)
        .u32("llama.embedding_length", HIDDEN as u32)
        .u32("llama.feed_forward_length", WIDE as u32)
        .u32("llama.attention.head_count", 4)
        .u32("llama.attention.head_count_kv", 2)
        .u32("llama.rope.dimension_count", 16)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5);
    file = quantized(file, "token_embd", u64::from(VOCABULARY), HIDDEN, Q8_0, &mut random);
    for layer in 0..2 {
        let name = |part: &str| format!("blk.{layer}.{part}");
        for norm in ["attn_norm", "ffn_norm"] {
            file = file.tensor_f32(&(name(norm) + ".weight"), &[HIDDEN], &[1.0; HIDDEN as usize]);
        }
        for (part, rows, cols, kind) in [
            ("attn_q", HIDDEN, HIDDEN, Q4_1),
            ("attn_k", KV, HIDDEN, Q4_0),
            ("attn_v", KV, HIDDEN, Q8_0),
            ("attn_output", HIDDEN, HIDDEN, Q4_1),
            ("ffn_gate", WIDE, HIDDEN, Q4_0),
            ("ffn_up", WIDE, HIDDEN, Q4_1),
            ("ffn_down", HIDDEN, WIDE, Q4_1),
        ] {
            file = quantized(file, &name(part), rows, cols, kind, &mut random);
        }
    }
    file.tensor_f32("output_norm.weight", &[HIDDEN], &[1.0; HIDDEN as usize]).bytes()
}

/// Numbers of types in GGUF.
const Q4_0: u32 = 2;
const Q4_1: u32 = 3;
const Q8_0: u32 = 8;

/// Elements of a block of each of these types.
const BLOCK: u64 = 32;

/// Appends `<name>.weight` of random codes, with a scale that gives values of about 0.1.
fn quantized(
    file: GgufFile,
    name: &str,
    rows: u64,
    cols: u64,
    kind: u32,
    random: &mut Random,
) -> GgufFile {
    let mut data = Vec::new();
    for _ in 0..rows * cols / BLOCK {
        let jitter = 0.75 + random.below(512) as f32 / 1024.0;
        let (scale, code_bytes) = if kind == Q8_0 { (0.0015, 32) } else { (0.02, 16) };
        data.extend(f16::from_f32(scale * jitter).to_le_bytes());
        if kind == Q4_1 {
            data.extend(f16::from_f32(-0.15 * jitter).to_le_bytes());
        }
        data.extend((0..code_bytes).map(|_| random.below(256) as u8));
    }
    file.tensor(&format!("{name}.weight"), &[rows, cols], kind, &data)
}
