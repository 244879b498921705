//! Quantization against `mlx.core.quantize`, bit for bit.
//!
//! `tests/reference/mlx_quantize.py` makes the fixture.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use candle_core::Device;
use half::{bf16, f16};
use sconce_kernels::{DenseRows, DenseType};
use sconce_models::quantize::rows::{NotFinite, QuantizedRows};
use sconce_models::quantize::{Packing, PackingMode, QuantizeFormat};
use serde_json::Value;

const GOLDEN: &str = include_str!("fixtures/mlx_quantize.json");
const COLS: usize = 64;
const DIGEST_VALUES: usize = 1 << 16;

/// Rows of 64 values of a type, given in f32.
struct Rows(DenseType, Vec<f32>);

impl DenseRows for Rows {
    fn rows(&self) -> usize {
        self.1.len() / COLS
    }
    fn cols(&self) -> usize {
        COLS
    }
    fn format(&self) -> DenseType {
        self.0
    }
    fn read_row(&self, row: usize, values: &mut [f32]) {
        values.copy_from_slice(&self.1[row * COLS..][..COLS]);
    }
}

fn dense_type(name: &Value) -> DenseType {
    match name.as_str().unwrap() {
        "f32" => DenseType::F32,
        "bf16" => DenseType::Bf16,
        "f16" => DenseType::F16,
        other => panic!("{other}"),
    }
}

fn packing(name: &str) -> Packing {
    let affine = |bits, group_size| Packing { mode: PackingMode::Affine, bits, group_size };
    match name {
        "affine4" => affine(4, 64),
        "affine8" => affine(8, 64),
        "affine8_32" => affine(8, 32),
        other => other.parse::<QuantizeFormat>().unwrap().packing(),
    }
}

fn rounded(dense_type: DenseType, value: f32) -> f32 {
    match dense_type {
        DenseType::F32 => value,
        DenseType::Bf16 => bf16::from_f32(value).to_f32(),
        DenseType::F16 => f16::from_f32(value).to_f32(),
    }
}

fn values(dense_type: DenseType, bytes: &[u8]) -> Vec<f32> {
    let halves = || bytes.as_chunks().0.iter();
    match dense_type {
        DenseType::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        DenseType::Bf16 => halves().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        DenseType::F16 => halves().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
    }
}

fn bytes(hex: &Value) -> Vec<u8> {
    let digits = hex.as_str().unwrap().as_bytes().chunks(2);
    digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// Codes, scales and biases of a row; no biases where there are none.
fn pack_row(rows: &QuantizedRows<'_>, row: usize) -> Result<Vec<Vec<u8>>, NotFinite> {
    let sizes = rows.row_bytes();
    let mut bytes = vec![0; sizes.iter().sum()];
    rows.pack_row(row, &mut bytes)?;
    let mut rest = &bytes[..];
    let parts = sizes.map(|size| rest.split_off(..size).unwrap().to_vec());
    Ok(parts.into_iter().filter(|part| !part.is_empty()).collect())
}

/// Codes, scales and biases of all rows.
fn packed(rows: &Rows, packing: Packing) -> Vec<Vec<u8>> {
    let quantized = QuantizedRows::new(rows, packing).unwrap();
    let mut all = pack_row(&quantized, 0).unwrap();
    for row in 1..rows.rows() {
        for (part, bytes) in all.iter_mut().zip(pack_row(&quantized, row).unwrap()) {
            part.extend(bytes);
        }
    }
    all
}

#[test]
fn awkward_groups_get_the_codes_scales_and_biases_of_mlx() {
    let golden: Value = serde_json::from_str(GOLDEN).unwrap();
    for group in golden["groups"].as_array().unwrap() {
        let dense_type = dense_type(&group["dtype"]);
        let rows = Rows(dense_type, values(dense_type, &bytes(&group["rows"])));
        let outputs = group["outputs"].as_object().unwrap();
        assert_eq!(outputs.len(), 6);
        for (name, expected) in outputs {
            let packing = packing(name);
            let parts = packed(&rows, packing);
            let expected: Vec<Vec<u8>> = expected.as_array().unwrap().iter().map(bytes).collect();
            assert_eq!(parts.len(), expected.len());
            for (part, (found, expected)) in parts.iter().zip(&expected).enumerate() {
                let per_row = expected.len() / rows.rows();
                for row in 0..rows.rows() {
                    let range = row * per_row..(row + 1) * per_row;
                    let place = format!("{dense_type:?} {name} part {part} row {row}");
                    assert_eq!(found[range.clone()], expected[range], "{place}");
                }
            }
        }
    }
}

/// Values in [-1, 1) of 24 significant bits, times powers of two that change every 512 values.
fn digest_values(dense_type: DenseType) -> Vec<f32> {
    let mut state = 1_u64;
    let value = |index: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let fraction = ((state >> 40) as f32 - (1 << 23) as f32) / (1 << 23) as f32;
        rounded(dense_type, fraction * 2.0_f32.powi(4 - (index / 512 % 24) as i32))
    };
    (0..DIGEST_VALUES).map(value).collect()
}

