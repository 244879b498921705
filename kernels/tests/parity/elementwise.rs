//! Rows of the tables of `add`, `add_bias`, `add_gated`, `scale` and `gate_mul`.

use sconce_kernels::gate_mul::reference;
use sconce_kernels::{
    Activation, Error, GateProduct, add, add_bias, add_gated, gate_mul, gate_muls, scale,
    write_rows,
};

use crate::common::{Backend, Random, bits, compare, displaced, poisoned, tensor, values, vector};

const SHAPES: [(usize, usize); 7] =
    [(0, 8), (1, 1), (3, 16), (2, 33), (40, 96), (20, 1537), (2, 2052)];
const ACTIVATIONS: [Activation; 3] = [Activation::Silu, Activation::GeluTanh, Activation::Sigmoid];

#[test]
fn add_matches_its_reference() {
    for (rows, dim) in SHAPES {
        let mut random = Random::new(dim as u64);
        let (before, x) = (random.numbers(rows * dim), random.numbers((rows + 1) * dim));
        let mut expected = before.clone();
        sconce_kernels::add::reference::add(&mut expected, &x[..rows * dim]);
        for backend in Backend::all() {
            let out = poisoned(rows + 1, dim);
            write_rows(&out, &before).unwrap();
            backend.with(|| add(&out, &tensor(&x, dim), rows)).unwrap();
            assert_eq!(bits(&values(&out)[..rows * dim]), bits(&expected), "{backend}");
            assert!(values(&out)[rows * dim..].iter().all(|value| value.is_nan()), "{backend}");
        }
    }
}

#[test]
fn add_bias_matches_its_reference() {
    for (rows, dim) in SHAPES {
        let mut random = Random::new(dim as u64);
        let (before, bias) = (random.numbers(rows * dim), random.numbers(dim));
        let mut expected = before.clone();
        sconce_kernels::add::reference::add_bias(&mut expected, &bias);
        for backend in Backend::all() {
            let out = poisoned(rows + 1, dim);
            write_rows(&out, &before).unwrap();
            backend.with(|| add_bias(&out, &vector(&bias), rows)).unwrap();
            assert_eq!(bits(&values(&out)[..rows * dim]), bits(&expected), "{backend}");
            assert!(values(&out)[rows * dim..].iter().all(|value| value.is_nan()), "{backend}");
        }
    }
}

#[test]
fn add_gated_matches_its_reference() {
    for (rows, dim) in SHAPES {
        let mut random = Random::new(dim as u64);
        let (before, x) = (random.numbers(rows * dim), random.numbers(rows * dim));
        let gate: Vec<f32> = random.numbers(rows + 1).iter().map(|gate| gate * 90.0).collect();
        let mut expected = before.clone();
        sconce_kernels::add::reference::add_gated(&mut expected, &x, &gate[..rows]);
        let magnitudes: Vec<f32> =
            before.iter().zip(&x).map(|(before, x)| before.abs() + x.abs()).collect();
        for backend in Backend::all() {
            let out = poisoned(rows + 1, dim);
            write_rows(&out, &before).unwrap();
            let (x, gate) = (tensor(&x, dim), tensor(&gate, 1));
            backend.with(|| add_gated(&out, &x, &gate, rows)).unwrap();
            // The exponential of a GPU is another one, and it adds a product without rounding it.
            let tolerance = if backend.is_gpu() { 5e-7 } else { 0.0 };
            let case = format!("{backend} {rows}x{dim}");
            compare(&case, &values(&out), &expected, &magnitudes, tolerance);
        }
    }
}

#[test]
fn scale_matches_its_reference() {
    for (rows, dim) in SHAPES {
        let before = Random::new(dim as u64).numbers(rows * dim);
        let mut expected = before.clone();
        sconce_kernels::scale::reference::scale(&mut expected, 33.941_124);
        for backend in Backend::all() {
            let out = poisoned(rows + 1, dim);
            write_rows(&out, &before).unwrap();
            backend.with(|| scale(&out, 33.941_124, rows)).unwrap();
            assert_eq!(bits(&values(&out)[..rows * dim]), bits(&expected), "{backend}");
            assert!(values(&out)[rows * dim..].iter().all(|value| value.is_nan()), "{backend}");
        }
    }
}

#[test]
fn gate_mul_matches_its_reference() {
    for activation in ACTIVATIONS {
        for (rows, dim) in SHAPES {
            let mut random = Random::new(dim as u64);
            let mut numbers = |factor: f32| -> Vec<f32> {
                random.numbers((rows + 1) * dim).iter().map(|number| number * factor).collect()
            };
            let (gate, x) = (numbers(20.0), numbers(3.0));
            let live = rows * dim;
            let mut expected = vec![0.0; live];
            reference::gate_mul(&mut expected, &gate, &x, activation);
            let magnitude = |i: usize| match activation {
                // Below -5 the definition itself loses all digits: 1 + tanh cancels.
                Activation::GeluTanh => (gate[i] * x[i]).abs(),
                Activation::Silu | Activation::Sigmoid => expected[i].abs(),
            };
            let magnitudes: Vec<f32> = (0..live).map(magnitude).collect();
            for backend in Backend::all() {
                let out = poisoned(rows + 1, dim);
                let (gate, x) = (tensor(&gate, dim), tensor(&x, dim));
                backend.with(|| gate_mul(&out, &gate, &x, activation, rows)).unwrap();
                let case = format!("{backend} {activation:?} {rows}x{dim}");
                compare(&case, &values(&out), &expected, &magnitudes, 1e-6);
            }
        }
    }
}

