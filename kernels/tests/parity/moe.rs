//! Rows of the tables of `expert_matmul` and `combine_experts`; routing has its own, in `routing.rs`.

use std::sync::Arc;

use candle_core::Tensor;
use sconce_kernels::moe::reference;
use sconce_kernels::{
    ActivationBuffer, ActivationType, DenseType, Error, ExpertProduct, Matrix, Mode, PairInput,
    Pool, RouterOptions, Routing, Scoring, combine_experts, expert_matmul, expert_matmuls, matmul,
};

use crate::coded::{self, Coded};
use crate::common::{
    Backend, Random, bits, compare, device, gpu, levels, poisoned, tensor, values,
};
use crate::matmul::{Affine, Dense, TOLERANCE, activations, formats};

/// Of sums of weighted results on GPUs, which may round a product and a sum at once.
const COMBINE_TOLERANCE: f32 = 3e-7;

const KINDS: [ActivationType; 3] =
    [ActivationType::F32, ActivationType::Int8, ActivationType::Int16];

/// Experts of every format in turn.
pub(crate) fn mixed(experts: usize, rows: usize, cols: usize) -> Vec<Matrix> {
    let (affine, coded) = (formats(), coded::formats());
    let dense = [DenseType::F32, DenseType::Bf16, DenseType::F16];
    let expert = |index: usize| {
        let (kind, turn, seed) = (index % 3, index / 3, index as u64 + 10);
        match kind {
            0 => {
                let format = affine[turn % affine.len()];
                Matrix::pack_affine(&Affine { rows, cols, format, seed }, &device())
            }
            1 => {
                let format = coded[turn % coded.len()];
                Matrix::pack_coded(&Coded { rows, cols, format, seed }, &device())
            }
            _ => {
                let dense_type = dense[turn % dense.len()];
                Matrix::pack_dense(&Dense { rows, cols, dense_type }, &device())
            }
        }
    };
    (0..experts).map(|index| expert(index).unwrap()).collect()
}

fn options(experts_per_token: usize) -> RouterOptions {
    RouterOptions {
        scoring: Scoring::Softmax,
        experts_per_token,
        groups: 1,
        groups_per_token: 1,
        renormalize: true,
        scale: 1.0,
    }
}

/// A routing of random logits; rows of equal seeds choose equal experts.
pub(crate) fn route(seeds: &[u64], experts: usize, choices: usize) -> Routing {
    let logits: Vec<f32> =
        seeds.iter().flat_map(|seed| Random::new(seed + 77).numbers(experts)).collect();
    let mut routing = Routing::new(seeds.len(), experts, choices, &device()).unwrap();
    routing.route(&tensor(&logits, experts), None, &options(choices), seeds.len()).unwrap();
    routing
}

/// Rows of activations; rows of equal seeds are equal.
pub(crate) fn rows(seeds: &[u64], cols: usize) -> Vec<f32> {
    seeds.iter().flat_map(|seed| activations(seed + 1, 1, cols)).collect()
}

/// Results of all pairs; the output has a row more than is live.
pub(crate) fn run(
    x: &[f32],
    experts: &[Matrix],
    routing: &Routing,
    input: PairInput,
    kind: ActivationType,
) -> Vec<f32> {
    let cols = experts[0].cols();
    let count = match input {
        PairInput::Rows => routing.rows(),
        PairInput::Pairs => routing.pairs(),
    };
    let out = poisoned(routing.pairs() + 1, experts[0].rows());
    let x = Tensor::from_slice(x, (count, cols), &device()).unwrap();
    let mut buffer = ActivationBuffer::new(count, cols, kind, &device()).unwrap();
    let x = buffer.prepare_experts(&x, count, &[experts]).unwrap();
    expert_matmul(&out, &x, experts, routing, input).unwrap();
    values(&out)
}

