//! Rows of the matmul table.

use std::sync::Arc;

use sconce_kernels::gpu::Language;
use sconce_kernels::matmul::reference;
use sconce_kernels::{
    ActivationBuffer, ActivationType, Activations, AffineFormat, AffineRows, DenseRows, DenseType,
    Error, Matrix, Mode, Pool, ScaleType, matmul, read_rows,
};

use crate::common::{
    Backend, Random, bits, compare, device, gpu, levels, poisoned, tensor, values,
};

/// Sums of up to 2048 terms with one accumulator, relative to the sum of magnitudes.
pub(crate) const TOLERANCE: f32 = 3e-6;
/// The same where CUDA's tensor cores read an activation, and with many rows an element of a weight,
/// as one bf16 or as the sum of two. One is off by 2^-8 at most, so that a product is by 2^-7; two by
/// 2^-17, and the product of the smaller ones, by 2^-16, is left out.
const TOLERANCE_BF16: f32 = 7.9e-3;
const TOLERANCE_TWO_BF16: f32 = 3.1e-5 + TOLERANCE;

/// The bound on a backend for activations of a type.
pub(crate) fn tolerance(backend: Backend, kind: ActivationType) -> f32 {
    match (backend.is_cuda(), kind) {
        (true, ActivationType::Int8) => TOLERANCE_BF16,
        (true, ActivationType::Int16) => TOLERANCE_TWO_BF16,
        _ => TOLERANCE,
    }
}

const KINDS: [ActivationType; 3] =
    [ActivationType::F32, ActivationType::Int8, ActivationType::Int16];

/// A weight whose rows are made of seeds.
pub(crate) struct Affine {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) format: AffineFormat,
    pub(crate) seed: u64,
}

impl AffineRows for Affine {
    fn rows(&self) -> usize {
        self.rows
    }
    fn cols(&self) -> usize {
        self.cols
    }
    fn format(&self) -> AffineFormat {
        self.format
    }
    fn read_row(&self, row: usize, codes: &mut [u8], scales: &mut [f32], biases: &mut [f32]) {
        let mut random = Random::new(self.seed * 100_003 + row as u64);
        codes.fill_with(|| random.below(1 << self.format.bits) as u8);
        let mut number = || match self.format.scales {
            ScaleType::F32 => random.number(),
            ScaleType::F16 => half::f16::from_f32(random.number()).to_f32(),
            ScaleType::Bf16 => half::bf16::from_f32(random.number()).to_f32(),
            ScaleType::E8m0 => 2_f32.powi(random.below(8) as i32 - 6),
        };
        scales.fill_with(&mut number);
        biases.fill_with(&mut number);
    }
}

pub(crate) struct Dense {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) dense_type: DenseType,
}

impl DenseRows for Dense {
    fn rows(&self) -> usize {
        self.rows
    }
    fn cols(&self) -> usize {
        self.cols
    }
    fn format(&self) -> DenseType {
        self.dense_type
    }
    fn read_row(&self, row: usize, values: &mut [f32]) {
        let mut random = Random::new(row as u64 + 1);
        values.fill_with(|| match self.dense_type {
            DenseType::F32 => random.number(),
            DenseType::Bf16 => half::bf16::from_f32(random.number()).to_f32(),
            DenseType::F16 => half::f16::from_f32(random.number()).to_f32(),
        });
    }
}

/// The packings of GGUF and MLX, and corners of the format.
pub(crate) fn formats() -> Vec<AffineFormat> {
    let format = |bits, group_size, zero_point, scales| AffineFormat {
        bits,
        group_size,
        zero_point,
        scales,
    };
    vec![
        format(4, 32, Some(8), ScaleType::F16),
        format(4, 32, None, ScaleType::F16),
        format(4, 32, None, ScaleType::F32),
        format(5, 32, Some(16), ScaleType::F16),
        format(5, 32, None, ScaleType::F32),
        format(6, 16, Some(32), ScaleType::F32),
        format(8, 32, Some(128), ScaleType::F16),
        format(4, 64, None, ScaleType::F32),
        format(8, 64, None, ScaleType::F32),
        format(4, 128, None, ScaleType::F32),
        format(3, 16, None, ScaleType::F32),
        format(4, 16, Some(8), ScaleType::F16),
        format(8, 16, None, ScaleType::F16),
        format(4, 64, None, ScaleType::Bf16),
        format(8, 64, None, ScaleType::Bf16),
        format(2, 32, Some(1), ScaleType::E8m0),
    ]
}