#[test]
fn activations_of_extremes_are_what_their_limits_are() {
    let gate = [-1e30, -100.0, -0.0, 0.0, 100.0, 1e30, f32::NAN];
    for activation in ACTIVATIONS {
        let limits = match activation {
            Activation::Silu | Activation::GeluTanh => [0.0, 0.0, 100.0, 1e30],
            Activation::Sigmoid => [0.5, 0.5, 1.0, 1.0],
        };
        for backend in Backend::all() {
            let (out, gate, ones) = (poisoned(1, 7), tensor(&gate, 7), tensor(&[1.0; 7], 7));
            backend.with(|| gate_mul(&out, &gate, &ones, activation, 1)).unwrap();
            let out = values(&out);
            let case = format!("{backend} {activation:?}: {out:?}");
            assert!(out[1].abs() < 1e-30 && out[0].abs() < 1e-7, "{case}");
            assert_eq!(out[2..6], limits, "{case}");
            assert!(out[6].is_nan(), "{case}");
        }
    }
}

#[test]
fn a_gated_row_has_the_same_bits_alone_and_in_a_batch() {
    let (gate, x) = (Random::new(1).numbers(40 * 577), Random::new(2).numbers(40 * 577));
    for activation in ACTIVATIONS {
        for backend in Backend::all() {
            let all = poisoned(40, 577);
            let (gates, rows) = (tensor(&gate, 577), tensor(&x, 577));
            backend.with(|| gate_mul(&all, &gates, &rows, activation, 40)).unwrap();
            for row in [0, 1, 14, 39] {
                let alone = poisoned(1, 577);
                let one = |all: &[f32]| tensor(&all[row * 577..][..577], 577);
                backend.with(|| gate_mul(&alone, &one(&gate), &one(&x), activation, 1)).unwrap();
                assert_eq!(bits(&values(&alone)), bits(&values(&all)[row * 577..][..577]));
            }
        }
    }
}

#[test]
fn what_lies_at_odd_places_has_the_same_bits() {
    let random = |seed: u64, len: usize| Random::new(seed).numbers(len);
    let (before, x, gates) = (random(1, 6 * 1028), random(2, 6 * 1028), random(3, 6));
    for backend in Backend::all() {
        let run = |rows: &dyn Fn(&[f32], usize) -> candle_core::Tensor| {
            let (out, product) = (rows(&before, 1028), rows(&before, 1028));
            let (x, gates, bias) = (rows(&x, 1028), rows(&gates, 1), rows(&x[..1028], 1028));
            backend.with(|| {
                add(&out, &x, 6).unwrap();
                add_bias(&out, &bias.flatten_all().unwrap(), 6).unwrap();
                add_gated(&out, &x, &gates, 6).unwrap();
                scale(&out, 1.7, 6).unwrap();
                gate_mul(&product, &out, &x, Activation::Silu, 6).unwrap();
            });
            (bits(&values(&out)), bits(&values(&product)))
        };
        assert_eq!(run(&tensor), run(&displaced), "{backend}");
    }
}

#[test]
fn an_input_that_is_the_output_is_refused() {
    let x = tensor(&[1.0; 8], 4);
    let error = add(&x, &x, 2).unwrap_err();
    assert_eq!(error.to_string(), "add: x shares its storage with the output");
    let other = poisoned(2, 4);
    let gated = gate_mul(&x, &x.clone(), &other, Activation::Silu, 2);
    assert!(matches!(gated, Err(Error::Aliased { .. })));
    let gate = x.narrow(1, 0, 1).unwrap();
    assert!(matches!(add_gated(&x, &other, &gate, 2), Err(Error::Aliased { .. })));
    let wide = poisoned(2, 2);
    assert!(matches!(add_gated(&x, &other, &wide, 2), Err(Error::Shape { .. })));
}

#[test]
fn two_products_have_the_bits_of_each_alone() {
    for [first, second] in
        [[(3, 40), (1, 24)], [(2, 1030), (7, 33)], [(0, 8), (2, 8)], [(5, 3), (0, 4)]]
    {
        let mut random = Random::new((first.1 + second.1) as u64);
        let mut rows = |(rows, dim): (usize, usize)| {
            [(); 2].map(|()| tensor(&random.numbers((rows + 1) * dim), dim))
        };
        let ([gate, x], [other_gate, other_x]) = (rows(first), rows(second));
        for backend in Backend::all() {
            let outs = || [first, second].map(|(rows, dim)| poisoned(rows + 1, dim));
            let ([alone, other_alone], [out, other]) = (outs(), outs());
            backend.with(|| {
                gate_mul(&alone, &gate, &x, Activation::Silu, first.0).unwrap();
                gate_mul(&other_alone, &other_gate, &other_x, Activation::Silu, second.0).unwrap();
                let products = [
                    GateProduct { out: &out, gate: &gate, x: &x, rows: first.0 },
                    GateProduct { out: &other, gate: &other_gate, x: &other_x, rows: second.0 },
                ];
                gate_muls(products, Activation::Silu).unwrap();
            });
            assert_eq!(bits(&values(&out)), bits(&values(&alone)), "{backend} {first:?}");
            assert_eq!(bits(&values(&other)), bits(&values(&other_alone)), "{backend} {second:?}");
        }
    }
}

#[test]
fn products_that_share_an_output_are_refused() {
    let (out, gate, x) = (poisoned(2, 4), poisoned(2, 4), poisoned(2, 4));
    let product = GateProduct { out: &out, gate: &gate, x: &x, rows: 1 };
    let found = gate_muls([product; 2], Activation::Silu);
    assert!(matches!(found, Err(Error::Aliased { operand: "out", .. })));
    let found = gate_muls(
        [product, GateProduct { out: &x, gate: &gate, x: &gate, rows: 1 }],
        Activation::Silu,
    );
    assert!(matches!(found, Err(Error::Aliased { operand: "x", .. })));
}
