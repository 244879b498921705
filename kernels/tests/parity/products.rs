//! Several products of the same activations at a time, which must be those of each alone.

use std::sync::Arc;

use candle_core::Tensor;
use sconce_kernels::{
    ActivationBuffer, ActivationType, Error, Matrix, Mode, Pool, Product, matmul, matmuls,
};

use crate::common::{Backend, bits, device, poisoned, tensor, values};
use crate::matmul::{Affine, Dense, activations, formats};

const COLS: usize = 128;
/// Rows of the weights: one panel, part of one, several.
const OUTPUTS: [usize; 4] = [16, 5, 70, 33];

/// Weights of several packings.
fn weights() -> Vec<Matrix> {
    let affine = |rows, index: usize| {
        let source = Affine { rows, cols: COLS, format: formats()[index], seed: rows as u64 };
        Matrix::pack_affine(&source, &device()).unwrap()
    };
    let dense = Dense { rows: OUTPUTS[2], cols: COLS, dense_type: sconce_kernels::DenseType::Bf16 };
    let dense = Matrix::pack_dense(&dense, &device()).unwrap();
    vec![affine(OUTPUTS[0], 0), affine(OUTPUTS[1], 1), dense, affine(OUTPUTS[3], 0)]
}

fn outputs(rows: usize) -> Vec<Tensor> {
    OUTPUTS.iter().map(|outputs| poisoned(rows, *outputs)).collect()
}

#[test]
fn products_together_have_the_bits_of_each_alone() {
    let pool = Arc::new(Pool::new(3).unwrap());
    for kind in [ActivationType::F32, ActivationType::Int8, ActivationType::Int16] {
        for rows in [0, 1, 3, 130] {
            let x = tensor(&activations(1, rows, COLS), COLS);
            for backend in Backend::all() {
                let (alone, together) = (outputs(rows), outputs(rows));
                backend.with(|| {
                    let weights = weights();
                    let all: Vec<&Matrix> = weights.iter().collect();
                    let buffer = ActivationBuffer::new(rows, COLS, kind, &device());
                    let mut buffer = buffer.unwrap();
                    let x = buffer.prepare(&x, rows, &all).unwrap();
                    for (weight, out) in weights.iter().zip(&alone) {
                        matmul(out, &x, weight, Mode::Store).unwrap();
                    }
                    let products: Vec<Product<'_>> = (weights.iter().zip(&together))
                        .map(|(weight, out)| Product { out, weight })
                        .collect();
                    Pool::with(&pool, || matmuls(&products, &x, Mode::Store)).unwrap();
                });
                for (alone, together) in alone.iter().zip(&together) {
                    let case = format!("{backend} {kind:?} {rows}");
                    assert_eq!(bits(&values(alone)), bits(&values(together)), "{case}");
                    assert!(values(alone).iter().all(|value| !value.is_nan()), "{case}");
                }
            }
        }
    }
}

#[test]
fn products_that_cannot_be_together_are_refused() {
    let weights = weights();
    let x = tensor(&activations(1, 2, COLS), COLS);
    let mut buffer = ActivationBuffer::new(2, COLS, ActivationType::F32, &device()).unwrap();
    let x = buffer.prepare(&x, 2, &[&weights[0]]).unwrap();
    let out = poisoned(2, OUTPUTS[0]);
    let product = Product { out: &out, weight: &weights[0] };
    let twice = matmuls(&[product, product], &x, Mode::Store);
    assert!(matches!(twice, Err(Error::Aliased { operand: "out", .. })));
    let many = outputs(2);
    let five: Vec<Product<'_>> = (many.iter().chain([&out]).zip(weights.iter().cycle()))
        .map(|(out, weight)| Product { out, weight })
        .collect();
    let error = matmuls(&five, &x, Mode::Store).unwrap_err().to_string();
    assert_eq!(error, "matmul: products must be at most 4, found 5");
    assert!(matmuls(&[], &x, Mode::Store).is_ok());
    let wrong = Product { out: &many[2], weight: &weights[0] };
    assert!(matches!(matmuls(&[wrong], &x, Mode::Store), Err(Error::Shape { .. })));
}
