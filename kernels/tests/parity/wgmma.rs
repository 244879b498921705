//! Rows of the table of `matmul` and `expert_matmul` for GPUs of compute capability 9.0: products of
//! many rows on `wgmma`, in every format, against the same references within the same tolerances as
//! without, and where bits may depend on company. Nothing runs where there is no such GPU, and none is
//! emulated.

use sconce_kernels::matmul::reference;
use sconce_kernels::{ActivationType, DenseType, Matrix, MatrixFormat, Mode, PairInput};

use crate::coded::{self, Coded};
use crate::common::{Backend, Random, bits, compare, device};
use crate::matmul::{Affine, Dense, activations, expected, formats, run, tolerance};
use crate::moe::{route, rows};
use crate::moe_gpu::{all_formats, assert_matches, case, group, stack};

const INT8: ActivationType = ActivationType::Int8;

/// Outputs, inputs and rows: less than a block; more than one along each axis, of the kernels for up
/// to 64 rows and of those for more; steps that end in half, and a single one.
const SHAPES: [(usize, usize, usize); 4] =
    [(30, 96, 35), (70, 160, 64), (130, 64, 65), (150, 288, 140)];

/// The backend that these rows are for, if it is there.
fn wgmma() -> impl Iterator<Item = Backend> {
    Backend::wgmma().into_iter()
}

/// Whole groups.
fn whole(cols: usize, group: usize) -> usize {
    cols.next_multiple_of(group)
}

/// Compares products with sums and magnitudes.
fn assert_products(
    backend: Backend,
    pack: impl Fn() -> Matrix,
    x: &[f32],
    case: &str,
    (sums, magnitudes): (Vec<f32>, Vec<f32>),
) {
    let found = backend.with(|| run(x, &pack(), INT8, Mode::Store, &[]));
    compare(&format!("{backend} {case}"), &found, &sums, &magnitudes, tolerance(backend, INT8));
}

#[test]
fn many_rows_match_the_reference_in_every_affine_format() {
    for backend in wgmma() {
        for (index, format) in formats().into_iter().enumerate() {
            for turn in 0..2 {
                let (outputs, cols, rows) = SHAPES[(index + 2 * turn) % SHAPES.len()];
                let cols = whole(cols, format.group_size);
                let source = Affine { rows: outputs, cols, format, seed: index as u64 };
                let x = activations(index as u64 + 1, rows, cols);
                let pack = || Matrix::pack_affine(&source, &device()).unwrap();
                let case = format!("{format:?} {rows}x{cols}x{outputs}");
                let wanted = expected(&source, &x, ActivationType::F32);
                assert_products(backend, pack, &x, &case, wanted);
            }
        }
    }
}

#[test]
fn many_rows_match_the_reference_in_every_coded_format_and_in_bf16() {
    for backend in wgmma() {
        for (index, format) in coded::formats().into_iter().enumerate() {
            let (outputs, cols, rows) = SHAPES[index % SHAPES.len()];
            let cols = whole(cols, format.group_size);
            let source = Coded { rows: outputs, cols, format, seed: 3 };
            let x = activations(5, rows, cols);
            let pack = || Matrix::pack_coded(&source, &device()).unwrap();
            let case = format!("{format:?} {rows}x{cols}x{outputs}");
            let wanted = coded::expected(&source, &x, ActivationType::F32);
            assert_products(backend, pack, &x, &case, wanted);
        }
        // Plain numbers may have any number of columns.
        for (outputs, cols, rows) in SHAPES.into_iter().chain([(9, 33, 40), (20, 515, 66)]) {
            let source = Dense { rows: outputs, cols, dense_type: DenseType::Bf16 };
            let x = activations(7, rows, cols);
            let (mut sums, mut magnitudes) = (Vec::new(), Vec::new());
            for row in x.chunks(cols) {
                for output in 0..outputs {
                    let weight = reference::dense_row(&source, output);
                    sums.push(reference::dot(row, &weight));
                    magnitudes.push(row.iter().zip(&weight).map(|(x, w)| (x * w).abs()).sum());
                }
            }
            let pack = || Matrix::pack_dense(&source, &device()).unwrap();
            let case = format!("bf16 {rows}x{cols}x{outputs}");
            assert_products(backend, pack, &x, &case, (sums, magnitudes));
        }
    }
}

#[test]
fn products_are_added_to_what_was_there() {
    let source = Affine { rows: 35, cols: 128, format: formats()[1], seed: 2 };
    for (backend, count) in wgmma().flat_map(|it| [(it, 40), (it, 70)]) {
        backend.with(|| {
            let weight = Matrix::pack_affine(&source, &device()).unwrap();
            let (x, before) = (activations(3, count, 128), Random::new(8).numbers(count * 35));
            let product = run(&x, &weight, INT8, Mode::Store, &[]);
            let sum: Vec<f32> = before.iter().zip(&product).map(|(a, b)| a + b).collect();
            let found = run(&x, &weight, INT8, Mode::Add, &before);
            assert_eq!(bits(&found[..sum.len()]), bits(&sum), "{backend} {count}");
        });
    }
}

/// Formats that are decoded in ways of their own.
fn kinds() -> Vec<MatrixFormat> {
    let coded = coded::formats().into_iter().map(MatrixFormat::Coded);
    let affine = [0, 5, 7, 13, 14].map(|index| MatrixFormat::Affine(formats()[index]));
    coded.chain(affine).chain([MatrixFormat::Dense(DenseType::Bf16)]).collect()
}

