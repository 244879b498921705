//! Every operator on every instruction set of this machine against its `reference.rs`, over tables
//! of shapes, formats and seeds; and that a row's bits do not depend on its company.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "parity/attention.rs"]
mod attention;
#[path = "parity/common.rs"]
mod common;
#[path = "parity/elementwise.rs"]
mod elementwise;
#[path = "parity/embedding.rs"]
mod embedding;
#[path = "parity/matmul.rs"]
mod matmul;
#[path = "parity/rows.rs"]
mod rows;

/// Operators with rows in this suite, in alphabetical order.
const COVERED: &[&str] =
    &["add", "attention", "embedding", "gather_rows", "matmul", "rms_norm", "rope", "silu_mul"];
/// Folders that are no operators.
const OTHERS: [&str; 2] = ["pool", "simd"];

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