fn fnv(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

#[test]
fn many_values_of_all_magnitudes_get_the_numbers_of_mlx() {
    let golden: Value = serde_json::from_str(GOLDEN).unwrap();
    let digests = golden["digests"].as_array().unwrap();
    assert_eq!(digests.len(), 18);
    for digest in digests {
        let dense_type = dense_type(&digest["dtype"]);
        let rows = Rows(dense_type, digest_values(dense_type));
        let found = packed(&rows, packing(digest["format"].as_str().unwrap()));
        let found: Vec<String> = found.iter().map(|part| fnv(part)).collect();
        assert_eq!(serde_json::json!(found), digest["fnv"], "{digest}");
    }
}

#[test]
fn a_matrix_holds_what_is_written() {
    let packings = ["affine4", "affine8_32", "mxfp4", "mxfp8", "nvfp4"];
    for dense_type in [DenseType::F32, DenseType::Bf16, DenseType::F16] {
        let rows = Rows(dense_type, digest_values(dense_type));
        for (name, packing) in packings.map(|name| (name, packing(name))) {
            let quantized = QuantizedRows::new(&rows, packing).unwrap();
            let matrix = quantized.pack(&Device::Cpu).unwrap();
            assert_eq!(matrix.format(), QuantizedRows::format(packing, dense_type));
            for row in [0, 500, 1023] {
                let mut found = vec![f32::NAN; COLS];
                matrix.dequantize_row(row, &mut found).unwrap();
                let expected = unpacked(pack_row(&quantized, row).unwrap(), packing, dense_type);
                assert_eq!(found, expected, "{dense_type:?} {name}");
            }
        }
    }
}

/// The values of a row as written, by the definitions of the formats.
fn unpacked(parts: Vec<Vec<u8>>, packing: Packing, dense_type: DenseType) -> Vec<f32> {
    let codes: Vec<u8> = match packing.bits {
        4 => parts[0].iter().flat_map(|byte| [byte & 15, byte >> 4]).collect(),
        _ => parts[0].clone(),
    };
    let e2m1 = |code: u8| {
        let magnitude = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0][usize::from(code & 7)];
        if code & 8 == 0 { magnitude } else { -magnitude }
    };
    let e4m3 = |code: u8| {
        let (exponent, fraction) = (i32::from(code >> 3 & 15), f32::from(code & 7) / 8.0);
        let magnitude = match exponent {
            0 => fraction * 2.0_f32.powi(-6),
            _ => (1.0 + fraction) * 2.0_f32.powi(exponent - 7),
        };
        if code & 0x80 == 0 { magnitude } else { -magnitude }
    };
    let value = |(index, code): (usize, &u8)| {
        let group = index / packing.group_size;
        match packing.mode {
            PackingMode::Affine => {
                let of = |part: usize| values(dense_type, &parts[part])[group];
                of(1) * f32::from(*code) + of(2)
            }
            PackingMode::Mxfp4 => e2m1(*code) * 2.0_f32.powi(i32::from(parts[1][group]) - 127),
            PackingMode::Mxfp8 => e4m3(*code) * 2.0_f32.powi(i32::from(parts[1][group]) - 127),
            PackingMode::Nvfp4 => e2m1(*code) * e4m3(parts[1][group]),
        }
    };
    codes.iter().enumerate().map(value).collect()
}

#[test]
fn columns_that_are_no_multiple_of_the_group_and_wild_values_are_refused() {
    let mut rows = Rows(DenseType::F32, vec![1.0; COLS]);
    assert!(QuantizedRows::new(&rows, Packing { group_size: 48, ..Packing::WIDE }).is_none());
    rows.1[7] = f32::NAN;
    let quantized = QuantizedRows::new(&rows, Packing::WIDE).unwrap();
    assert_eq!(pack_row(&quantized, 0), Err(NotFinite));
}
