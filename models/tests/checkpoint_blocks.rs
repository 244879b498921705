//! Decoders of block-packed types against the `gguf` package of Python, bit for bit.
//!
//! `tests/reference/gguf_blocks.py` makes the fixture.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/gguf.rs"]
mod gguf;
#[path = "support/packed.rs"]
mod packed;

use sconce_kernels::Code;
use sconce_models::Checkpoint;
use sconce_models::checkpoint::{Dtype, MatrixRows, RowSelection, gguf::blocks};

const GOLDEN: &str = include_str!("fixtures/gguf_blocks.json");

struct Case {
    dtype: Dtype,
    bytes: Vec<u8>,
    values: Vec<f32>,
}

fn cases() -> Vec<Case> {
    use Dtype::*;
    let json: serde_json::Value = serde_json::from_str(GOLDEN).unwrap();
    let case = |case: &serde_json::Value| {
        let name = case["type"].as_str().unwrap();
        let dtypes =
            [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, Q2_K, Q3_K, IQ4_NL, IQ4_XS, MXFP4];
        let dtype = dtypes.into_iter().find(|dtype| dtype.name() == name).unwrap();
        let values = bytes(case["values"].as_str().unwrap());
        let (values, _) = values.as_chunks::<4>();
        Case {
            dtype,
            bytes: bytes(case["bytes"].as_str().unwrap()),
            values: values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        }
    };
    json.as_array().unwrap().iter().map(case).collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits = hex.as_bytes().chunks(2);
    digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

#[test]
fn every_type_dequantizes_to_the_values_of_the_reference() {
    let cases = cases();
    assert_eq!(cases.len(), 13);
    for Case { dtype, bytes, values } in cases {
        let mut out = vec![f32::NAN; values.len()];
        blocks::dequantize(dtype, &bytes, &mut out);
        for (index, (out, value)) in out.iter().zip(&values).enumerate() {
            assert!(out == value, "{dtype} element {index}: {out} is not {value}");
        }
    }
}

#[test]
fn a_matrix_of_any_type_holds_the_same_values() {
    let directory = tempfile::tempdir().unwrap();
    for Case { dtype, bytes, values } in cases() {
        let id = (0..64).find(|id| Dtype::from_ggml(*id) == Some(dtype)).unwrap();
        let shape = [2, values.len() as u64 / 2];
        let file = gguf::llama().tensor("blk.0.ffn_gate.weight", &shape, id, &bytes);
        let path = directory.path().join("model.gguf");
        std::fs::write(&path, file.bytes()).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        let weight = checkpoint.weight("model.layers.0.mlp.gate_proj.weight").unwrap();
        assert_eq!(weight.format_name(), dtype.name());
        let rows = weight.matrix_rows(RowSelection::all()).unwrap();
        assert!(!matches!(rows, MatrixRows::Dense(_)), "{dtype} stays packed");
        let packed = packed::values(&rows);
        for (index, (packed, value)) in packed.iter().zip(&values).enumerate() {
            assert!(packed == value, "{dtype} element {index}: {packed} is not {value}");
        }
    }
}

#[test]
fn the_affine_form_holds_the_same_values() {
    let mut compared = 0;
    for Case { dtype, bytes, values } in cases() {
        let Some(format) = blocks::affine_format(dtype) else { continue };
        let groups = values.len() / format.group_size;
        let mut codes = vec![0xff; values.len()];
        let mut scales = vec![f32::NAN; groups];
        let mut biases = vec![f32::NAN; if format.zero_point.is_some() { 0 } else { groups }];
        blocks::unpack(dtype, &bytes, &mut codes, &mut scales, &mut biases);
        for (index, code) in codes.iter().enumerate() {
            assert!(u32::from(*code) < 1 << format.bits, "{dtype}: code {code}");
            let group = index / format.group_size;
            let value = match format.zero_point {
                Some(zero) => scales[group] * (f32::from(*code) - f32::from(zero)),
                None => scales[group] * f32::from(*code) + biases[group],
            };
            assert_eq!(value, values[index], "{dtype} {index}");
        }
        compared += 1;
    }
    assert_eq!(compared, 10);
}

#[test]
fn the_coded_form_holds_the_same_values() {
    // By the tables of the formats: twice the numbers of E2M1, and those of IQ4_NL.
    const E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];
    const IQ4_NL: [i8; 16] =
        [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
    let mut compared = 0;
    for Case { dtype, bytes, values } in cases() {
        let Some(format) = blocks::coded_format(dtype) else { continue };
        let mut codes = vec![0xff; values.len()];
        let mut scales = vec![f32::NAN; values.len() / format.group_size];
        blocks::unpack_coded(dtype, &bytes, &mut codes, &mut scales);
        for (index, (code, value)) in codes.iter().zip(&values).enumerate() {
            let number = match format.code {
                Code::E2m1 => f32::from(E2M1[usize::from(*code)]) / 2.0,
                _ => f32::from(IQ4_NL[usize::from(*code)]),
            };
            assert_eq!(scales[index / format.group_size] * number, *value, "{dtype} {index}");
        }
        compared += 1;
    }
    assert_eq!(compared, 3);
}