/// One row times one expert, by `matmul`.
fn alone(x: &[f32], expert: &Matrix, kind: ActivationType) -> Vec<f32> {
    let out = poisoned(1, expert.rows());
    let x = tensor(x, expert.cols());
    let mut buffer = ActivationBuffer::new(1, expert.cols(), kind, &device()).unwrap();
    matmul(&out, &buffer.prepare(&x, 1, &[expert]).unwrap(), expert, Mode::Store).unwrap();
    values(&out)
}

fn unpacked(expert: &Matrix) -> Vec<f32> {
    let mut weight = vec![0.0; expert.rows() * expert.cols()];
    for (row, values) in weight.chunks_mut(expert.cols()).enumerate() {
        expert.dequantize_row(row, values).unwrap();
    }
    weight
}

/// What the pairs of a routing of all rows of `x` give.
pub(crate) struct Expected {
    /// `[pairs, outputs]`.
    pub(crate) values: Vec<f32>,
    /// What errors are measured against.
    pub(crate) magnitudes: Vec<f32>,
    /// The row of each pair, `[pairs, cols]`.
    pub(crate) inputs: Vec<f32>,
}

pub(crate) fn expected(x: &[f32], stack: &[Matrix], routing: &Routing) -> Expected {
    let (outputs, cols, pairs) = (stack[0].rows(), stack[0].cols(), routing.pairs());
    let mut expected = Expected {
        values: vec![0.0; pairs * outputs],
        magnitudes: vec![0.0; pairs * outputs],
        inputs: vec![0.0; pairs * cols],
    };
    let chosen = routing.choices().unwrap();
    for row in 0..routing.rows() {
        let x = &x[row * cols..][..cols];
        let absolute: Vec<f32> = x.iter().map(|x| x.abs()).collect();
        for (id, pair) in chosen.of(row).0.iter().zip(chosen.pairs_of(row)) {
            let pair = *pair as usize;
            expected.inputs[pair * cols..][..cols].copy_from_slice(x);
            if cols == 0 {
                continue;
            }
            let weight = unpacked(&stack[*id as usize]);
            let at = pair * outputs..(pair + 1) * outputs;
            expected.values[at.clone()].copy_from_slice(&reference::expert(x, &weight));
            // Codes and biases may cancel: half as much again as a value.
            let spread: Vec<f32> = weight.iter().map(|w| w.abs() + 2.0).collect();
            expected.magnitudes[at].copy_from_slice(&reference::expert(&absolute, &spread));
        }
    }
    expected
}

#[test]
fn expert_matmul_matches_its_reference() {
    for (experts, choices, count) in
        [(1, 1, 1), (4, 1, 1), (4, 2, 3), (9, 8, 5), (128, 8, 2), (40, 3, 30), (7, 2, 0)]
    {
        let (outputs, cols) = (37, 128);
        let stack = mixed(experts, outputs, cols);
        let seeds: Vec<u64> = (0..count).collect();
        let (x, routing) = (rows(&seeds, cols), route(&seeds, experts, choices));
        let expected = expected(&x, &stack, &routing);
        for isa in levels() {
            let found = isa.with(|| run(&x, &stack, &routing, PairInput::Rows, KINDS[0]));
            let case = format!("{isa} {experts} experts, {choices} of {count} rows");
            compare(&case, &found, &expected.values, &expected.magnitudes, TOLERANCE);
        }
    }
}

