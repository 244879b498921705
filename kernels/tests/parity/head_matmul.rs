//! Rows of the table of `head_matmul`.

use std::sync::Arc;

use sconce_kernels::head_matmul::reference;
use sconce_kernels::matmul::reference as source_rows;
use sconce_kernels::{
    ActivationBuffer, ActivationType, DenseType, Error, Matrix, Mode, Pool, head_matmul, matmul,
};

use crate::common::{Backend, Random, bits, compare, device, gpu, poisoned, tensor, values};
use crate::matmul::{Affine, Dense, formats};

/// Heads of one shape, to be packed for a backend, and the values of each.
type Heads = (Box<dyn Fn() -> Vec<Matrix>>, Vec<Vec<f32>>);

/// Heads in dense formats.
fn dense(heads: usize, rows: usize, cols: usize, dense_type: DenseType) -> Heads {
    let source = move || Dense { rows, cols, dense_type };
    let all: Vec<f32> = (0..rows).flat_map(|row| source_rows::dense_row(&source(), row)).collect();
    let pack = move |_| Matrix::pack_dense(&source(), &device()).unwrap();
    (Box::new(move || (0..heads).map(pack).collect()), vec![all; heads])
}

/// Heads in an affine format.
fn affine(heads: usize, rows: usize, cols: usize, format: usize) -> Heads {
    let source =
        move |head| Affine { rows, cols, format: formats()[format], seed: head as u64 + 1 };
    let all = |head: usize| {
        (0..rows).flat_map(|row| source_rows::affine_row(&source(head), row)).collect()
    };
    let values = (0..heads).map(all).collect();
    let pack = move |head: usize| Matrix::pack_affine(&source(head), &device()).unwrap();
    (Box::new(move || (0..heads).map(pack).collect()), values)
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
    for (pack, expected_weights) in &tables {
        let weights = pack();
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
            for (backend, stacked) in
                Backend::all().into_iter().flat_map(|it| [(it, false), (it, true)])
            {
                let found = backend.with(|| {
                    let weights = pack();
                    let weights = if stacked { Matrix::stack(weights).unwrap() } else { weights };
                    run(&x, &weights, rows)
                });
                let case = format!("{backend} {stacked} {rows}x{heads}x{inputs}x{outputs}");
                compare(&case, &found, &expected, &magnitudes, 3e-6);
            }
        }
    }
}

/// Checks that rows have the bits of one matmul a head.
fn assert_alone(weights: &[Matrix], rows: usize, case: &str) {
    let (heads, outputs, inputs) = (weights.len(), weights[0].rows(), weights[0].cols());
    let x = Random::new(9).numbers(rows * heads * inputs);
    let all = run(&x, weights, rows);
    for (row, head) in [(0, 0), (rows / 2, 1), (rows / 2 + 1, 1), (rows - 1, 0)] {
        let alone = tensor(&x[(row * heads + head) * inputs..][..inputs], inputs);
        let exact = ActivationType::F32;
        let mut buffer = ActivationBuffer::new(1, inputs, exact, &device()).unwrap();
        let prepared = buffer.prepare(&alone, 1, &[&weights[head]]).unwrap();
        let out = poisoned(1, outputs);
        matmul(&out, &prepared, &weights[head], Mode::Store).unwrap();
        let found = &all[(row * heads + head) * outputs..][..outputs];
        assert_eq!(bits(found), bits(&values(&out)), "{case}: row {row}, head {head}");
    }
}

#[test]
fn a_row_has_the_bits_of_one_matmul_a_head_on_any_number_of_threads() {
    let tables = [affine(3, 70, 64, 7), dense(2, 70, 33, DenseType::Bf16)];
    for (pack, _) in &tables {
        // On a GPU so many rows have other bits than one.
        for threads in [1, 2, 5].into_iter().filter(|_| gpu().is_none()) {
            let pool = Arc::new(Pool::new(threads).unwrap());
            Pool::with(&pool, || assert_alone(&pack(), 70, &format!("{threads} threads")));
        }
        for backend in Backend::all() {
            // Few rows of a GPU.
            backend.with(|| assert_alone(&pack(), 8, &backend.to_string()));
        }
    }
}

#[test]
fn heads_that_do_not_fit_are_refused() {
    let mut weights = dense(2, 3, 4, DenseType::F32).0();
    let (x, out) = (tensor(&[0.0; 16], 8), poisoned(2, 6));
    assert!(head_matmul(&out, &x, &weights, 2).is_ok());
    let refused = |found| assert!(matches!(found, Err(Error::Shape { .. })));
    refused(head_matmul(&out, &x, &weights, 3));
    refused(head_matmul(&out, &x, &weights[..1], 2));
    refused(head_matmul(&poisoned(2, 7), &x, &weights, 2));
    refused(head_matmul(&out, &x, &[], 2));
    let square = dense(2, 4, 4, DenseType::F32).0();
    assert!(matches!(head_matmul(&x, &x, &square, 2), Err(Error::Aliased { .. })));
    weights.extend(dense(1, 4, 3, DenseType::F32).0());
    let error = head_matmul(&out, &x, &weights, 2).unwrap_err().to_string();
    assert_eq!(error, "head_matmul: weights must be at least one, all [3, 4], found [4, 3]");
}
