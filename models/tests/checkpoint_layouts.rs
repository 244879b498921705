//! Every directory of the fixtures as a checkpoint: one vocabulary, whatever wrote it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::PathBuf;

use sconce_models::Checkpoint;

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn open(fixture: &str) -> Checkpoint {
    Checkpoint::open(fixtures().join(fixture)).unwrap()
}

/// Names of the model directories, in order.
fn directories() -> Vec<String> {
    let entries = std::fs::read_dir(fixtures()).unwrap().map(Result::unwrap);
    let models = entries.filter(|entry| entry.path().join("golden.json").is_file());
    let names = models.map(|entry| entry.file_name().into_string().unwrap());
    names.collect::<BTreeSet<String>>().into_iter().collect()
}

#[test]
fn all_weights_of_all_fixtures_are_put_together_under_canonical_names() {
    let directories = directories();
    assert!(directories.len() > 20, "{directories:?}");
    for fixture in directories {
        let checkpoint = open(&fixture);
        let (mut bytes, mut parts) = (0, BTreeSet::new());
        for weight in checkpoint.weights() {
            let weight = weight.unwrap_or_else(|error| panic!("{error}"));
            let name = weight.name();
            let known = ["model.", "lm_head.", "vision.", "mtp.", "multi_modal_projector."];
            assert!(known.iter().any(|prefix| name.starts_with(prefix)), "{fixture}: {name}");
            assert!(!name.contains("language_model"), "{fixture}: {name}");
            bytes += weight.bytes_in_file();
            parts.extend(weight.parts().map(str::to_string));
        }
        assert_eq!(bytes, checkpoint.bytes(), "{fixture}");
        assert!(checkpoint.names().eq(parts.iter()), "{fixture}: every tensor has its weight");
    }
}

#[test]
fn every_text_model_has_its_embedding_its_norm_and_its_layers() {
    for fixture in directories() {
        let checkpoint = open(&fixture);
        for name in ["model.embed_tokens.weight", "model.norm.weight"] {
            assert!(checkpoint.has(name), "{fixture}: {name}");
        }
        let layers = checkpoint.config().required_count("num_hidden_layers").unwrap();
        for layer in 0..layers {
            let name = format!("model.layers.{layer}.input_layernorm.weight");
            let width = checkpoint.config().required_count("hidden_size").unwrap();
            let norm = checkpoint.weight(&name).unwrap();
            norm.expect_shape(&[width]).unwrap_or_else(|error| panic!("{fixture}: {error}"));
        }
    }
}

#[test]
fn only_converted_hybrids_have_shifted_norms_and_only_gguf_tiles_heads() {
    for fixture in directories() {
        let conventions = open(&fixture).conventions();
        let hybrid = fixture.starts_with("qwen3_5") || fixture.starts_with("qwen3_next");
        assert_eq!(conventions.norms_shifted, hybrid && fixture.contains("_mlx_"), "{fixture}");
        assert!(!conventions.value_heads_tiled, "{fixture}");
    }
    for (fixture, shifted, tiled) in [
        ("gguf_llama_f32.gguf", false, false),
        ("gguf_qwen3_f32.gguf", false, false),
        ("gguf_deepseek2_f32.gguf", false, false),
        ("gguf_gemma3_f32.gguf", true, false),
        ("gguf_qwen3next_f32.gguf", true, false),
        ("gguf_qwen35_f32.gguf", true, true),
        ("gguf_qwen35moe_f32.gguf", true, true),
    ] {
        let conventions = open(fixture).conventions();
        assert_eq!(conventions.norms_shifted, shifted, "{fixture}");
        assert_eq!(conventions.value_heads_tiled, tiled, "{fixture}");
    }
}

#[test]
fn the_formats_of_quantized_fixtures_have_names() {
    for (fixture, expected) in [
        ("qwen3_mlx_6bit", "affine 6-bit g"),
        ("gemma3_mlx_mxfp4", "mxfp4"),
        ("qwen3_mlx_mxfp8", "mxfp8"),
        ("qwen3_5_mlx_nvfp4", "nvfp4"),
        ("qwen3_moe_mlx_nvfp4_scaled", "nvfp4"),
        ("qwen3_fp8", "fp8 "),
        ("qwen3_moe_fp8", "fp8 "),
        ("gguf_qwen3_k_quants.gguf", "Q"),
    ] {
        let formats = open(fixture).describe().unwrap().formats;
        let found = formats.iter().any(|share| share.format.starts_with(expected));
        assert!(found, "{fixture}: {formats:?}");
    }
}