#[test]
fn a_pair_has_the_bits_of_its_row_times_its_expert_alone() {
    let (outputs, cols) = (50, 128);
    for (experts, choices, count) in [(1, 1, 300), (6, 2, 100), (70, 8, 9), (3, 3, 1), (128, 4, 0)]
    {
        let stack = mixed(experts, outputs, cols);
        let seeds: Vec<u64> = (0..count).collect();
        let (x, routing) = (rows(&seeds, cols), route(&seeds, experts, choices));
        let chosen = routing.choices().unwrap();
        for (kind, isa) in KINDS.into_iter().flat_map(|k| levels().map(move |i| (k, i))) {
            let case = format!("{isa} {kind:?} {experts} experts, {choices} of {count} rows");
            let found = isa.with(|| run(&x, &stack, &routing, PairInput::Rows, kind));
            assert!(found[routing.pairs() * outputs..].iter().all(|v| v.is_nan()), "{case}");
            let mut by_pair = vec![0.0; routing.pairs() * cols];
            for (row, x) in x.chunks(cols).enumerate() {
                for (id, pair) in chosen.of(row).0.iter().zip(chosen.pairs_of(row)) {
                    let pair = *pair as usize;
                    by_pair[pair * cols..][..cols].copy_from_slice(x);
                    let alone = isa.with(|| alone(x, &stack[*id as usize], kind));
                    assert_eq!(bits(&found[pair * outputs..][..outputs]), bits(&alone), "{case}");
                }
            }
            let again = isa.with(|| run(&by_pair, &stack, &routing, PairInput::Pairs, kind));
            let live = routing.pairs() * outputs;
            assert_eq!(bits(&again[..live]), bits(&found[..live]), "{case}");
        }
    }
}

#[test]
fn two_stacks_together_have_the_bits_of_each_alone() {
    // A stack of a GPU has one format: those are in `moe_gpu.rs`.
    if gpu().is_some() {
        return;
    }
    let (cols, choices) = (128, 2);
    let stacks = [mixed(6, 50, cols), mixed(6, 80, cols)];
    for count in [1, 9, 100] {
        let seeds: Vec<u64> = (0..count).collect();
        let (x, routing) = (rows(&seeds, cols), route(&seeds, 6, choices));
        for kind in KINDS {
            let outs = [50, 80].map(|outputs| poisoned(routing.pairs() + 1, outputs));
            let products = [0, 1].map(|i| ExpertProduct { out: &outs[i], experts: &stacks[i] });
            let mut buffer = ActivationBuffer::new(count as usize, cols, kind, &device()).unwrap();
            let tensor = tensor(&x, cols);
            let both = [&stacks[0][..], &stacks[1][..]];
            let activations = buffer.prepare_experts(&tensor, count as usize, &both).unwrap();
            expert_matmuls(&products, &activations, &routing, PairInput::Rows).unwrap();
            for (out, stack) in outs.iter().zip(&stacks) {
                let alone = run(&x, stack, &routing, PairInput::Rows, kind);
                assert_eq!(bits(&values(out)), bits(&alone), "{kind:?} {count} rows");
            }
            let twice = [products[0], products[0]];
            let error = expert_matmuls(&twice, &activations, &routing, PairInput::Rows);
            assert!(matches!(error, Err(Error::Aliased { .. })), "{error:?}");
        }
    }
}

/// Input, experts, combination: what a row gets in the end, row by row.
fn combined(
    seeds: &[u64],
    stack: &[Matrix],
    choices: usize,
    kind: ActivationType,
) -> Vec<Vec<u32>> {
    let (cols, outputs) = (stack[0].cols(), stack[0].rows());
    let routing = route(seeds, stack.len(), choices);
    let y = run(&rows(seeds, cols), stack, &routing, PairInput::Rows, kind);
    let out = tensor(&vec![0.5; seeds.len() * outputs], outputs);
    combine_experts(&out, &tensor(&y, outputs), &routing).unwrap();
    bits(&values(&out)).chunks(outputs).map(<[u32]>::to_vec).collect()
}

#[test]
fn a_row_keeps_its_bits_among_other_rows_in_any_order_on_any_number_of_threads() {
    // As above; and on a GPU few rows have other bits than many.
    if gpu().is_some() {
        return;
    }
    let stack = mixed(12, 40, 128);
    let pools: Vec<_> = [1, 2, 3].map(|threads| Arc::new(Pool::new(threads).unwrap())).into();
    for kind in KINDS {
        let alone: Vec<_> = (0..60).map(|seed| combined(&[seed], &stack, 3, kind)).collect();
        let mut random = Random::new(3);
        for count in [2, 7, 60, 250] {
            let seeds: Vec<u64> = (0..count).map(|_| random.below(60) as u64).collect();
            for pool in &pools {
                let found = Pool::with(pool, || combined(&seeds, &stack, 3, kind));
                for (row, seed) in found.iter().zip(&seeds) {
                    assert_eq!(*row, alone[*seed as usize][0], "{kind:?} {count} rows");
                }
            }
        }
    }
}

