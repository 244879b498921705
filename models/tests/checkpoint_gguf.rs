//! GGUF files, opened as checkpoints: what they mean, and what is refused with which message.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/gguf.rs"]
mod gguf;

use gguf::{GgufFile, list, llama, string};
use sconce_models::checkpoint::gguf::Gguf;
use sconce_models::checkpoint::{Checkpoint, RopeScaling, TokenizerSource};
use tempfile::TempDir;

fn open(file: &GgufFile) -> (TempDir, Checkpoint) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    std::fs::write(&path, file.bytes()).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    (directory, checkpoint)
}

/// The message with which `file` is refused.
fn refusal(file: &GgufFile) -> String {
    Gguf::parse(&file.bytes(), "x.gguf").unwrap_err().to_string()
}

#[test]
fn metadata_answers_to_the_keys_of_config_json() {
    let (_directory, checkpoint) = open(&llama());
    let config = checkpoint.config();
    assert_eq!(config.model_type().unwrap(), "llama");
    for (key, value) in [
        ("hidden_size", 8),
        ("num_hidden_layers", 1),
        ("num_attention_heads", 2),
        ("num_key_value_heads", 1),
        ("intermediate_size", 16),
        ("max_position_embeddings", 128),
        ("vocab_size", 3),
    ] {
        assert_eq!(config.required_count(key).unwrap(), value, "{key}");
    }
    assert_eq!(config.number("rms_norm_eps").unwrap().unwrap() as f32, 1e-5);
    assert_eq!(config.string("hidden_act").unwrap(), Some("silu"));
    assert_eq!(config.flag("tie_word_embeddings").unwrap(), Some(true));
    assert_eq!(config.flag("attention_bias").unwrap(), Some(false));
    let rope = config.rope(None).unwrap();
    assert_eq!((rope.theta, rope.scaling), (100_000.0, RopeScaling::Default));
    assert_eq!(rope.partial_rotary_factor, 1.0);
    assert_eq!(checkpoint.generation_config().eos_token_ids, [2, 1]);
    assert_eq!(checkpoint.generation_config().bos_token_id, Some(0));
}

#[test]
fn a_missing_key_is_named_as_the_file_would_spell_it() {
    let (_directory, checkpoint) = open(&GgufFile::new().string("general.architecture", "llama"));
    let error = checkpoint.config().required_count("hidden_size").unwrap_err().to_string();
    assert!(error.contains("model.gguf: key llama.embedding_length: expected"), "{error}");
}

