//! Rows of the tables of `add`, `add_bias` and `silu_mul`.

use sconce_kernels::{Error, Isa, add, add_bias, silu_mul, write_rows};

use crate::common::{Random, bits, compare, poisoned, tensor, values, vector};

const SHAPES: [(usize, usize); 6] = [(0, 8), (1, 1), (3, 16), (2, 33), (40, 96), (20, 1537)];

#[test]
fn add_matches_its_reference() {
    for (rows, dim) in SHAPES {
        let mut random = Random::new(dim as u64);
        let (before, x) = (random.numbers(rows * dim), random.numbers((rows + 1) * dim));
        let mut expected = before.clone();
        sconce_kernels::add::reference::add(&mut expected, &x[..rows * dim]);
        let out = poisoned(rows + 1, dim);
        write_rows(&out, &before).unwrap();
        add(&out, &tensor(&x, dim), rows).unwrap();
        assert_eq!(bits(&values(&out)[..rows * dim]), bits(&expected));
        assert!(values(&out)[rows * dim..].iter().all(|value| value.is_nan()));
    }
}

#[test]
fn add_bias_matches_its_reference() {
    for (rows, dim) in SHAPES {
        let mut random = Random::new(dim as u64);
        let (before, bias) = (random.numbers(rows * dim), random.numbers(dim));
        let mut expected = before.clone();
        sconce_kernels::add::reference::add_bias(&mut expected, &bias);
        let out = poisoned(rows + 1, dim);
        write_rows(&out, &before).unwrap();
        add_bias(&out, &vector(&bias), rows).unwrap();
        assert_eq!(bits(&values(&out)[..rows * dim]), bits(&expected));
        assert!(values(&out)[rows * dim..].iter().all(|value| value.is_nan()));
    }
}

#[test]
fn silu_mul_matches_its_reference() {
    for (rows, dim) in SHAPES {
        let mut random = Random::new(dim as u64);
        let mut numbers = |factor: f32| -> Vec<f32> {
            random.numbers((rows + 1) * dim).iter().map(|number| number * factor).collect()
        };
        let (gate, up) = (numbers(20.0), numbers(3.0));
        let live = rows * dim;
        let mut expected = vec![0.0; live];
        sconce_kernels::silu_mul::reference::silu_mul(&mut expected, &gate, &up);
        let magnitudes: Vec<f32> = expected.iter().map(|value| value.abs()).collect();
        for isa in Isa::available() {
            let out = poisoned(rows + 1, dim);
            isa.with(|| silu_mul(&out, &tensor(&gate, dim), &tensor(&up, dim), rows)).unwrap();
            let case = format!("{isa} {rows}x{dim}");
            compare(&case, &values(&out), &expected, &magnitudes, 1e-6);
        }
    }
}

#[test]
fn silu_of_extremes_is_what_its_limits_are() {
    let gate = [-1e30, -100.0, -0.0, 0.0, 100.0, 1e30, f32::NAN];
    for isa in Isa::available() {
        let out = poisoned(1, 7);
        isa.with(|| silu_mul(&out, &tensor(&gate, 7), &tensor(&[1.0; 7], 7), 1)).unwrap();
        let out = values(&out);
        assert!(out[1].abs() < 1e-30, "{isa}: {}", out[1]);
        assert!(out[0].abs() < 1e-7, "{isa}: {}", out[0]);
        assert_eq!(out[2..6], [0.0, 0.0, 100.0, 1e30], "{isa}");
        assert!(out[6].is_nan(), "{isa}");
    }
}

#[test]
fn an_input_that_is_the_output_is_refused() {
    let x = tensor(&[1.0; 8], 4);
    let error = add(&x, &x, 2).unwrap_err();
    assert_eq!(error.to_string(), "add: x shares its storage with the output");
    assert!(matches!(silu_mul(&x, &x.clone(), &poisoned(2, 4), 2), Err(Error::Aliased { .. })));
}