#[test]
fn a_row_has_the_same_bits_among_any_that_are_many() {
    for backend in wgmma() {
        backend.with(|| {
            for format in kinds() {
                let weight = &stack(format, 1, 20, 256)[0];
                // Of both blocks' rows, full ones and others, and not only the first.
                let x = activations(4, 131, 256);
                let all = run(&x, weight, INT8, Mode::Store, &[]);
                for (first, count) in [(0, 33), (90, 40), (60, 64), (1, 65), (3, 128)] {
                    let part =
                        run(&x[first * 256..][..count * 256], weight, INT8, Mode::Store, &[]);
                    let expected = bits(&all[first * 20..][..count * 20]);
                    assert_eq!(bits(&part[..count * 20]), expected, "{backend} {format:?} {count}");
                }
            }
        });
    }
}

#[test]
fn pairs_of_an_expert_match_the_reference_in_every_format() {
    for backend in wgmma() {
        // Shapes of products: 32, 48 and 64 pairs; a second block of an expert's pairs.
        let counts = [20, 40, 60, 67];
        for (index, format) in all_formats().into_iter().enumerate() {
            let cols = whole(160, group(format));
            assert_matches(backend, format, case(2, 2, counts[index % 4], 37, cols), INT8);
            if group(format) <= 16 {
                assert_matches(backend, format, case(2, 2, counts[(index + 1) % 4], 9, 48), INT8);
            }
        }
        let nibbles = MatrixFormat::Affine(formats()[13]);
        for shape in [case(2, 1, 20, 270, 64), case(1, 1, 70, 520, 512), case(3, 2, 9, 5, 2176)] {
            assert_matches(backend, nibbles, shape, INT8);
        }
    }
}

#[test]
fn a_pair_keeps_its_bits_among_any_that_are_many() {
    let (outputs, cols) = (40, 256);
    for backend in wgmma() {
        backend.with(|| {
            for format in kinds() {
                let stack = stack(format, 2, outputs, cols);
                let of_first = |count: u64| -> Vec<u32> {
                    let seeds: Vec<u64> = (0..count).collect();
                    let (x, routing) = (rows(&seeds, cols), route(&seeds, 2, 2));
                    let found = crate::moe::run(&x, &stack, &routing, PairInput::Rows, INT8);
                    let pairs = routing.choices().unwrap();
                    let of_pair = |pair: &u32| bits(&found[*pair as usize * outputs..][..outputs]);
                    pairs.pairs_of(0).iter().flat_map(of_pair).collect()
                };
                let expected = of_first(9);
                for count in [20, 33, 40, 64, 90] {
                    assert_eq!(of_first(count), expected, "{backend} {format:?} {count}");
                }
            }
        });
    }
}

#[test]
fn what_is_no_single_part_of_bf16_is_multiplied_as_without() {
    let without = Backend::all().into_iter().find(|backend| backend.is_cuda());
    for (wgmma, without) in wgmma().zip(without) {
        let format = formats()[13];
        let source = Affine { rows: 40, cols: 128, format, seed: 1 };
        let dense = Dense { rows: 40, cols: 128, dense_type: DenseType::F16 };
        let affine = || Matrix::pack_affine(&source, &device()).unwrap();
        let plain = || Matrix::pack_dense(&dense, &device()).unwrap();
        let x = activations(2, 70, 128);
        let product = |backend: Backend, pack: &dyn Fn() -> Matrix, kind| {
            bits(&backend.with(|| run(&x, &pack(), kind, Mode::Store, &[])))
        };
        for kind in [ActivationType::F32, ActivationType::Int16] {
            assert_eq!(product(wgmma, &affine, kind), product(without, &affine, kind), "{kind:?}");
        }
        assert_eq!(product(wgmma, &plain, INT8), product(without, &plain, INT8));
        // Experts' scales are rounded into their weights, as those of other products are.
        let by_both = [wgmma, without].map(|backend| {
            backend.with(|| {
                let seeds: Vec<u64> = (0..40).collect();
                let stack = stack(MatrixFormat::Affine(format), 2, 40, 128);
                let (x, routing) = (rows(&seeds, 128), route(&seeds, 2, 2));
                bits(&crate::moe::run(&x, &stack, &routing, PairInput::Rows, INT8))
            })
        });
        assert_ne!(by_both[0], by_both[1], "kernels with wgmma were not those that ran");
    }
}

/// A GPU without `wgmma` says so when it is asked for, before anything is computed without.
#[cfg(feature = "emulate")]
#[test]
fn a_gpu_without_it_says_so() {
    use sconce_kernels::ActivationBuffer;
    use sconce_kernels::gpu::{Language, WGMMA_VARIABLE, emulate, with_wgmma};

    use crate::common::on_cpu;

    let buffer = || ActivationBuffer::new(64, 64, INT8, &candle_core::Device::Cpu);
    with_wgmma(true, || {
        assert!(on_cpu(buffer).is_ok(), "the CPU does not ask");
        let refused = emulate(Language::Metal, || buffer().unwrap_err()).to_string();
        assert!(refused.contains(WGMMA_VARIABLE) && refused.contains("Metal"), "{refused}");
        assert!(emulate(Language::Cuda, || buffer().is_ok()));
    });
}