#[test]
fn combined_experts_match_their_reference() {
    for backend in Backend::all() {
        for (experts, choices, count, dim) in
            [(4, 2, 3, 33), (8, 8, 40, 64), (128, 6, 300, 16), (1, 1, 1, 5), (4, 2, 0, 8)]
        {
            let seeds: Vec<u64> = (0..count).collect();
            let routing = backend.with(|| route(&seeds, experts, choices));
            let chosen = routing.choices().unwrap();
            let mut random = Random::new(dim as u64);
            let y = random.numbers((routing.pairs() + 1) * dim);
            let before = random.numbers(count as usize * dim);
            let (mut expected, mut magnitudes) = (before.clone(), vec![0.0; before.len()]);
            for (row, out) in expected.chunks_mut(dim).enumerate() {
                let (_, weights) = chosen.of(row);
                let pair = |pair: &u32| &y[*pair as usize * dim..][..dim];
                let pairs: Vec<_> =
                    chosen.pairs_of(row).iter().map(pair).zip(weights.iter().copied()).collect();
                // All numbers are below 1, and weights add up to it.
                magnitudes[row * dim..][..dim].fill(2.0);
                reference::combine(out, &pairs);
            }
            let out = poisoned(count as usize + 1, dim);
            backend.with(|| {
                sconce_kernels::write_rows(&out, &before).unwrap();
                combine_experts(&out, &tensor(&y, dim), &routing).unwrap();
            });
            let found = values(&out);
            let case = format!("{backend} {experts} experts");
            match backend.is_gpu() {
                true => compare(&case, &found, &expected, &magnitudes, COMBINE_TOLERANCE),
                false => {
                    assert_eq!(bits(&found[..expected.len()]), bits(&expected), "{case}");
                    assert!(found[expected.len()..].iter().all(|value| value.is_nan()), "{case}");
                }
            }
        }
    }
}

#[test]
fn stacks_and_rows_that_do_not_fit_the_routing_are_refused_before_anything_is_written() {
    let routing = route(&[1, 2, 3], 4, 2);
    let stack = mixed(4, 16, 128);
    let mut odd = mixed(3, 16, 128);
    odd.push(mixed(1, 17, 128).remove(0));
    let mut buffer = ActivationBuffer::new(8, 128, ActivationType::F32, &device()).unwrap();
    let x = tensor(&[0.0; 8 * 128], 128);
    let mut refused = |out: &Tensor, rows: usize, stack: &[Matrix], input: PairInput| {
        let x = buffer.prepare_experts(&x, rows, &[stack]).unwrap();
        let error = expert_matmul(out, &x, stack, &routing, input).unwrap_err();
        assert!(matches!(error, Error::Shape { .. }), "{error}");
        assert!(values(out).iter().all(|value| value.is_nan()), "a refused call writes nothing");
    };
    refused(&poisoned(6, 16), 3, &stack[..3], PairInput::Rows);
    refused(&poisoned(6, 16), 3, &odd, PairInput::Rows);
    refused(&poisoned(6, 16), 6, &stack, PairInput::Rows);
    refused(&poisoned(6, 16), 3, &stack, PairInput::Pairs);
    refused(&poisoned(5, 16), 3, &stack, PairInput::Rows);
    refused(&poisoned(6, 15), 3, &stack, PairInput::Rows);
    let y = tensor(&[0.0; 5 * 16], 16);
    assert!(matches!(combine_experts(&poisoned(3, 16), &y, &routing), Err(Error::Shape { .. })));
    let y = tensor(&[0.0; 6 * 16], 16);
    assert!(matches!(combine_experts(&y, &y, &routing), Err(Error::Aliased { .. })));
}
