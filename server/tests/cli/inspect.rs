//! `sconce inspect` on checkpoints small enough to be written by the test.

use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{run, stderr, stdout};

/// A safetensors file of `tensors`, each f32 and zero.
fn safetensors(path: &Path, tensors: &[(&str, &[usize])]) {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in tensors {
        let start = end;
        end += 4 * shape.iter().product::<usize>();
        let entry = json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, end] });
        header.insert((*name).to_owned(), entry);
    }
    let header = Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + end, 0);
    std::fs::write(path, bytes).expect("a writable folder");
}

/// A directory with the headers of a one-layer llama.
fn tiny_llama(model_type: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = json!({
        "model_type": model_type,
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 32,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": true,
    });
    std::fs::write(folder.path().join("config.json"), config.to_string()).expect("writable");
    safetensors(
        &folder.path().join("model.safetensors"),
        &[
            ("model.embed_tokens.weight", &[32, 8]),
            ("model.layers.0.input_layernorm.weight", &[8]),
            ("model.layers.0.mlp.down_proj.weight", &[8, 16]),
            ("model.layers.0.mlp.gate_proj.weight", &[16, 8]),
            ("model.layers.0.mlp.up_proj.weight", &[16, 8]),
            ("model.layers.0.post_attention_layernorm.weight", &[8]),
            ("model.layers.0.self_attn.k_proj.weight", &[4, 8]),
            ("model.layers.0.self_attn.o_proj.weight", &[8, 8]),
            ("model.layers.0.self_attn.q_proj.weight", &[8, 8]),
            ("model.layers.0.self_attn.v_proj.weight", &[4, 8]),
            ("model.norm.weight", &[8]),
        ],
    );
    folder
}

#[test]
fn inspect_tells_what_a_checkpoint_holds_and_what_memory_it_needs() {
    let folder = tiny_llama("llama");
    let path = folder.path().to_str().unwrap();
    let shown = stdout(&run(&["inspect", path, "--json", "--tensors", "--context-length", "128"]));
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["architecture"], "llama");
    assert_eq!(shown["format"], "safetensors");
    assert_eq!(shown["parameters"], 32 * 8 + 3 * 8 + 3 * 16 * 8 + 2 * 4 * 8 + 2 * 8 * 8);
    assert_eq!(shown["tensors"].as_array().unwrap().len(), 11);
    assert_eq!(shown["tensors"][0]["shape"], json!([32, 8]));
    let memory = &shown["memory"];
    assert_eq!(memory["context_length"], 128, "{shown}");
    // Keys and values, one layer, one head of four, f32.
    assert_eq!(memory["state_bytes_per_token"], 2 * 4 * 4);
    assert_eq!(memory["state_bytes_at_context"], 128 * 2 * 4 * 4);
}

#[test]
fn inspect_as_text_has_a_table_of_types_and_one_of_tensors() {
    let folder = tiny_llama("llama");
    let shown = stdout(&run(&["inspect", folder.path().to_str().unwrap(), "--tensors"]));
    for part in ["safetensors, llama", "memory with a context of 256", "[32, 8]", "F32"] {
        assert!(shown.contains(part), "`{part}` not in:\n{shown}");
    }
}

#[test]
fn a_checkpoint_of_an_unknown_architecture_is_shown_with_the_reason_it_cannot_be_loaded() {
    let folder = tiny_llama("frobnicator");
    let shown = stdout(&run(&["inspect", folder.path().to_str().unwrap()]));
    assert!(shown.contains("frobnicator") && shown.contains("cannot be loaded"), "{shown}");
}

#[test]
fn a_file_that_is_no_checkpoint_exits_2_and_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, b"not a checkpoint").unwrap();
    for path in [path.to_str().unwrap(), "/nonexistent/model.gguf"] {
        let output = run(&["inspect", path]);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains(path), "{}", stderr(&output));
    }
}
