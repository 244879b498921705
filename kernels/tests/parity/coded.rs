//! Rows of the matmul table for coded weights.

use std::sync::Arc;

use half::{bf16, f16};
use sconce_kernels::matmul::reference;
use sconce_kernels::{
    ActivationType, Code, CodedFormat, CodedRows, Matrix, MatrixFormat, Mode, Pool, ScaleType,
};

use crate::common::{Backend, Random, bits, device};
use crate::matmul::{activations, assert_invariant, assert_keeps, assert_matches, run};

/// A weight whose rows are made of seeds.
pub(crate) struct Coded {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) format: CodedFormat,
    pub(crate) seed: u64,
}

impl CodedRows for Coded {
    fn rows(&self) -> usize {
        self.rows
    }
    fn cols(&self) -> usize {
        self.cols
    }
    fn format(&self) -> CodedFormat {
        self.format
    }
    fn read_row(&self, row: usize, codes: &mut [u8], scales: &mut [f32]) {
        let mut random = Random::new(self.seed * 100_003 + row as u64);
        codes.fill_with(|| match self.format.code {
            Code::E2m1 | Code::Iq4Nl => random.below(16) as u8,
            // Every code but the two that are not numbers.
            Code::E4m3 => (random.below(2) * 128 + random.below(127)) as u8,
        });
        scales.fill_with(|| match self.format.scales {
            ScaleType::F32 => random.number(),
            ScaleType::F16 => f16::from_f32(random.number()).to_f32(),
            ScaleType::Bf16 => bf16::from_f32(random.number()).to_f32(),
            ScaleType::E8m0 => 2_f32.powi(random.below(12) as i32 - 8),
        });
    }
}

/// MXFP4, NVFP4, MXFP8, block-scaled FP8, IQ4_NL, and corners of the format.
pub(crate) fn formats() -> Vec<CodedFormat> {
    let format = |code, group_size, scales| CodedFormat { code, group_size, scales };
    vec![
        format(Code::E2m1, 32, ScaleType::E8m0),
        format(Code::E2m1, 16, ScaleType::Bf16),
        format(Code::E2m1, 16, ScaleType::F32),
        format(Code::E2m1, 128, ScaleType::F16),
        format(Code::E4m3, 32, ScaleType::E8m0),
        format(Code::E4m3, 128, ScaleType::F32),
        format(Code::E4m3, 16, ScaleType::F16),
        format(Code::Iq4Nl, 32, ScaleType::F16),
        format(Code::Iq4Nl, 32, ScaleType::F32),
        format(Code::Iq4Nl, 16, ScaleType::F32),
        format(Code::Iq4Nl, 64, ScaleType::Bf16),
    ]
}

/// Expected results and magnitudes.
pub(crate) fn expected(source: &Coded, x: &[f32], kind: ActivationType) -> (Vec<f32>, Vec<f32>) {
    let (mut sums, mut magnitudes) = (Vec::new(), Vec::new());
    let weight: Vec<_> = (0..source.rows).map(|o| reference::coded_row(source, o)).collect();
    for row in x.chunks(source.cols) {
        let quantized = match (kind, source.format.code) {
            (ActivationType::F32, _) | (_, Code::E4m3) => None,
            (ActivationType::Int8, _) => Some(reference::quantize(row, reference::INT8_MAX)),
            (ActivationType::Int16, _) => Some(reference::quantize(row, reference::INT16_MAX)),
        };
        for (o, weight) in weight.iter().enumerate() {
            sums.push(match &quantized {
                None => reference::dot(row, weight),
                Some(quantized) => reference::quantized_coded_dot(quantized, source, o),
            });
            magnitudes.push(row.iter().zip(weight).map(|(x, w)| (x * w).abs()).sum());
        }
    }
    (sums, magnitudes)
}

#[test]
fn coded_matmul_matches_its_reference() {
    let shapes = [(1, 128, 1), (16, 256, 2), (37, 128, 3), (50, 640, 9), (9, 128, 0)];
    for (index, format) in formats().into_iter().enumerate() {
        for (seed, (rows_out, cols, rows)) in shapes.into_iter().enumerate() {
            let source = Coded { rows: rows_out, cols, format, seed: seed as u64 };
            let pack = || Matrix::pack_coded(&source, &device()).unwrap();
            let x = activations(index as u64 + 1, rows, cols);
            let case = format!("{format:?} {rows}x{cols}x{rows_out}");
            assert_matches(pack, &x, &case, |kind| expected(&source, &x, kind));
        }
    }
}

#[test]
fn a_coded_row_has_the_same_bits_alone_and_in_any_batch_on_any_number_of_threads() {
    let pools: Vec<_> = [1, 2, 3].map(|threads| Arc::new(Pool::new(threads).unwrap())).into();
    for format in formats() {
        let source = Coded { rows: 200, cols: 256, format, seed: 1 };
        let weight = Matrix::pack_coded(&source, &device()).unwrap();
        assert_invariant(&weight, &pools, &format!("{format:?}"));
    }
}

