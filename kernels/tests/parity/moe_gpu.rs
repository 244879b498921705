//! Rows of the table of `expert_matmul` on GPUs: stacks of one format, few and many pairs for each
//! expert, and experts that nobody chose.

use candle_core::Device;
use sconce_kernels::{
    ActivationBuffer, ActivationType, DenseType, Error, ExpertProduct, Matrix, MatrixFormat,
    PairInput, Routing, expert_matmuls,
};

use crate::coded::{self, Coded};
use crate::common::{Backend, bits, compare, device, on_cpu, poisoned, tensor, values};
use crate::matmul::{Affine, Dense, formats, tolerance};
use crate::moe::{expected, mixed, route, rows, run};

const KINDS: [ActivationType; 3] =
    [ActivationType::F32, ActivationType::Int8, ActivationType::Int16];

/// Pairs of a weight's shape and those that choose of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) experts: usize,
    pub(crate) choices: usize,
    pub(crate) rows: usize,
    pub(crate) outputs: usize,
    pub(crate) cols: usize,
}

pub(crate) fn case(
    experts: usize,
    choices: usize,
    rows: usize,
    outputs: usize,
    cols: usize,
) -> Case {
    Case { experts, choices, rows, outputs, cols }
}

/// Every format of a weight.
pub(crate) fn all_formats() -> Vec<MatrixFormat> {
    let dense = [DenseType::F32, DenseType::Bf16, DenseType::F16].map(MatrixFormat::Dense);
    let affine = formats().into_iter().map(MatrixFormat::Affine);
    let coded = coded::formats().into_iter().map(MatrixFormat::Coded);
    affine.chain(coded).chain(dense).collect()
}

/// Columns of a group.
pub(crate) fn group(format: MatrixFormat) -> usize {
    match format {
        MatrixFormat::Dense(_) => 1,
        MatrixFormat::Affine(format) => format.group_size,
        MatrixFormat::Coded(format) => format.group_size,
    }
}

/// A stack of experts of one format.
pub(crate) fn stack(format: MatrixFormat, experts: usize, rows: usize, cols: usize) -> Vec<Matrix> {
    let expert = |index: usize| {
        let seed = index as u64 + 3;
        let device = &device();
        match format {
            MatrixFormat::Dense(dense_type) => {
                Matrix::pack_dense(&Dense { rows, cols, dense_type }, device)
            }
            MatrixFormat::Affine(format) => {
                Matrix::pack_affine(&Affine { rows, cols, format, seed }, device)
            }
            MatrixFormat::Coded(format) => {
                Matrix::pack_coded(&Coded { rows, cols, format, seed }, device)
            }
        }
    };
    Matrix::stack((0..experts).map(|index| expert(index).unwrap()).collect()).unwrap()
}

fn gpus() -> impl Iterator<Item = Backend> {
    Backend::all().into_iter().filter(|backend| backend.is_gpu())
}

/// Compares the results of all pairs with the reference, as rows and as pairs.
pub(crate) fn assert_matches(
    backend: Backend,
    format: MatrixFormat,
    case: Case,
    kind: ActivationType,
) {
    let Case { experts, choices, outputs, cols, .. } = case;
    let label = format!("{backend} {kind:?} {case:?} {format:?}");
    backend.with(|| {
        let stack = stack(format, experts, outputs, cols);
        let seeds: Vec<u64> = (0..case.rows as u64).collect();
        let (x, routing) = (rows(&seeds, cols), route(&seeds, experts, choices));
        let wanted = expected(&x, &stack, &routing);
        let bound = tolerance(backend, kind);
        let found = run(&x, &stack, &routing, PairInput::Rows, kind);
        compare(&label, &found, &wanted.values, &wanted.magnitudes, bound);
        let again = run(&wanted.inputs, &stack, &routing, PairInput::Pairs, kind);
        let live = routing.pairs() * outputs;
        assert_eq!(bits(&again[..live]), bits(&found[..live]), "{label}: pairs as rows");
    });
}

#[test]
fn few_pairs_of_an_expert_match_the_reference_in_every_format() {
    for backend in gpus() {
        for (index, format) in all_formats().into_iter().enumerate() {
            let cols = [3 * group(format).max(16), 192_usize.next_multiple_of(group(format))];
            let shapes = [case(3, 2, 1, 21, cols[0]), case(4, 2, 6, 70, cols[1])];
            for (turn, shape) in shapes.into_iter().enumerate() {
                assert_matches(backend, format, shape, KINDS[(index + turn) % 3]);
            }
        }
    }
}

#[test]
fn many_pairs_of_an_expert_match_the_reference_in_every_format() {
    for backend in gpus() {
        for (index, format) in all_formats().into_iter().enumerate() {
            let cols = 160_usize.next_multiple_of(group(format));
            assert_matches(backend, format, case(2, 2, 67, 37, cols), KINDS[index % 3]);
            if group(format) <= 16 {
                // Rows that end in half a window.
                let exact = [ActivationType::F32, ActivationType::Int16][index % 2];
                for kind in [ActivationType::Int8, exact] {
                    assert_matches(backend, format, case(2, 2, 40, 9, 48), kind);
                }
            }
        }
    }
}

