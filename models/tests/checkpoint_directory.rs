//! Hugging Face directories, opened as checkpoints: single and sharded, whole and damaged.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype as SafeDtype, TensorView as SafeView, serialize};
use sconce_models::checkpoint::{Checkpoint, Dtype, TokenizerSource};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Writes a file of one-dimensional tensors: name, type, bytes.
fn write_weights(path: &Path, tensors: &[(&str, SafeDtype, &[u8])]) {
    let views: HashMap<&str, SafeView<'_>> = tensors
        .iter()
        .map(|(name, dtype, data)| {
            let len = data.len() * 8 / dtype.bitsize();
            (*name, SafeView::new(*dtype, vec![len], data).unwrap())
        })
        .collect();
    std::fs::write(path, serialize(views, None).unwrap()).unwrap();
}

fn write_json(directory: &TempDir, name: &str, json: &Value) {
    std::fs::write(directory.path().join(name), json.to_string()).unwrap();
}

fn directory() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    write_json(&directory, "config.json", &json!({"model_type": "llama", "eos_token_id": 2}));
    directory
}

fn single() -> TempDir {
    let directory = directory();
    let one = 1f32.to_le_bytes();
    write_weights(
        &directory.path().join("model.safetensors"),
        &[("a", SafeDtype::F32, &one), ("b", SafeDtype::BF16, &one[2..])],
    );
    directory
}

fn sharded(weight_map: Value) -> TempDir {
    let directory = directory();
    let one = 1f32.to_le_bytes();
    write_weights(&directory.path().join("1.safetensors"), &[("a", SafeDtype::F32, &one)]);
    write_weights(&directory.path().join("2.safetensors"), &[("b", SafeDtype::BF16, &one[2..])]);
    write_json(&directory, "model.safetensors.index.json", &json!({"weight_map": weight_map}));
    directory
}

fn refusal(directory: &TempDir) -> String {
    Checkpoint::open(directory.path()).unwrap_err().to_string()
}

#[test]
fn one_file_and_shards_read_alike() {
    let shards = sharded(json!({"a": "1.safetensors", "b": "2.safetensors"}));
    let single = Checkpoint::open(single().path()).unwrap();
    let shards = Checkpoint::open(shards.path()).unwrap();
    for checkpoint in [&single, &shards] {
        assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(checkpoint.tensor("a").unwrap().to_f32().unwrap(), [1.0]);
        let b = checkpoint.tensor("b").unwrap();
        assert_eq!((b.dtype, b.to_f32().unwrap()), (Dtype::BF16, vec![1.0]));
    }
    assert_eq!(single.fingerprint(), shards.fingerprint());
    assert_eq!(single.config().model_type().unwrap(), "llama");
    assert_eq!(single.describe().unwrap().format, "safetensors");
}

#[test]
fn a_missing_shard_is_named() {
    let directory = sharded(json!({"a": "1.safetensors", "b": "3.safetensors"}));
    assert!(refusal(&directory).contains("3.safetensors: "));
}

#[test]
fn a_tensor_in_another_shard_than_said_is_named_with_both() {
    let directory = sharded(json!({"a": "2.safetensors", "b": "1.safetensors"}));
    let error = refusal(&directory);
    assert!(error.contains("weight_map of tensor a: expected it in 2.safetensors"), "{error}");
    assert!(error.ends_with("1.safetensors"), "{error}");
    let directory = sharded(json!({"a": "1.safetensors", "c": "2.safetensors"}));
    assert!(refusal(&directory).contains("weight_map of tensor c: expected the tensor in"));
}

#[test]
fn a_shard_outside_of_the_directory_is_refused() {
    let directory = sharded(json!({"a": "../1.safetensors"}));
    assert!(refusal(&directory).contains("expected the plain name of a .safetensors file"));
}

#[test]
fn directories_without_config_or_weights_say_what_was_looked_for() {
    let empty = tempfile::tempdir().unwrap();
    let error = refusal(&empty);
    assert!(error.contains("found a directory without config.json"), "{error}");
    let error = refusal(&directory());
    assert!(error.contains("neither model.safetensors nor model.safetensors.index.json"));
}

#[test]
fn a_config_that_is_no_object_is_refused() {
    let directory = single();
    write_json(&directory, "config.json", &json!([1]));
    assert!(
        refusal(&directory).contains("config.json: file: expected a JSON object, found a list")
    );
}

#[test]
fn the_tokenizer_and_the_templates_are_found() {
    let directory = single();
    write_json(&directory, "tokenizer.json", &json!({}));
    let named = json!([{"name": "default", "template": "D"}, {"name": "rag", "template": "R"}]);
    let config = json!({
        "bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": named,
    });
    write_json(&directory, "tokenizer_config.json", &config);
    write_json(&directory, "special_tokens_map.json", &json!({"unk_token": "<unk>"}));
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    let Some(TokenizerSource::HuggingFace(source)) = checkpoint.tokenizer_source().unwrap() else {
        panic!("tokenizer.json");
    };
    assert!(source.tokenizer_json.ends_with("tokenizer.json"));
    assert_eq!(source.tokenizer_config, config);
    let tokens = checkpoint.special_tokens().unwrap();
    assert_eq!((tokens.bos.as_deref(), tokens.eos.as_deref()), (Some("<s>"), Some("</s>")));
    assert_eq!((tokens.unk.as_deref(), tokens.pad), (Some("<unk>"), None));
    let templates = checkpoint.chat_templates().unwrap();
    assert_eq!(templates.default.as_deref(), Some("D"));
    assert_eq!(templates.named, [("rag".to_string(), "R".to_string())]);

    std::fs::write(directory.path().join("chat_template.jinja"), "J").unwrap();
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    assert_eq!(checkpoint.chat_templates().unwrap().default.as_deref(), Some("J"));
}

#[test]
fn stop_ids_of_the_generation_config_win() {
    let directory = single();
    let json = json!({"eos_token_id": [2, 7], "temperature": 0.6, "top_k": 50, "do_sample": true});
    write_json(&directory, "generation_config.json", &json);
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    let generation = checkpoint.generation_config();
    assert_eq!(generation.eos_token_ids, [2, 7]);
    assert_eq!((generation.temperature, generation.top_k), (Some(0.6), Some(50)));
    assert_eq!(generation.do_sample, Some(true));
}

#[test]
fn a_pipe_in_place_of_a_file_is_refused_and_never_waited_for() {
    for name in ["config.json", "model.safetensors"] {
        let directory = single();
        let path = directory.path().join(name);
        std::fs::remove_file(&path).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success(), "mkfifo {}", path.display());
        let error = Checkpoint::open(directory.path()).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
}
