//! Rows of the table of routing: which experts, which weights, which order of pairs.

use sconce_kernels::moe::reference;
use sconce_kernels::{Choices, Error, RouterOptions, Routing, Scoring};

use crate::common::{Backend, Random, bits, compare, device, tensor, vector};

/// Of weights on GPUs, which sum probabilities in another order and have an `exp` of their own.
const TOLERANCE: f32 = 2e-6;

fn softmax(experts_per_token: usize, renormalize: bool) -> RouterOptions {
    RouterOptions {
        scoring: Scoring::Softmax,
        experts_per_token,
        groups: 1,
        groups_per_token: 1,
        renormalize,
        scale: 1.0,
    }
}

fn sigmoid(experts_per_token: usize, groups: usize, groups_per_token: usize) -> RouterOptions {
    RouterOptions {
        scoring: Scoring::Sigmoid,
        experts_per_token,
        groups,
        groups_per_token,
        renormalize: true,
        scale: 1.8,
    }
}

/// What all rows of `logits` choose.
fn route(logits: &[f32], experts: usize, correction: &[f32], options: &RouterOptions) -> Choices {
    let rows = logits.len() / experts;
    let mut routing = Routing::new(rows, experts, options.experts_per_token, &device()).unwrap();
    let correction = (!correction.is_empty()).then(|| vector(correction));
    routing.route(&tensor(logits, experts), correction.as_ref(), options, rows).unwrap();
    routing.choices().unwrap()
}

/// One backend of the CPU, as all have the same code, and all GPUs.
fn backends() -> impl Iterator<Item = Backend> {
    let all = Backend::all();
    let cpu = all.iter().copied().find(|backend| !backend.is_gpu());
    cpu.into_iter().chain(all.into_iter().filter(|backend| backend.is_gpu()))
}

/// Runs `body` on each of them.
fn everywhere(body: impl Fn()) {
    backends().for_each(|backend| backend.with(&body));
}

/// Compares choices and weights with the definition, on the CPU bit by bit.
fn assert_reference(
    backend: Backend,
    logits: &[f32],
    experts: usize,
    correction: &[f32],
    options: &RouterOptions,
) {
    let routing = backend.with(|| route(logits, experts, correction, options));
    let zeros = vec![0.0; experts];
    let correction = if correction.is_empty() { &zeros } else { correction };
    for (row, logits) in logits.chunks(experts).enumerate() {
        let expected = reference::route(logits, correction, options);
        let (ids, weights) = routing.of(row);
        let case = format!("{backend} {experts} experts, {options:?} row {row}");
        let chosen: Vec<usize> = expected.iter().map(|(id, _)| *id).collect();
        assert!(ids.iter().map(|id| *id as usize).eq(chosen), "{case}: {ids:?}");
        let expected: Vec<f32> = expected.iter().map(|(_, weight)| *weight).collect();
        match backend.is_gpu() {
            true => compare(&case, weights, &expected, &expected, TOLERANCE),
            false => assert_eq!(bits(weights), bits(&expected), "{case}"),
        }
    }
}

#[test]
fn softmax_routing_matches_its_reference() {
    for backend in backends() {
        for experts in [1, 2, 7, 60, 128, 512] {
            // On a GPU 32 rows or fewer have a kernel of their own.
            let rows = if backend.is_gpu() { [0, 1, 32, 70] } else { [0, 1, 5, 300] };
            for rows in rows {
                let logits = Random::new(experts as u64).numbers(rows * experts);
                let choices = [1, 2, 5, 10, 40].into_iter().filter(|choices| *choices <= experts);
                for (index, choices) in choices.enumerate() {
                    let options = softmax(choices, index % 2 == 0);
                    assert_reference(backend, &logits, experts, &[], &options);
                }
            }
        }
    }
}