#[test]
fn tensors_answer_to_canonical_names_with_heads_in_halves() {
    let (_directory, checkpoint) = open(&llama());
    let q = checkpoint.tensor("model.layers.0.self_attn.q_proj.weight").unwrap();
    assert_eq!((q.name_in_file, q.shape), ("blk.0.attn_q.weight", &[8, 8][..]));
    let values = q.to_f32().unwrap();
    let first_of_row: Vec<f32> = values.chunks(8).map(|row| row[0] / 8.0).collect();
    assert_eq!(first_of_row, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    let norm = checkpoint.tensor("model.norm.weight").unwrap();
    assert_eq!(norm.to_f32().unwrap()[7], 7.0);
    let error = checkpoint.tensor("lm_head.weight").unwrap_err().to_string();
    assert!(error.ends_with("tensor lm_head.weight is missing"), "{error}");
}

#[test]
fn the_tokenizer_and_the_templates_are_plain_data() {
    let (_directory, checkpoint) = open(&llama());
    let Some(TokenizerSource::Gguf(source)) = checkpoint.tokenizer_source().unwrap() else {
        panic!("a GGUF tokenizer");
    };
    assert_eq!((source.model.as_str(), source.pre.as_deref()), ("gpt2", Some("smollm")));
    assert_eq!(source.tokens, ["<s>", "a", "b"]);
    assert_eq!((source.token_types, source.merges), (vec![3, 1, 1], vec!["a b".to_string()]));
    assert_eq!((source.add_bos, source.add_eos, source.eot_token_id), (Some(true), None, Some(1)));
    let templates = checkpoint.chat_templates().unwrap();
    assert_eq!(templates.default.as_deref(), Some("{{ messages }}"));
    assert_eq!(templates.named, [("tool_use".to_string(), "{{ tools }}".to_string())]);
    assert_eq!(checkpoint.special_tokens().unwrap().eos.as_deref(), Some("b"));
}

#[test]
fn a_list_shorter_than_the_tokens_is_refused() {
    let file = llama().f32s("tokenizer.ggml.scores", &[0.5]);
    let (_directory, checkpoint) = open(&file);
    let error = checkpoint.tokenizer_source().unwrap_err().to_string();
    assert!(error.contains("tokenizer.ggml.scores: expected 3 values"), "{error}");
}

#[test]
fn rope_scalings_are_translated() {
    let file = llama()
        .string("llama.rope.scaling.type", "yarn")
        .f32("llama.rope.scaling.factor", 4.0)
        .u32("llama.rope.scaling.original_context_length", 32);
    let (_directory, checkpoint) = open(&file);
    let RopeScaling::Yarn(yarn) = checkpoint.config().rope(None).unwrap().scaling else {
        panic!("yarn");
    };
    assert_eq!((yarn.factor, yarn.original_max_position_embeddings), (4.0, 32));

    let file = llama().tensor_f32("rope_freqs.weight", &[2], &[1.0, 8.0]);
    let (_directory, checkpoint) = open(&file);
    let rope = checkpoint.config().rope(None).unwrap();
    assert_eq!(rope.frequency_divisors, Some(vec![1.0, 8.0]));
}

#[test]
fn a_type_without_a_decoder_is_listed_and_named_when_read() {
    let file = llama().tensor("blk.0.ffn_up.weight", &[1, 256], 17, &[0; 74]);
    let (_directory, checkpoint) = open(&file);
    let description = checkpoint.describe().unwrap();
    assert!(description.formats.iter().any(|share| share.format == "IQ2_XS"));
    let tensor = checkpoint.tensor("model.layers.0.mlp.up_proj.weight").unwrap();
    let error = tensor.to_f32().unwrap_err().to_string();
    assert!(error.contains("mlp.up_proj.weight: type IQ2_XS is not supported"), "{error}");
}

#[test]
fn the_fingerprint_knows_weights_and_not_places() {
    let (_first, a) = open(&llama());
    let (_second, b) = open(&llama());
    assert_eq!(a.fingerprint(), b.fingerprint());
    let other = llama().tensor_f32("blk.0.attn_norm.weight", &[8], &[1.0; 8]);
    let changed = llama().tensor_f32("blk.0.attn_norm.weight", &[8], &[1.5; 8]);
    let (_third, c) = open(&other);
    let (_fourth, d) = open(&changed);
    assert!(a.fingerprint() != c.fingerprint() && c.fingerprint() != d.fingerprint());
}

#[test]
fn version_2_reads_as_version_3_does() {
    let mut file = llama();
    file.version = 2;
    assert_eq!(Gguf::parse(&file.bytes(), "x.gguf").unwrap().version(), 2);
}

#[test]
fn other_versions_and_byte_orders_are_refused() {
    let mut file = llama();
    file.version = 1;
    assert!(refusal(&file).contains("version: expected 2 or 3, found 1"));
    file.version = 3u32.swap_bytes();
    assert!(refusal(&file).contains("expected a little-endian file"));
}

#[test]
fn shapes_that_lie_are_refused_by_name() {
    let zero = GgufFile::new().tensor("t", &[0, 4], 0, &[]);
    assert!(
        refusal(&zero).contains("x.gguf: tensor t: expected dimensions of at least 1, found 0")
    );
    let overflow = GgufFile::new().tensor("t", &[1 << 40, 1 << 40], 0, &[]);
    assert!(refusal(&overflow).contains("tensor t: expected a size below 2^64 bytes"));
    let long = GgufFile::new().tensor("t", &[1, 64], 0, &[0; 128]);
    assert!(refusal(&long).contains("tensor t: expected 256 bytes of F32 [1, 64]"));
    let part = GgufFile::new().tensor("t", &[1, 33], 2, &[0; 36]);
    assert!(refusal(&part).contains("rows of whole Q4_0 blocks of 32, found rows of 33"));
    let deep = GgufFile::new().tensor("t", &[1; 5], 0, &[0; 4]);
    assert!(refusal(&deep).contains("tensor t: expected 1 to 4 dimensions, found 5"));
    let unknown = GgufFile::new().tensor("t", &[1], 1000, &[0; 4]);
    assert!(refusal(&unknown).contains("found type number 1000"));
}

#[test]
fn offsets_that_lie_are_refused_by_name() {
    let data = [0; 64];
    let outside = GgufFile::new().tensor_at("t", &[16], 0, &data, 1 << 40);
    assert!(refusal(&outside).contains("tensor t: expected 64 bytes of F32 [16] at offset"));
    let wrapping = GgufFile::new().tensor_at("t", &[16], 0, &data, u64::MAX - 31);
    assert!(refusal(&wrapping).contains("tensor t: expected 64 bytes"));
    let odd = GgufFile::new().tensor_at("t", &[16], 0, &data, 4);
    assert!(refusal(&odd).contains("tensor t: expected an offset divisible by 32, found 4"));
    let shared = GgufFile::new().tensor("a", &[16], 0, &data).tensor_at("b", &[16], 0, &data, 32);
    assert!(refusal(&shared).contains("tensor b: expected data after that of a"));
}

#[test]
fn names_come_once() {
    let tensors = GgufFile::new().tensor("t", &[1], 0, &[0; 4]).tensor("t", &[1], 0, &[0; 4]);
    assert!(refusal(&tensors).contains("tensor t: expected each tensor once"));
    let keys = GgufFile::new().u32("k", 1).u32("k", 2);
    assert!(refusal(&keys).contains("metadata k: expected each key once"));
}

#[test]
fn lengths_beyond_the_file_and_deep_nesting_are_refused() {
    let huge = GgufFile::new().raw("k", 8, &u64::MAX.to_le_bytes());
    assert!(refusal(&huge).contains("metadata k: expected at most"));
    let huge = GgufFile::new().raw("k", 9, &list(12, usize::MAX, &[]));
    assert!(refusal(&huge).contains("metadata k: expected at most"));
    let mut nested = list(4, 0, &[]);
    for _ in 0..64 {
        nested = list(9, 1, &nested);
    }
    let nested = GgufFile::new().raw("k", 9, &nested);
    assert!(refusal(&nested).contains("metadata k: expected arrays nested at most 4 deep"));
    let kind = GgufFile::new().raw("k", 13, &string(""));
    assert!(refusal(&kind).contains("metadata k: expected a value type from 0 to 12, found 13"));
}

#[test]
fn heads_that_do_not_divide_the_rows_are_refused() {
    let file = llama().tensor_f32("blk.1.attn_k.weight", &[6, 8], &[0.0; 48]);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    std::fs::write(&path, file.bytes()).unwrap();
    let error = Checkpoint::open(&path).unwrap_err().to_string();
    assert!(error.contains("tensor blk.1.attn_k.weight: expected rows of whole heads"), "{error}");
}

#[test]
fn a_file_of_another_kind_says_what_was_looked_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.bin");
    std::fs::write(&path, b"PK\x03\x04").unwrap();
    let error = Checkpoint::open(&path).unwrap_err().to_string();
    assert!(error.contains("expected a GGUF file, or a directory with config.json"), "{error}");
    assert!(error.contains("found a file that starts with PK"), "{error}");
}