#[test]
fn packing_keeps_every_coded_value_exactly_and_takes_the_bytes_foreseen() {
    for backend in Backend::all().into_iter().filter(|it| it.packs()) {
        for format in formats() {
            for (rows, cols) in [(19, 384), (1, 256), (0, 128), (40, 0)] {
                let source = Coded { rows, cols, format, seed: 4 };
                let weight = backend.with(|| Matrix::pack_coded(&source, &device())).unwrap();
                assert_eq!(weight.format(), MatrixFormat::Coded(format));
                let expected = |row| reference::coded_row(&source, row);
                let case = format!("{backend} {format:?} {rows}x{cols}");
                assert_keeps(backend, &weight, &case, expected);
            }
        }
    }
}

/// One row with the codes from `first` on, and a scale of its own for each group.
struct Every {
    format: CodedFormat,
    first: usize,
    scales: Vec<f32>,
}

impl CodedRows for Every {
    fn rows(&self) -> usize {
        1
    }
    fn cols(&self) -> usize {
        self.scales.len() * self.format.group_size
    }
    fn format(&self) -> CodedFormat {
        self.format
    }
    fn read_row(&self, _: usize, codes: &mut [u8], scales: &mut [f32]) {
        let count = if self.format.code == Code::E4m3 { 256 } else { 16 };
        for (col, code) in codes.iter_mut().enumerate() {
            *code = ((self.first + col) % count) as u8;
        }
        scales.copy_from_slice(&self.scales);
    }
}

/// The values that products with rows of the unit matrix show.
fn products(source: &Every, backend: Backend) -> Vec<f32> {
    let cols = source.cols();
    let unit: Vec<f32> =
        (0..cols * cols).map(|i| if i / cols == i % cols { 1.0 } else { 0.0 }).collect();
    backend.with(|| {
        let weight = Matrix::pack_coded(source, &device()).unwrap();
        run(&unit, &weight, ActivationType::F32, Mode::Store, &[])
    })[..cols]
        .to_vec()
}

#[test]
fn every_code_is_decoded_exactly_and_a_nan_makes_its_group_so() {
    for (code, count) in [(Code::E2m1, 16), (Code::Iq4Nl, 16), (Code::E4m3, 256)] {
        let format = CodedFormat { code, group_size: 16, scales: ScaleType::F32 };
        let mut broken = 0;
        for first in (0..count).step_by(16) {
            let source = Every { format, first, scales: vec![0.5] };
            let weight = Matrix::pack_coded(&source, &device()).unwrap();
            let mut row = vec![0.0; weight.cols()];
            weight.dequantize_row(0, &mut row).unwrap();
            let expected = reference::coded_row(&source, 0);
            broken += expected.iter().filter(|value| value.is_nan()).count();
            assert_eq!(bits(&row), bits(&expected), "{code:?} from {first}");
            for backend in Backend::all() {
                for (found, expected) in products(&source, backend).iter().zip(&expected) {
                    let same = found == expected || found.is_nan() && expected.is_nan();
                    assert!(same, "{backend} {code:?} from {first}: {found}, not {expected}");
                }
            }
        }
        assert_eq!(broken, if code == Code::E4m3 { 2 * 16 } else { 0 }, "{code:?}");
    }
}

#[test]
fn power_of_two_scales_are_exact_from_the_least_to_the_largest() {
    let format = CodedFormat { code: Code::E2m1, group_size: 16, scales: ScaleType::E8m0 };
    let scales: Vec<f32> = (-127..=124).step_by(4).map(|e| 2_f64.powi(e) as f32).collect();
    let source = Every { format, first: 0, scales };
    let weight = Matrix::pack_coded(&source, &device()).unwrap();
    let expected = reference::coded_row(&source, 0);
    let mut row = vec![0.0; weight.cols()];
    weight.dequantize_row(0, &mut row).unwrap();
    assert_eq!(bits(&row), bits(&expected));
    for backend in Backend::all() {
        // An emulated GPU is slow: the ends of the scale are enough.
        let groups = if backend.is_gpu() { [0..3, 60..63] } else { [0..32, 32..63] };
        for groups in groups {
            let source = Every { format, first: 0, scales: source.scales[groups.clone()].to_vec() };
            let expected = &expected[groups.start * 16..groups.end * 16];
            for (found, expected) in products(&source, backend).iter().zip(expected) {
                assert_eq!(found, expected, "{backend}");
            }
        }
    }
    let broken = Every { format, first: 0, scales: vec![f32::NAN] };
    for backend in Backend::all() {
        assert!(products(&broken, backend).iter().all(|value| value.is_nan()), "{backend}");
    }
}

#[test]
fn scales_in_any_storage_that_holds_them_give_the_same_bits() {
    let with = |scales| {
        let format = CodedFormat { code: Code::Iq4Nl, group_size: 32, scales };
        let source = Every { format, first: 0, scales: vec![0.25, 2.0, 1.0, 0.125] };
        let x = Random::new(3).numbers(5 * 128);
        let found = |backend: Backend| {
            backend.with(|| {
                let weight = Matrix::pack_coded(&source, &device()).unwrap();
                run(&x, &weight, ActivationType::Int16, Mode::Store, &[])[..5].to_vec()
            })
        };
        Backend::all().into_iter().flat_map(found).collect::<Vec<_>>()
    };
    let expected = bits(&with(ScaleType::F32));
    for scales in [ScaleType::F16, ScaleType::Bf16, ScaleType::E8m0] {
        assert_eq!(bits(&with(scales)), expected, "{scales:?}");
    }
}