#[test]
fn sigmoid_routing_in_groups_with_corrections_matches_its_reference() {
    let shapes = [
        (1, 1, 1, 1),
        (8, 1, 1, 8),
        (64, 1, 1, 4),
        (64, 8, 3, 6),
        (12, 4, 2, 5),
        (6, 6, 4, 2),
        (256, 8, 4, 8),
    ];
    for (backend, shape) in backends().flat_map(|of| shapes.map(|shape| (of, shape))) {
        let (experts, groups, groups_per_token, choices) = shape;
        let mut random = Random::new(experts as u64 + 5);
        let logits: Vec<f32> = random.numbers(40 * experts).iter().map(|x| x * 4.0).collect();
        for correction in [vec![], random.numbers(experts), vec![-9.0; experts]] {
            for renormalize in [true, false] {
                let options =
                    RouterOptions { renormalize, ..sigmoid(choices, groups, groups_per_token) };
                assert_reference(backend, &logits, experts, &correction, &options);
            }
        }
    }
}

#[test]
fn a_softmax_row_weighs_its_experts_by_probability() {
    everywhere(|| {
        let logits = [0.0, 2_f32.ln(), 0.0, 4_f32.ln()];
        let whole = route(&logits, 4, &[], &softmax(2, false));
        let (ids, weights) = whole.of(0);
        assert_eq!(ids, [3, 1]);
        assert!((weights[0] - 0.5).abs() < 1e-6 && (weights[1] - 0.25).abs() < 1e-6, "{weights:?}");
        let renormalized = route(&logits, 4, &[], &softmax(2, true));
        let weights = renormalized.of(0).1;
        assert!((weights[0] - 2.0 / 3.0).abs() < 1e-6, "{weights:?}");
        let scaled = RouterOptions { scale: 3.0, ..softmax(2, true) };
        assert!((route(&logits, 4, &[], &scaled).of(0).1[1] - 1.0).abs() < 1e-6);
    });
}

#[test]
fn a_correction_changes_the_choice_but_not_the_weights() {
    everywhere(|| {
        let logits = [3.0, 2.0, 1.0, 0.0];
        let options = RouterOptions { renormalize: false, scale: 1.0, ..sigmoid(1, 1, 1) };
        let routing = route(&logits, 4, &[0.0, 0.0, 0.0, 2.0], &options);
        assert_eq!(routing.of(0).0, [3]);
        assert_eq!(routing.of(0).1, [0.5]);
    });
}

#[test]
fn experts_outside_of_the_chosen_groups_are_not_chosen() {
    everywhere(|| {
        // The best expert is alone in its group; the other group has the larger sum of two.
        let logits = [5.0, -5.0, -5.0, 1.0, 1.0, -5.0];
        let routing = route(&logits, 6, &[], &sigmoid(2, 2, 1));
        assert_eq!(routing.of(0).0, [3, 4]);
        // Corrected scores below zero still beat experts of other groups.
        let routing = route(&logits, 6, &[-7.0; 6], &sigmoid(3, 2, 1));
        assert_eq!(routing.of(0).0, [3, 4, 5]);
    });
}

#[test]
fn of_equal_experts_and_groups_the_first_are_chosen() {
    everywhere(|| {
        for options in [softmax(3, true), RouterOptions { groups_per_token: 2, ..sigmoid(3, 4, 1) }]
        {
            let routing = route(&[0.25; 8], 8, &[], &options);
            assert_eq!(routing.of(0).0, [0, 1, 2], "{options:?}");
        }
        let routing = route(&[1.0, 2.0, 2.0, 1.0, 2.0], 5, &[], &softmax(4, true));
        assert_eq!(routing.of(0).0, [1, 2, 4, 0]);
    });
}

