//! Decoders of block-packed types against the `gguf` package of Python, bit for bit.
//!
//! `tests/reference/gguf_blocks.py` makes the fixture.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use sconce_kernels::AffineRows;
use sconce_models::checkpoint::{Dtype, MatrixRows, RowMap, TensorView, gguf::blocks};

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
        let dtypes = [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K];
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
    assert_eq!(cases.len(), 8);
    for Case { dtype, bytes, values } in cases {
        let mut out = vec![f32::NAN; values.len()];
        blocks::dequantize(dtype, &bytes, &mut out);
        for (index, (out, value)) in out.iter().zip(&values).enumerate() {
            assert!(out == value, "{dtype} element {index}: {out} is not {value}");
        }
    }
}

#[test]
fn the_affine_form_holds_the_same_values() {
    for Case { dtype, bytes, values } in cases() {
        // Two rows of a head of two: the map leaves them in place, and is gone through.
        let shape = [2, values.len() / 2];
        let view = TensorView {
            name: "t",
            name_in_file: "t",
            dtype,
            shape: &shape,
            bytes: &bytes,
            file: Path::new("x.gguf"),
            row_map: RowMap::InterleavedHeads { head_dim: 2 },
        };
        let MatrixRows::Affine(rows) = view.matrix_rows().unwrap() else { panic!("{dtype}") };
        let format = rows.format();
        let groups = rows.cols() / format.group_size;
        for row in 0..rows.rows() {
            let mut codes = vec![0xff; rows.cols()];
            let mut scales = vec![f32::NAN; groups];
            let mut biases = vec![f32::NAN; if format.zero_point.is_some() { 0 } else { groups }];
            rows.read_row(row, &mut codes, &mut scales, &mut biases);
            for (index, code) in codes.iter().enumerate() {
                assert!(u32::from(*code) < 1 << format.bits, "{dtype}: code {code}");
                let group = index / format.group_size;
                let value = match format.zero_point {
                    Some(zero) => scales[group] * (f32::from(*code) - f32::from(zero)),
                    None => scales[group] * f32::from(*code) + biases[group],
                };
                assert_eq!(value, values[row * shape[1] + index], "{dtype} {row} {index}");
            }
        }
    }
}
