//! Rows of the tables of `rms_norm`, `rope` and `gather_rows`.

use candle_core::Tensor;
use sconce_kernels::rope::Angles;
use sconce_kernels::{Error, RopeLayout, gather_rows, rms_norm, rope, write_rows};

use crate::common::{Backend, Random, bits, compare, displaced, poisoned, tensor, values, vector};

#[test]
fn rms_norm_matches_its_reference() {
    // rows, elements of a run, runs of a row
    let shapes = [
        (0, 8, 1),
        (1, 1, 1),
        (3, 16, 1),
        (2, 33, 1),
        (4, 64, 3),
        (3, 130, 7),
        (2, 512, 3),
        (50, 576, 1),
        (2, 2049, 1),
        (1, 8192 + 60, 1),
    ];
    for (rows, dim, runs) in shapes {
        let mut random = Random::new(dim as u64);
        let width = dim * runs;
        let (x, weight) = (random.numbers((rows + 1) * width), random.numbers(dim));
        let live = rows * width;
        let mut expected = vec![0.0; live];
        sconce_kernels::rms_norm::reference::rms_norm(&mut expected, &x[..live], &weight, 1e-5);
        let magnitudes: Vec<f32> = expected.iter().map(|value| value.abs()).collect();
        for backend in Backend::all() {
            let out = poisoned(rows + 1, width);
            let (x, weight) = (tensor(&x, width), vector(&weight));
            backend.with(|| rms_norm(&out, &x, &weight, 1e-5, rows)).unwrap();
            let case = format!("{backend} {rows}x{runs}x{dim}");
            compare(&case, &values(&out), &expected, &magnitudes, 2e-5);
        }
    }
}

#[test]
fn a_normalized_row_has_the_same_bits_alone_in_a_batch_and_at_an_odd_place() {
    for dim in [577, 64, 1024] {
        let x = Random::new(3).numbers(70 * dim);
        let weight = vector(&Random::new(4).numbers(dim));
        for backend in Backend::all() {
            let all = poisoned(70, dim);
            backend.with(|| rms_norm(&all, &tensor(&x, dim), &weight, 1e-6, 70)).unwrap();
            for row in [0, 1, 28, 29, 69] {
                let (alone, odd) = (poisoned(1, dim), displaced(&vec![f32::NAN; dim], dim));
                let x = &x[row * dim..][..dim];
                let run = |out: &Tensor, x: &Tensor| {
                    backend.with(|| rms_norm(out, x, &weight, 1e-6, 1)).unwrap()
                };
                run(&alone, &tensor(x, dim));
                run(&odd, &displaced(x, dim));
                let expected = bits(&values(&all)[row * dim..][..dim]);
                assert_eq!(bits(&values(&alone)), expected, "{backend} {dim} row {row}");
                assert_eq!(bits(&values(&odd)), expected, "{backend} {dim} row {row}, odd");
            }
        }
    }
}

#[test]
fn rope_matches_its_reference() {
    // rows, heads, head_dim, rotary_dim
    let shapes = [
        (0, 2, 8, 8),
        (1, 1, 2, 2),
        (3, 2, 8, 8),
        (5, 3, 64, 64),
        (2, 2, 10, 6),
        (90, 9, 64, 32),
        (2, 2, 8, 0),
        (2, 3, 12, 8),
        (2, 3, 20, 14),
    ];
    for layout in [RopeLayout::Half, RopeLayout::Interleaved] {
        for (rows, heads, head_dim, rotary_dim) in shapes {
            let mut random = Random::new(head_dim as u64);
            let (width, half) = (heads * head_dim, rotary_dim / 2);
            let x = random.numbers(rows * width);
            let (cos, sin) = (random.numbers(rows * half), random.numbers(rows * half));
            let mut expected = x.clone();
            let angles = Angles { cos: &cos, sin: &sin, half };
            sconce_kernels::rope::reference::rope(&mut expected, angles, head_dim, layout);
            let (cos, sin) = (padded(&cos, half, rows), padded(&sin, half, rows));
            for backend in Backend::all() {
                let out = poisoned(rows + 1, width);
                write_rows(&out, &x).unwrap();
                backend.with(|| rope(&out, &cos, &sin, head_dim, layout, rows)).unwrap();
                let case = format!("{backend} {layout:?} {rows}x{heads}x{head_dim}/{rotary_dim}");
                compare(&case, &values(&out), &expected, &vec![1.0; x.len()], 1e-6);
            }
        }
    }
}