#[test]
fn logits_that_are_not_numbers_neither_stop_the_routing_nor_stay_hidden() {
    everywhere(|| {
        let rows = [
            vec![f32::NAN; 8],
            vec![1.0, f32::NAN, 3.0, 2.0, f32::NAN, 0.0, f32::NEG_INFINITY, 4.0],
            vec![f32::INFINITY; 8],
            vec![f32::NEG_INFINITY; 8],
        ];
        for options in [softmax(3, true), softmax(8, false), sigmoid(3, 4, 2), sigmoid(8, 1, 1)] {
            for (index, row) in rows.iter().enumerate() {
                let routing = route(row, 8, &[], &options);
                let (ids, weights) = routing.of(0);
                let mut sorted = ids.to_vec();
                sorted.sort_unstable();
                sorted.dedup();
                assert_eq!(sorted.len(), options.experts_per_token, "{options:?} {ids:?}");
                if index < 2 {
                    assert!(
                        weights.iter().any(|weight| weight.is_nan()),
                        "{options:?} {weights:?}"
                    );
                }
            }
        }
    });
}

#[test]
fn pairs_are_sorted_by_expert_and_then_by_row() {
    everywhere(|| {
        let (experts, rows, choices) = (10, 200, 4);
        let logits = Random::new(8).numbers(rows * experts);
        let routing = route(&logits, experts, &[], &softmax(choices, true));
        let mut pairs = vec![None; rows * choices];
        for row in 0..rows {
            for (id, pair) in routing.of(row).0.iter().zip(routing.pairs_of(row)) {
                assert_eq!(pairs[*pair as usize].replace((*id, row)), None, "a pair comes once");
            }
        }
        assert!(pairs.iter().all(Option::is_some));
        assert!(pairs.is_sorted());
    });
}

#[test]
fn a_routing_is_used_again_and_takes_the_bytes_foreseen() {
    everywhere(|| {
        let mut routing = Routing::new(50, 16, 4, &device()).unwrap();
        assert!(routing.bytes() <= Routing::bytes_for(50, 16, 4));
        assert!(routing.bytes() * 5 > Routing::bytes_for(50, 16, 4) * 4);
        let before = routing.bytes();
        for (rows, choices) in [(50, 4), (3, 2), (0, 1), (50, 1)] {
            let logits = tensor(&Random::new(rows as u64).numbers(50 * 16), 16);
            routing.route(&logits, None, &softmax(choices, true), rows).unwrap();
            assert_eq!((routing.rows(), routing.pairs()), (rows, rows * choices));
        }
        assert_eq!(routing.bytes(), before);
    });
}

#[test]
fn options_that_no_choice_keeps_are_refused() {
    everywhere(|| {
        let logits = tensor(&[0.0; 8], 8);
        let mut routing = Routing::new(1, 8, 4, &device()).unwrap();
        let correction = vector(&[0.0; 8]);
        let cases = [
            (softmax(0, true), None, "experts_per_token must be 1 to 4, found 0"),
            (softmax(5, true), None, "experts_per_token must be 1 to 4, found 5"),
            (softmax(2, true), Some(&correction), "correction must be none with softmax scores"),
            (sigmoid(3, 4, 1), None, "experts_per_token must be 1 to 2, found 3"),
            (sigmoid(2, 3, 1), None, "groups must be a divisor of 8 experts, found 3"),
            (sigmoid(2, 0, 0), None, "groups must be a divisor of 8 experts, found 0"),
            (sigmoid(2, 4, 5), None, "groups_per_token must be 1 to 4, found 5"),
            (
                RouterOptions { groups: 2, ..softmax(1, true) },
                None,
                "groups must be 1 with softmax",
            ),
        ];
        for (options, correction, expected) in cases {
            let error = routing.route(&logits, correction, &options, 1).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let two = tensor(&[0.0; 16], 8);
        let error = routing.route(&two, None, &softmax(1, true), 2).unwrap_err();
        assert!(matches!(error, Error::Shape { operand: "rows", .. }), "{error}");
        let narrow = tensor(&[0.0; 7], 7);
        assert!(routing.route(&narrow, None, &softmax(1, true), 1).is_err());
        assert!(routing.route(&logits, Some(&vector(&[0.0; 7])), &sigmoid(2, 1, 1), 1).is_err());
    });
}
