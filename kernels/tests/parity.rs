//! Every operator on every instruction set of this machine against its `reference.rs`, over tables
//! of shapes, formats and seeds; and that a row's bits do not depend on its company.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "parity/attention.rs"]
mod attention;
#[path = "parity/coded.rs"]
mod coded;
#[path = "parity/common.rs"]
mod common;
#[path = "parity/draw_tokens.rs"]
mod draw_tokens;
#[path = "parity/elementwise.rs"]
mod elementwise;
#[path = "parity/embedding.rs"]
mod embedding;
#[path = "parity/entries.rs"]
mod entries;
#[path = "parity/gated_delta.rs"]
mod gated_delta;
#[path = "parity/gated_delta_forms.rs"]
mod gated_delta_forms;
#[path = "parity/gated_delta_step.rs"]
mod gated_delta_step;
#[path = "parity/head_matmul.rs"]
mod head_matmul;
#[path = "parity/latent_attention.rs"]
mod latent_attention;
#[path = "parity/matmul.rs"]
mod matmul;
#[path = "parity/matmul_gpu.rs"]
mod matmul_gpu;
#[path = "parity/moe.rs"]
mod moe;
#[path = "parity/moe_gpu.rs"]
mod moe_gpu;
#[path = "parity/odd_sizes.rs"]
mod odd_sizes;
#[path = "parity/place.rs"]
mod place;
#[path = "parity/prepare_attention.rs"]
mod prepare_attention;
#[path = "parity/products.rs"]
mod products;
#[path = "parity/random_matrix.rs"]
mod random_matrix;
#[path = "parity/random_words.rs"]
mod random_words;
#[path = "parity/recurrent.rs"]
mod recurrent;
#[path = "parity/routing.rs"]
mod routing;
#[path = "parity/rows.rs"]
mod rows;
#[path = "parity/top_logits.rs"]
mod top_logits;
// Without a GPU, emulated or not, each of its tests would pass by doing nothing.
#[cfg(any(feature = "cuda", feature = "emulate"))]
#[path = "parity/wgmma.rs"]
mod wgmma;
#[path = "parity/write_kv.rs"]
mod write_kv;

use sconce_kernels::Isa;

/// Operators with rows in this suite, in alphabetical order.
const COVERED: &[&str] = &[
    "add",
    "attention",
    "draw_tokens",
    "embedding",
    "entries",
    "gate_mul",
    "gated_delta",
    "gated_delta_step",
    "gather_rows",
    "head_matmul",
    "latent_attention",
    "matmul",
    "moe",
    "prepare_attention",
    "random_words",
    "rms_norm",
    "rms_norm_gated",
    "rope",
    "scale",
    "short_conv",
    "top_logits",
];
/// Folders that are no operators.
const OTHERS: [&str; 4] = ["gpu", "peaks", "pool", "simd"];

/// Names, space between, of the levels that the machine must have: so that a script can tell that
/// the tests ran on what it meant them to.
const LEVELS: &str = "SCONCE_LEVELS";

#[test]
fn the_levels_a_script_names_are_those_of_this_machine() {
    let available: Vec<String> = Isa::available().map(|isa| isa.to_string()).collect();
    assert_eq!(available[0], "portable", "the level every machine has");
    if let Ok(expected) = std::env::var(LEVELS) {
        assert_eq!(available.join(" "), expected, "levels found, levels that {LEVELS} names");
    }
}

#[test]
fn every_operator_has_a_reference_and_rows_here() {
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(source).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if !path.is_dir() || OTHERS.contains(&name.as_str()) {
            continue;
        }
        for file in ["mod.rs", "reference.rs", "cpu.rs"] {
            assert!(path.join(file).is_file(), "operator {name} has no {file}");
        }
        found.push(name);
    }
    found.sort();
    assert_eq!(found, COVERED, "operators in src, operators in this suite");
}