#[test]
fn turned_rows_have_the_same_bits_alone_in_a_batch_and_at_an_odd_place() {
    let (heads, head_dim, half) = (5, 64, 24);
    let width = heads * head_dim;
    let x = Random::new(1).numbers(9 * width);
    let (cos, sin) = (Random::new(2).numbers(9 * half), Random::new(3).numbers(9 * half));
    for layout in [RopeLayout::Half, RopeLayout::Interleaved] {
        for backend in Backend::all() {
            let run = |rows: &dyn Fn(&[f32], usize) -> Tensor, first, count| {
                let part = |all: &[f32], dim| rows(&all[first * dim..][..count * dim], dim);
                let (x, cos, sin) = (part(&x, width), part(&cos, half), part(&sin, half));
                backend.with(|| rope(&x, &cos, &sin, head_dim, layout, count)).unwrap();
                bits(&values(&x))
            };
            let all = run(&tensor, 0, 9);
            assert_eq!(run(&displaced, 0, 9), all, "{backend} {layout:?}");
            for row in [0, 8] {
                let expected = &all[row * width..][..width];
                assert_eq!(run(&tensor, row, 1), expected, "{backend} {layout:?} row {row}");
            }
        }
    }
}

/// Angles with a row more than is live.
fn padded(angles: &[f32], half: usize, rows: usize) -> Tensor {
    let device = &candle_core::Device::Cpu;
    let mut all = angles.to_vec();
    all.resize((rows + 1) * half, f32::NAN);
    Tensor::from_slice(&all, (rows + 1, half), device).unwrap()
}

#[test]
fn rope_turns_a_quarter_as_geometry_says() {
    let x = tensor(&[1.0, 2.0, 3.0, 4.0], 4);
    let (cos, sin) = (tensor(&[0.0, 0.0], 2), tensor(&[1.0, 1.0], 2));
    rope(&x, &cos, &sin, 4, RopeLayout::Half, 1).unwrap();
    assert_eq!(values(&x), [-3.0, -4.0, 1.0, 2.0]);
    rope(&x, &cos, &sin, 4, RopeLayout::Interleaved, 1).unwrap();
    assert_eq!(values(&x), [4.0, -3.0, -2.0, 1.0]);
}

#[test]
fn gather_rows_matches_its_reference() {
    for (dim, indices) in
        [(5, vec![]), (5, vec![8]), (5, vec![3, 0, 3, 8]), (8, vec![1, 0]), (1100, vec![8, 2, 2])]
    {
        let x = Random::new(1).numbers(9 * dim);
        let mut expected = vec![0.0; indices.len() * dim];
        sconce_kernels::gather_rows::reference::gather_rows(&mut expected, &x, &indices, dim);
        for backend in Backend::all() {
            for x in [tensor(&x, dim), displaced(&x, dim)] {
                let out = poisoned(indices.len() + 1, dim);
                backend.with(|| gather_rows(&out, &x, &indices)).unwrap();
                let case = format!("{backend} {dim} {indices:?}");
                compare(&case, &values(&out), &expected, &vec![0.0; expected.len()], 0.0);
            }
        }
    }
    let x = Random::new(1).numbers(9 * 5);
    let out = poisoned(2, 5);
    let error = gather_rows(&out, &tensor(&x, 5), &[0, 9]).unwrap_err();
    assert!(matches!(error, Error::Index { position: 1, found: 9, limit: 9, .. }));
}

#[test]
fn rows_that_do_not_fit_are_refused() {
    let x = tensor(&[0.0; 12], 6);
    let weight = vector(&[1.0; 4]);
    assert!(matches!(rms_norm(&poisoned(2, 6), &x, &weight, 1e-5, 2), Err(Error::Shape { .. })));
    let weight = vector(&[1.0; 6]);
    assert!(matches!(rms_norm(&poisoned(2, 6), &x, &weight, 1e-5, 3), Err(Error::Shape { .. })));
    let angles = tensor(&[0.0; 8], 4);
    let turned = rope(&x, &angles, &angles.copy().unwrap(), 6, RopeLayout::Half, 2);
    assert!(matches!(turned, Err(Error::Shape { .. })));
}