pub(crate) fn activations(seed: u64, rows: usize, cols: usize) -> Vec<f32> {
    let mut random = Random::new(seed);
    let mut x = random.numbers(rows * cols);
    // Outliers, as in real activations, and whole groups of zeros.
    for value in x.iter_mut().step_by(37) {
        *value *= 20.0;
    }
    if cols >= 64 && rows > 0 {
        x[..32].fill(0.0);
    }
    x
}

/// Runs one matmul; the output has a row more than is live.
pub(crate) fn run(
    x: &[f32],
    weight: &Matrix,
    kind: ActivationType,
    mode: Mode,
    before: &[f32],
) -> Vec<f32> {
    let (rows, cols) = (x.len() / weight.cols().max(1), weight.cols());
    let out = poisoned(rows + 1, weight.rows());
    if mode == Mode::Add {
        sconce_kernels::write_rows(&out, before).unwrap();
    }
    let x = tensor(x, cols);
    let mut buffer = ActivationBuffer::new(rows, cols, kind, &device()).unwrap();
    let prepared = buffer.prepare(&x, rows, &[weight]).unwrap();
    matmul(&out, &prepared, weight, mode).unwrap();
    values(&out)
}

/// Expected results and magnitudes of an affine matmul.
pub(crate) fn expected(source: &Affine, x: &[f32], kind: ActivationType) -> (Vec<f32>, Vec<f32>) {
    let (mut sums, mut magnitudes) = (Vec::new(), Vec::new());
    let weight: Vec<_> = (0..source.rows).map(|o| reference::affine_row(source, o)).collect();
    for row in x.chunks(source.cols) {
        let quantized = match kind {
            ActivationType::F32 => None,
            ActivationType::Int8 => Some(reference::quantize(row, reference::INT8_MAX)),
            ActivationType::Int16 => Some(reference::quantize(row, reference::INT16_MAX)),
        };
        for (o, weight) in weight.iter().enumerate() {
            sums.push(match &quantized {
                None => reference::dot(row, weight),
                Some(quantized) => reference::quantized_dot(quantized, source, o),
            });
            magnitudes.push(magnitude(row, weight, source));
        }
    }
    (sums, magnitudes)
}

/// Sum of the magnitudes of all terms, scale and bias apart.
fn magnitude(x: &[f32], weight: &[f32], source: &Affine) -> f32 {
    let spread = if source.format.zero_point.is_none() { 2.0 } else { 1.0 };
    let terms = x.iter().zip(weight).map(|(x, weight)| x.abs() * (weight.abs() + spread));
    terms.sum::<f32>()
}

/// Products of every activation type on every backend, each with a weight packed for it, against the
/// sums and magnitudes of a reference. GPUs quantize no activations.
pub(crate) fn assert_matches(
    pack: impl Fn() -> Matrix,
    x: &[f32],
    case: &str,
    expected: impl Fn(ActivationType) -> (Vec<f32>, Vec<f32>),
) {
    let exact = expected(ActivationType::F32);
    for kind in KINDS {
        let quantized = expected(kind);
        for backend in Backend::all() {
            let (sums, magnitudes) = if backend.is_gpu() { &exact } else { &quantized };
            let found = backend.with(|| run(x, &pack(), kind, Mode::Store, &[]));
            let case = format!("{backend} {kind:?} {case}");
            compare(&case, &found, sums, magnitudes, tolerance(backend, kind));
        }
    }
}

#[test]
fn affine_matmul_matches_its_reference() {
    let shapes =
        [(1, 128, 1), (16, 256, 2), (37, 128, 3), (50, 640, 9), (100, 384, 20), (9, 128, 0)];
    for (index, format) in formats().into_iter().enumerate() {
        for (seed, (rows_out, cols, rows)) in shapes.into_iter().enumerate() {
            let source = Affine { rows: rows_out, cols, format, seed: seed as u64 };
            let pack = || Matrix::pack_affine(&source, &device()).unwrap();
            let x = activations(index as u64 + 1, rows, cols);
            let case = format!("{format:?} {rows}x{cols}x{rows_out}");
            assert_matches(pack, &x, &case, |kind| expected(&source, &x, kind));
        }
    }
}