#[test]
fn sizes_beyond_a_tile_match_the_reference() {
    let nibbles = MatrixFormat::Affine(formats()[13]);
    for backend in gpus() {
        for kind in KINDS {
            // Outputs of several blocks; inputs of several stages of shared memory.
            for shape in [case(2, 1, 3, 150, 512), case(2, 1, 2, 5, 2176), case(2, 1, 20, 270, 64)]
            {
                assert_matches(backend, nibbles, shape, kind);
            }
        }
    }
}

#[test]
fn experts_that_few_or_all_rows_choose_match_the_reference() {
    let nibbles = MatrixFormat::Affine(formats()[7]);
    let shapes = [
        case(512, 10, 2, 9, 64),
        case(512, 10, 40, 9, 64),
        case(40, 1, 12, 9, 64),
        case(1, 1, 1, 9, 64),
        case(1, 1, 130, 9, 64),
        case(3, 3, 0, 9, 64),
        case(3, 2, 5, 9, 0),
    ];
    for (backend, shape) in gpus().flat_map(|backend| shapes.map(|shape| (backend, shape))) {
        assert_matches(backend, nibbles, shape, ActivationType::F32);
    }
}

#[test]
fn a_pair_keeps_its_bits_among_few_and_among_many_others() {
    let nibbles = MatrixFormat::Affine(formats()[2]);
    let (outputs, cols) = (40, 256);
    for (backend, counts) in gpus().flat_map(|it| [(it, [1, 5, 8]), (it, [20, 64, 90])]) {
        backend.with(|| {
            let stack = stack(nibbles, 2, outputs, cols);
            let mut first = Vec::new();
            for count in counts {
                // The first rows are the same in all.
                let seeds: Vec<u64> = (0..count).collect();
                let routing = route(&seeds, 2, 2);
                let x = rows(&seeds, cols);
                let found = run(&x, &stack, &routing, PairInput::Rows, ActivationType::F32);
                let pairs = routing.choices().unwrap();
                let of_first: Vec<u32> = pairs
                    .pairs_of(0)
                    .iter()
                    .flat_map(|pair| bits(&found[*pair as usize * outputs..][..outputs]))
                    .collect();
                first.push(of_first);
            }
            assert!(first.iter().all(|bits| *bits == first[0]), "{backend} {counts:?}");
        });
    }
}

/// The results of several stacks together.
fn together(x: &[f32], stacks: &[&[Matrix]], routing: &Routing) -> Vec<Vec<f32>> {
    let cols = stacks[0][0].cols();
    let outs: Vec<_> =
        stacks.iter().map(|of| poisoned(routing.pairs() + 1, of[0].rows())).collect();
    let products: Vec<_> =
        outs.iter().zip(stacks).map(|(out, experts)| ExpertProduct { out, experts }).collect();
    let kind = ActivationType::F32;
    let mut buffer = ActivationBuffer::new(x.len() / cols, cols, kind, &device()).unwrap();
    let tensor = tensor(x, cols);
    let x = buffer.prepare_experts(&tensor, x.len() / cols, stacks).unwrap();
    expert_matmuls(&products, &x, routing, PairInput::Rows).unwrap();
    outs.iter().map(values).collect()
}

#[test]
fn stacks_of_a_launch_have_the_bits_of_each_alone() {
    let nibbles = MatrixFormat::Affine(formats()[13]);
    let (bytes, cols) = (MatrixFormat::Affine(formats()[14]), 128);
    for (backend, count) in gpus().flat_map(|it| [(it, 2), (it, 30)]) {
        backend.with(|| {
            let stacks = [stack(nibbles, 3, 50, cols), stack(nibbles, 3, 290, cols)];
            // Another kind, which takes a launch of its own.
            let other = stack(bytes, 3, 20, cols);
            let seeds: Vec<u64> = (0..count).collect();
            let (x, routing) = (rows(&seeds, cols), route(&seeds, 3, 2));
            let all = [&stacks[0][..], &stacks[1][..], &other[..]];
            for (found, experts) in together(&x, &all, &routing).iter().zip(all) {
                let alone = run(&x, experts, &routing, PairInput::Rows, ActivationType::F32);
                let outputs = experts[0].rows();
                assert_eq!(bits(found), bits(&alone), "{backend} {count} rows, {outputs} outputs");
            }
        });
    }
}

#[test]
fn experts_of_several_formats_and_those_of_another_device_are_refused() {
    for backend in gpus() {
        let (unstacked, routing) = backend.with(|| (mixed(4, 16, 128), route(&[1, 2], 4, 2)));
        let source = Dense { rows: 16, cols: 128, dense_type: DenseType::F32 };
        let of_cpu = || Matrix::pack_dense(&source, &Device::Cpu).unwrap();
        let of_cpu = on_cpu(|| [(); 4].map(|()| of_cpu()));
        let x = tensor(&[0.0; 2 * 128], 128);
        for experts in [&unstacked[..], &of_cpu] {
            let out = poisoned(4, 16);
            let error = backend.with(|| {
                let mut buffer =
                    ActivationBuffer::new(2, 128, ActivationType::F32, &device()).unwrap();
                let x = buffer.prepare_experts(&x, 2, &[experts]).unwrap();
                let products = [ExpertProduct { out: &out, experts }];
                expert_matmuls(&products, &x, &routing, PairInput::Rows).unwrap_err()
            });
            assert!(matches!(error, Error::Shape { operand: "experts", .. }), "{error}");
            assert!(
                values(&out).iter().all(|value| value.is_nan()),
                "a refused call writes nothing"
            );
        }
    }
}
