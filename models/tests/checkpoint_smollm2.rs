//! A real file, SmolLM2-135M-Instruct in Q4_1, read to the last value.
//!
//! The file belongs in `.models/` (`tests/reference/fetch.sh` fetches it): without it these tests
//! say that they skip, except in CI, where they fail.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stderr, reason = "a skipped test says so")]

use std::path::{Path, PathBuf};

use sconce_models::Checkpoint;
use sconce_models::checkpoint::{RopeScaling, TokenizerSource, gguf::Gguf, gguf::blocks};

const FILE: &str = "../.models/SmolLM2-135M-Instruct.Q4_1.gguf";

/// By `tests/reference/gguf_digest.py`.
const DIGEST: u64 = 0xddea_360f_5dd1_6f80;

/// The file, or `None` after saying why the test does not run.
fn path() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(FILE);
    if !path.exists() {
        assert!(std::env::var_os("CI").is_none(), "SmolLM2 is missing: CI must fetch it first");
        eprintln!("skipped: {FILE} is not there, run tests/reference/fetch.sh");
        return None;
    }
    Some(path)
}

fn weighted_sum(values: impl Iterator<Item = u64>) -> u64 {
    (1..).zip(values).fold(0, |sum: u64, (weight, value): (u64, u64)| {
        sum.wrapping_add(value.wrapping_mul(weight))
    })
}

#[test]
fn smollm2_values_are_those_of_the_reference() {
    let Some(path) = path() else { return };
    let bytes = std::fs::read(path).unwrap();
    let gguf = Gguf::parse(&bytes, FILE).unwrap();
    assert_eq!(gguf.tensors().len(), 272);
    let sums = gguf.tensors().iter().map(|tensor| {
        let mut values = vec![0.0f32; tensor.shape.iter().product()];
        blocks::dequantize(tensor.dtype, &bytes[tensor.range.clone()], &mut values);
        weighted_sum(values.iter().map(|value| u64::from(value.to_bits())))
    });
    assert_eq!(weighted_sum(sums), DIGEST);
}

#[test]
fn smollm2_opens_as_a_llama() {
    let Some(path) = path() else { return };
    let checkpoint = Checkpoint::open(&path).unwrap();
    let config = checkpoint.config();
    assert_eq!(config.model_type().unwrap(), "llama");
    assert_eq!(config.required_count("hidden_size").unwrap(), 576);
    assert_eq!(config.required_count("num_hidden_layers").unwrap(), 30);
    assert_eq!(config.required_count("num_attention_heads").unwrap(), 9);
    assert_eq!(config.required_count("num_key_value_heads").unwrap(), 3);
    assert_eq!(config.required_count("vocab_size").unwrap(), 49152);
    assert_eq!(config.flag("tie_word_embeddings").unwrap(), Some(true));
    let rope = config.rope(None).unwrap();
    assert_eq!((rope.theta, rope.scaling), (100_000.0, RopeScaling::Default));
    assert_eq!(checkpoint.generation_config().eos_token_ids, [2]);
    assert_eq!(checkpoint.special_tokens().unwrap().eos.as_deref(), Some("<|im_end|>"));
    let template = checkpoint.chat_templates().unwrap().default.unwrap();
    assert!(template.contains("<|im_start|>"));
    let Some(TokenizerSource::Gguf(source)) = checkpoint.tokenizer_source().unwrap() else {
        panic!("a GGUF tokenizer");
    };
    assert_eq!((source.model.as_str(), source.pre.as_deref()), ("gpt2", Some("smollm")));
    assert_eq!((source.tokens.len(), source.merges.len()), (49152, 48900));
    for tensor in checkpoint.tensors() {
        assert!(tensor.name.starts_with("model."), "{} has a canonical name", tensor.name);
    }
}