#[test]
fn a_group_of_sixteen_may_end_in_half_a_group_of_activations() {
    let format =
        AffineFormat { bits: 6, group_size: 16, zero_point: Some(32), scales: ScaleType::F32 };
    let source = Affine { rows: 20, cols: 48, format, seed: 3 };
    let x = Random::new(5).numbers(3 * 48);
    let pack = || Matrix::pack_affine(&source, &device()).unwrap();
    assert_matches(pack, &x, "groups of 16", |kind| expected(&source, &x, kind));
}

#[test]
fn dense_matmul_matches_its_reference() {
    for dense_type in [DenseType::F32, DenseType::Bf16, DenseType::F16] {
        for (rows_out, cols, rows) in
            [(1, 1, 1), (9, 40, 2), (16, 64, 4), (33, 7, 5), (12, 70, 9), (20, 515, 13), (5, 33, 0)]
        {
            let source = Dense { rows: rows_out, cols, dense_type };
            let pack = || Matrix::pack_dense(&source, &device()).unwrap();
            let x = activations(7, rows, cols);
            let (mut sums, mut magnitudes) = (Vec::new(), Vec::new());
            for row in x.chunks(cols) {
                for o in 0..rows_out {
                    let weight = reference::dense_row(&source, o);
                    sums.push(reference::dot(row, &weight));
                    magnitudes.push(row.iter().zip(&weight).map(|(x, w)| (x * w).abs()).sum());
                }
            }
            let case = format!("{dense_type:?} {rows}x{cols}x{rows_out}");
            assert_matches(pack, &x, &case, |_| (sums.clone(), magnitudes.clone()));
        }
    }
}

