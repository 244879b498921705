//! Rows of the table of `head_matmul`.

use std::sync::Arc;

use candle_core::Device;
use sconce_kernels::head_matmul::reference;
use sconce_kernels::matmul::reference as source_rows;
use sconce_kernels::{
    ActivationBuffer, ActivationType, DenseType, Error, Isa, Matrix, Mode, Pool, head_matmul,
    matmul,
};

use crate::common::{Random, bits, compare, poisoned, tensor, values};
use crate::matmul::{Affine, Dense, formats};

/// Heads in dense formats, with the values of each.
fn dense(
    heads: usize,
    rows: usize,
    cols: usize,
    dense_type: DenseType,
) -> (Vec<Matrix>, Vec<Vec<f32>>) {
    let source = Dense { rows, cols, dense_type };
    let all: Vec<f32> = (0..rows).flat_map(|row| source_rows::dense_row(&source, row)).collect();
    let pack = |_| Matrix::pack_dense(&source, &Device::Cpu).unwrap();
    ((0..heads).map(pack).collect(), vec![all; heads])
}

/// Heads in an affine format, with the values of each.
fn affine(heads: usize, rows: usize, cols: usize, format: usize) -> (Vec<Matrix>, Vec<Vec<f32>>) {
    let head = |head: usize| {
        let source = Affine { rows, cols, format: formats()[format], seed: head as u64 + 1 };
        let all = (0..rows).flat_map(|row| source_rows::affine_row(&source, row)).collect();
        (Matrix::pack_affine(&source, &Device::Cpu).unwrap(), all)
    };
    (0..heads).map(head).unzip()
}

fn run(x: &[f32], weights: &[Matrix], rows: usize) -> Vec<f32> {
    let (inputs, outputs) = (weights[0].cols(), weights[0].rows());
    let out = poisoned(rows + 1, weights.len() * outputs);
    head_matmul(&out, &tensor(x, weights.len() * inputs), weights, rows).unwrap();
    values(&out)
}

#[test]
fn head_matmul_matches_its_reference() {
    let tables = [
        dense(1, 1, 1, DenseType::F32),
        dense(3, 33, 7, DenseType::Bf16),
        dense(4, 20, 48, DenseType::F16),
        affine(3, 37, 128, 0),
        affine(2, 512, 64, 7),
        affine(5, 16, 192, 5),
    ];
    for (weights, expected_weights) in &tables {
        let (heads, outputs, inputs) = (weights.len(), weights[0].rows(), weights[0].cols());
        for rows in [0, 1, 3, 40] {
            let x = Random::new(rows as u64 + 3).numbers((rows + 1) * heads * inputs);
            let live = &x[..rows * heads * inputs];
            let mut expected = vec![0.0; rows * heads * outputs];
            let mut magnitudes = expected.clone();
            reference::head_matmul(&mut expected, live, expected_weights, inputs);
            let absolute = |values: &[f32]| values.iter().map(|value| value.abs()).collect();
            let sizes: Vec<Vec<f32>> = expected_weights.iter().map(|head| absolute(head)).collect();
            let positive: Vec<f32> = absolute(live);
            reference::head_matmul(&mut magnitudes, &positive, &sizes, inputs);
            for isa in Isa::available() {
                let found = isa.with(|| run(&x, weights, rows));
                let case = format!("{isa} {rows}x{heads}x{inputs}x{outputs}");
                compare(&case, &found, &expected, &magnitudes, 3e-6);
            }
        }
    }
}

#[test]
fn a_row_has_the_bits_of_one_matmul_a_head_on_any_number_of_threads() {
    for threads in [1, 2, 5] {
        let pool = Arc::new(Pool::new(threads).unwrap());
        for (weights, _) in [affine(3, 70, 64, 7), dense(2, 70, 33, DenseType::Bf16)] {
            let (heads, outputs, inputs) = (weights.len(), weights[0].rows(), weights[0].cols());
            let x = Random::new(9).numbers(70 * heads * inputs);
            let all = Pool::with(&pool, || run(&x, &weights, 70));
            for (row, head) in [(0, 0), (31, 1), (32, 1), (69, 0)] {
                let alone = tensor(&x[(row * heads + head) * inputs..][..inputs], inputs);
                let exact = ActivationType::F32;
                let mut buffer = ActivationBuffer::new(1, inputs, exact, &Device::Cpu).unwrap();
                let prepared = buffer.prepare(&alone, 1, &[&weights[head]]).unwrap();
                let out = poisoned(1, outputs);
                matmul(&out, &prepared, &weights[head], Mode::Store).unwrap();
                let found = &all[(row * heads + head) * outputs..][..outputs];
                assert_eq!(bits(found), bits(&values(&out)), "row {row}, head {head}");
            }
        }
    }
}

#[test]
fn heads_that_do_not_fit_are_refused() {
    let (mut weights, _) = dense(2, 3, 4, DenseType::F32);
    let (x, out) = (tensor(&[0.0; 16], 8), poisoned(2, 6));
    assert!(head_matmul(&out, &x, &weights, 2).is_ok());
    let refused = |found| assert!(matches!(found, Err(Error::Shape { .. })));
    refused(head_matmul(&out, &x, &weights, 3));
    refused(head_matmul(&out, &x, &weights[..1], 2));
    refused(head_matmul(&poisoned(2, 7), &x, &weights, 2));
    refused(head_matmul(&out, &x, &[], 2));
    let square = dense(2, 4, 4, DenseType::F32).0;
    assert!(matches!(head_matmul(&x, &x, &square, 2), Err(Error::Aliased { .. })));
    weights.extend(dense(1, 4, 3, DenseType::F32).0);
    let error = head_matmul(&out, &x, &weights, 2).unwrap_err().to_string();
    assert_eq!(error, "head_matmul: weights must be at least one, all [3, 4], found [4, 3]");
}
