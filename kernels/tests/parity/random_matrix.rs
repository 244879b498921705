//! Weights of random codes: what they are worth, and that a seed makes the same again.

use sconce_kernels::{ActivationType, AffineFormat, Matrix, Mode, RandomRows, ScaleType};

use crate::common::{Backend, Random, compare, device};
use crate::matmul::run;

fn format(bits: u8, zero_point: Option<u8>) -> AffineFormat {
    AffineFormat { bits, group_size: 64, zero_point, scales: ScaleType::Bf16 }
}

/// All values of a matrix.
fn unpacked(matrix: &Matrix) -> Vec<f32> {
    let mut values = vec![f32::NAN; matrix.rows() * matrix.cols()];
    for (row, out) in values.chunks_exact_mut(matrix.cols()).enumerate() {
        matrix.dequantize_row(row, out).unwrap();
    }
    values
}

#[test]
fn random_weights_are_centred_with_the_variance_that_keeps_a_row_its_length() {
    for (bits, zero_point) in [(4, None), (4, Some(8)), (8, None)] {
        let source = RandomRows { rows: 96, cols: 256, format: format(bits, zero_point), seed: 5 };
        for backend in Backend::all() {
            let matrix = backend.with(|| Matrix::random(&source, &device())).unwrap();
            let values = unpacked(&matrix);
            let case = format!("{backend} {bits} bits, {zero_point:?}");
            let mean = values.iter().sum::<f32>() / values.len() as f32;
            let square = values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32;
            // The factor of groups is a power of two.
            assert!((0.4..2.5).contains(&(square * 256.0)), "{case}: mean square {square}");
            assert!(mean.abs() < 0.2 / 16.0, "{case}: mean {mean}");
            let mut distinct: Vec<u32> = values.iter().map(|v| v.to_bits()).collect();
            distinct.sort_unstable();
            distinct.dedup();
            assert_eq!(distinct.len(), 1 << bits, "{case}: every code comes");
        }
    }
}

#[test]
fn a_seed_makes_the_same_weights_again_and_another_seed_others() {
    let source = |seed| RandomRows { rows: 20, cols: 128, format: format(4, None), seed };
    for backend in Backend::all() {
        let make =
            |seed| unpacked(&backend.with(|| Matrix::random(&source(seed), &device())).unwrap());
        assert_eq!(make(3), make(3), "{backend}");
        assert_ne!(make(3), make(4), "{backend}");
        let matrix = backend.with(|| Matrix::random(&source(3), &device())).unwrap();
        let format = matrix.format();
        let foreseen = backend.with(|| Matrix::bytes_on(format, 20, 128, &device())).unwrap();
        assert_eq!(matrix.bytes() as u64, foreseen, "{backend}");
    }
}

#[test]
fn products_with_random_weights_are_those_of_their_values() {
    let source = RandomRows { rows: 48, cols: 256, format: format(4, None), seed: 1 };
    let x = Random::new(2).numbers(3 * 256);
    for backend in Backend::all() {
        let matrix = backend.with(|| Matrix::random(&source, &device())).unwrap();
        let (values, mut expected, mut sizes) = (unpacked(&matrix), Vec::new(), Vec::new());
        for (x, row) in x.chunks(256).flat_map(|x| values.chunks(256).map(move |row| (x, row))) {
            expected.push(x.iter().zip(row).map(|(a, b)| a * b).sum::<f32>());
            sizes.push(x.iter().zip(row).map(|(a, b)| (a * b).abs()).sum::<f32>());
        }
        let found = backend.with(|| run(&x, &matrix, ActivationType::F32, Mode::Store, &[]));
        compare(&backend.to_string(), &found, &expected, &sizes, 2e-6);
    }
}

#[test]
fn formats_and_sizes_that_random_words_do_not_fill_are_refused() {
    for backend in Backend::all() {
        let refused = |source: RandomRows| {
            backend.with(|| Matrix::random(&source, &device())).unwrap_err().to_string()
        };
        let rows = |format, cols| RandomRows { rows: 4, cols, format, seed: 1 };
        let error = refused(rows(format(5, None), 128));
        assert!(error.contains("4 or 8 bits"), "{backend}: {error}");
        let wide = AffineFormat { scales: ScaleType::F32, ..format(4, None) };
        assert!(refused(rows(wide, 128)).contains("scales of 16 bits"), "{backend}");
        if backend.is_gpu() {
            let error = refused(rows(format(4, None), 192));
            assert!(error.contains("a multiple of 128 columns"), "{backend}: {error}");
        }
    }
}