#[test]
fn add_mode_adds_the_product_to_what_was_there() {
    let source = Affine { rows: 35, cols: 128, format: formats()[1], seed: 2 };
    for (kind, rows) in KINDS.into_iter().flat_map(|kind| [(kind, 6), (kind, 40)]) {
        let x = activations(3, rows, 128);
        let before = Random::new(8).numbers(rows * 35);
        for backend in Backend::all() {
            let pack = || Matrix::pack_affine(&source, &device()).unwrap();
            let product = backend.with(|| run(&x, &pack(), kind, Mode::Store, &[]));
            let sum: Vec<f32> = before.iter().zip(&product).map(|(a, b)| a + b).collect();
            let found = backend.with(|| run(&x, &pack(), kind, Mode::Add, &before));
            assert_eq!(bits(&found[..sum.len()]), bits(&sum), "{backend} {kind:?} {rows}");
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_any_batch_on_any_number_of_threads() {
    let pools: Vec<_> = [1, 2, 3].map(|threads| Arc::new(Pool::new(threads).unwrap())).into();
    for format in formats() {
        let source = Affine { rows: 200, cols: 256, format, seed: 1 };
        let affine = Matrix::pack_affine(&source, &device()).unwrap();
        assert_invariant(&affine, &pools, &format!("{format:?}"));
    }
    for dense_type in [DenseType::F32, DenseType::Bf16, DenseType::F16] {
        let source = Dense { rows: 200, cols: 255, dense_type };
        let dense = Matrix::pack_dense(&source, &device()).unwrap();
        assert_invariant(&dense, &pools, &format!("{dense_type:?}"));
    }
}

pub(crate) fn assert_invariant(weight: &Matrix, pools: &[Arc<Pool>], case: &str) {
    let (cols, outputs) = (weight.cols(), weight.rows());
    let x = activations(4, 17, cols);
    for kind in [ActivationType::F32, ActivationType::Int8, ActivationType::Int16] {
        for isa in levels() {
            let alone: Vec<u32> = isa.with(|| {
                let row = |x| bits(&run(x, weight, kind, Mode::Store, &[])[..outputs]);
                x.chunks(cols).flat_map(row).collect()
            });
            for rows in 2..=17 {
                let pool = &pools[rows % pools.len()];
                let x = &x[(17 - rows) * cols..];
                let batch =
                    Pool::with(pool, || isa.with(|| run(x, weight, kind, Mode::Store, &[])));
                let same = bits(&batch[..rows * outputs]) == alone[(17 - rows) * outputs..];
                assert!(same, "{isa} {kind:?} {case}: {rows} rows");
            }
        }
    }
}

#[test]
fn exact_activations_are_those_of_a_buffer_that_quantizes_nothing() {
    let source = Affine { rows: 35, cols: 128, format: formats()[1], seed: 2 };
    let x = activations(3, 6, 128);
    for backend in Backend::all() {
        backend.with(|| {
            let weight = Matrix::pack_affine(&source, &device()).unwrap();
            let (rows, out) = (tensor(&x, 128), poisoned(6, 35));
            matmul(&out, &Activations::exact(&rows, 6).unwrap(), &weight, Mode::Store).unwrap();
            let expected = run(&x, &weight, ActivationType::F32, Mode::Store, &[]);
            assert_eq!(bits(&values(&out)), bits(&expected[..6 * 35]));
            assert!(matches!(Activations::exact(&rows, 7), Err(Error::Shape { .. })));
        });
    }
}

#[test]
fn many_rows_in_several_blocks_equal_the_same_rows_alone() {
    let source = Affine { rows: 48, cols: 64, format: formats()[1], seed: 1 };
    let weight = Matrix::pack_affine(&source, &device()).unwrap();
    let x = activations(4, 300, 64);
    for isa in levels() {
        let run = |x: &[f32]| isa.with(|| run(x, &weight, ActivationType::Int8, Mode::Store, &[]));
        let all = run(&x);
        for row in [0, 127, 128, 255, 299] {
            let alone = run(&x[row * 64..][..64]);
            assert_eq!(bits(&all[row * 48..][..48]), bits(&alone[..48]), "{isa} row {row}");
        }
    }
}

#[test]
fn sixteen_bit_activations_are_closer_to_f32_than_eight_bit_ones() {
    // Metal reads them as they are.
    if gpu() == Some(Language::Metal) {
        return;
    }
    let source = Affine { rows: 64, cols: 512, format: formats()[1], seed: 6 };
    let weight = Matrix::pack_affine(&source, &device()).unwrap();
    let x = activations(11, 4, 512);
    let exact = run(&x, &weight, ActivationType::F32, Mode::Store, &[]);
    let error = |kind| -> f32 {
        let found = run(&x, &weight, kind, Mode::Store, &[]);
        let squares = exact.iter().zip(&found).take(4 * 64).map(|(a, b)| (a - b) * (a - b));
        squares.sum::<f32>().sqrt()
    };
    assert!(error(ActivationType::Int16) * 50.0 < error(ActivationType::Int8));
}

#[test]
fn a_row_that_is_not_finite_has_results_that_are_not_finite() {
    let source = Affine { rows: 17, cols: 64, format: formats()[0], seed: 6 };
    for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for (kind, rows) in KINDS.into_iter().flat_map(|kind| [(kind, 2), (kind, 40)]) {
            let mut x = activations(11, rows, 64);
            x[70] = broken;
            for backend in Backend::all() {
                let pack = || Matrix::pack_affine(&source, &device()).unwrap();
                let found = backend.with(|| run(&x, &pack(), kind, Mode::Store, &[]));
                for (row, values) in found.chunks(17).take(rows).enumerate() {
                    let holds = |value: &f32| value.is_finite() == (row != 1);
                    assert!(values.iter().all(holds), "{backend} {kind:?} {rows} {row}");
                }
            }
        }
    }
}

#[test]
fn packing_keeps_every_value() {
    for backend in Backend::all().into_iter().filter(|it| it.packs()) {
        for format in formats() {
            let source = Affine { rows: 19, cols: 384, format, seed: 9 };
            let weight = backend.with(|| Matrix::pack_affine(&source, &device())).unwrap();
            let expected = |row| reference::affine_row(&source, row);
            assert_keeps(backend, &weight, &format!("{backend} {format:?}"), expected);
        }
        for dense_type in [DenseType::F32, DenseType::Bf16, DenseType::F16] {
            for cols in [5, 37] {
                let source = Dense { rows: 19, cols, dense_type };
                let weight = backend.with(|| Matrix::pack_dense(&source, &device())).unwrap();
                let expected = |row| reference::dense_row(&source, row);
                assert_keeps(backend, &weight, &format!("{backend} {dense_type:?}"), expected);
            }
        }
    }
}

/// Checks the rows of a packed weight, and the bytes it takes against those foreseen.
pub(crate) fn assert_keeps(
    backend: Backend,
    weight: &Matrix,
    case: &str,
    expected: impl Fn(usize) -> Vec<f32>,
) {
    for row in 0..weight.rows() {
        let mut found = vec![f32::NAN; weight.cols()];
        weight.dequantize_row(row, &mut found).unwrap();
        assert_eq!(bits(&found), bits(&expected(row)), "{case}");
    }
    let (format, rows, cols) = (weight.format(), weight.rows(), weight.cols());
    let foreseen = backend.with(|| Matrix::bytes_on(format, rows, cols, &device())).unwrap();
    assert_eq!(weight.bytes() as u64, foreseen, "{case}");
    if !backend.is_gpu() {
        assert_eq!(Matrix::bytes_for(format, rows, cols), foreseen, "{case}");
    }
}

#[test]
fn a_stack_keeps_the_values_of_each_of_its_weights() {
    for backend in Backend::all().into_iter().filter(|it| it.packs()) {
        for (format, rows) in formats().into_iter().zip([7, 3, 1, 2, 5, 0, 4].into_iter().cycle()) {
            let sources = [1, 2, 3].map(|seed| Affine { rows, cols: 128, format, seed });
            let packed = sources.each_ref().map(|it| Matrix::pack_affine(it, &device()).unwrap());
            assert_eq!(Matrix::stack(packed.into()).unwrap().len(), 3);
            let stacked = backend.with(|| {
                let pack = |it: &Affine| Matrix::pack_affine(it, &device()).unwrap();
                Matrix::stack(sources.iter().map(pack).collect()).unwrap()
            });
            for (source, weight) in sources.iter().zip(&stacked) {
                let expected = |row| reference::affine_row(source, row);
                assert_keeps(backend, weight, &format!("{backend} {format:?}"), expected);
            }
        }
    }
}

#[test]
fn weights_of_several_shapes_or_formats_are_no_stack_of_a_gpu() {
    let [first, second] = [formats()[0], formats()[1]];
    for backend in Backend::all().into_iter().filter(|it| it.is_gpu()) {
        for (format, rows) in [(first, 5), (second, 4)] {
            let sources = [(first, 4), (format, rows)].map(|(format, rows)| Affine {
                rows,
                cols: 64,
                format,
                seed: 1,
            });
            let pack = |it: &Affine| Matrix::pack_affine(it, &device()).unwrap();
            let stack = backend.with(|| Matrix::stack(sources.iter().map(pack).collect()));
            assert!(matches!(stack, Err(Error::Format { .. })), "{backend}");
        }
    }
}

#[test]
fn a_packed_four_bit_weight_takes_no_more_bytes_than_its_source() {
    let source = Affine { rows: 160, cols: 256, format: formats()[1], seed: 9 };
    let weight = Matrix::pack_affine(&source, &device()).unwrap();
    assert_eq!(weight.bytes(), 160 * 256 / 32 * 20);
}

#[test]
fn formats_outside_of_the_contract_are_refused() {
    let good = formats()[0];
    let bad = [
        (AffineFormat { bits: 9, ..good }, 64),
        (AffineFormat { bits: 0, ..good }, 64),
        (AffineFormat { group_size: 24, ..good }, 48),
        (good, 40),
    ];
    for (format, cols) in bad {
        let source = Affine { rows: 2, cols, format, seed: 1 };
        let error = Matrix::pack_affine(&source, &device()).unwrap_err();
        assert!(matches!(error, Error::Format { .. }), "{format:?} {cols}: {error}");
    }
}

#[test]
fn operands_that_do_not_fit_are_refused() {
    let source = Affine { rows: 20, cols: 64, format: formats()[0], seed: 1 };
    let weight = Matrix::pack_affine(&source, &device()).unwrap();
    let x = tensor(&[0.0; 128], 64);
    let mut buffer = ActivationBuffer::new(2, 64, ActivationType::Int8, &device()).unwrap();
    assert!(matches!(buffer.prepare(&x, 3, &[&weight]), Err(Error::Shape { .. })));
    let wide = tensor(&[0.0; 192], 96);
    assert!(matches!(buffer.prepare(&wide, 2, &[&weight]), Err(Error::Shape { .. })));
    let prepared = buffer.prepare(&x, 2, &[&weight]).unwrap();
    for out in [poisoned(1, 20), poisoned(2, 21)] {
        assert!(matches!(matmul(&out, &prepared, &weight, Mode::Store), Err(Error::Shape { .. })));
        let mut rest = vec![0.0; 20];
        read_rows(&out, &mut rest).unwrap();
        assert!(rest.iter().all(|value| value.is_nan()), "a refused call writes nothing");
    }
    assert!(weight.dequantize_row(20, &mut [0.0; 64]).is_err());
    assert!(weight.dequantize_row(0, &mut [0.0; 63]).is_err());
}
