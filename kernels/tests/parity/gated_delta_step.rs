//! Rows of the table of `gated_delta_step`: against the definition, alone and in a batch, and on the
//! CPU against the three operators that it stands for.

use candle_core::Tensor;
use sconce_kernels::gated_delta::Shape;
use sconce_kernels::gated_delta_step::{Inputs, reference};
use sconce_kernels::{
    Emit, Error, Form, GatedDeltaInputs, GatedDeltaOptions, GatedDeltaStates, GatedDeltaStepInputs,
    GatedDeltaStepOptions, KeyHeads, Recurrence, RecurrentSegment, gated_delta, gated_delta_step,
    rms_norm_gated, short_conv,
};

use crate::common::{Backend, Random, bits, compare, displaced, poisoned, tensor, values, vector};
use crate::gated_delta::{Case as Rule, largest_of_runs, shape};

const EPS: f32 = 1e-6;

/// Operands of a step.
struct Case {
    rule: Rule,
    kernel: usize,
    conv: Vec<f32>,
    conv_state: Vec<f32>,
    gate: Vec<f32>,
    norm: Vec<f32>,
}

/// Outputs, with a row more than there is, the states of the convolution, and those of the rule.
type Found = [Vec<f32>; 3];

impl Case {
    fn new(shape: Shape, kernel: usize, rows: usize) -> Self {
        let mut random = Random::new((rows * 100 + kernel + shape.key_dim) as u64);
        let channels = shape.qkv_width();
        Self {
            rule: Rule::new(shape, rows, -0.3),
            kernel,
            conv: random.numbers(kernel * channels),
            conv_state: random.numbers(shape.slots * (kernel - 1) * channels),
            gate: random.numbers(rows * shape.value_heads * shape.value_dim),
            norm: random.numbers(shape.value_dim),
        }
    }

    /// Runs `operator` on tensors of the operands, of which `place` makes those of rows.
    fn run_with(
        &self,
        place: fn(&[f32], usize) -> Tensor,
        operator: impl FnOnce(
            &Tensor,
            GatedDeltaStepInputs<'_>,
            GatedDeltaStates<'_>,
        ) -> Result<(), Error>,
    ) -> Result<Found, Error> {
        let Shape { slots, value_heads, key_dim, value_dim, .. } = self.rule.shape;
        let (channels, width) = (self.rule.shape.qkv_width(), self.rule.width());
        let conv_state = place(&self.conv_state, channels);
        let conv_state = conv_state.reshape((slots, self.kernel - 1, channels)).unwrap();
        let delta = place(&self.rule.state, value_dim);
        let delta = delta.reshape((slots, value_heads, key_dim, value_dim)).unwrap();
        let out = poisoned(self.rule.rows() + 1, width);
        let rule = GatedDeltaInputs {
            qkv: &place(&self.rule.qkv, channels),
            a: &place(&self.rule.a, value_heads),
            b: &place(&self.rule.b, value_heads),
            rate: &vector(&self.rule.rate),
            dt_bias: &vector(&self.rule.dt_bias),
        };
        let inputs = GatedDeltaStepInputs {
            rule,
            conv: &place(&self.conv, channels),
            gate: &place(&self.gate, width),
            norm: &vector(&self.norm),
        };
        operator(&out, inputs, GatedDeltaStates { conv: &conv_state, delta: &delta })?;
        Ok([values(&out), values(&conv_state), values(&delta)])
    }

    fn run(
        &self,
        place: fn(&[f32], usize) -> Tensor,
        recurrence: Recurrence<'_>,
    ) -> Result<Found, Error> {
        let Shape { key_heads, key_dim, value_dim, head_map, .. } = self.rule.shape;
        let options = GatedDeltaStepOptions { key_heads, key_dim, value_dim, head_map, eps: EPS };
        self.run_with(place, |out, inputs, states| {
            gated_delta_step(out, inputs, states, recurrence, options)
        })
    }

    /// What the reference makes of it; rows outside of all segments are NaN.
    fn expected(&self, recurrence: Recurrence<'_>) -> Found {
        let rule = &self.rule;
        let qkv = rule.qkv.as_slice();
        let inputs = Inputs {
            conv: sconce_kernels::short_conv::Inputs {
                x: qkv,
                weight: &self.conv,
                channels: rule.shape.qkv_width(),
            },
            rule: sconce_kernels::gated_delta::Inputs {
                qkv,
                a: &rule.a,
                b: &rule.b,
                rate: &rule.rate,
                dt_bias: &rule.dt_bias,
            },
            gate: &self.gate,
            norm: &self.norm,
            eps: EPS,
        };
        let mut out = vec![f32::NAN; rule.rows() * rule.width()];
        let (mut conv, mut delta) = (self.conv_state.clone(), rule.state.clone());
        let states = [conv.as_mut_slice(), delta.as_mut_slice()];
        reference::gated_delta_step(&mut out, states, inputs, recurrence, &rule.shape);
        [out, conv, delta]
    }

    /// The next step, from the states that this one left.
    fn advance(&mut self, [_, conv, delta]: Found) {
        self.conv_state = conv;
        self.rule.state = delta;
    }
}

/// Segments of one token in slots from `slots` on, backwards; the row after every third has none.
fn singles(count: usize, slots: usize) -> Vec<RecurrentSegment> {
    let single = |index: usize| RecurrentSegment {
        first_row: index + index / 3,
        len: 1,
        slot: (slots + count - 1 - index) as u32,
    };
    (0..count).map(single).collect()
}

/// Compares row by row: rows without a segment must still be poison.
fn compare_rows(name: &str, found: &[f32], expected: &[f32], dim: usize) {
    let live: Vec<usize> = (0..expected.len()).filter(|i| !expected[*i].is_nan()).collect();
    let of = |values: &[f32]| live.iter().map(|i| values[*i]).collect::<Vec<_>>();
    let (found_live, expected_live) = (of(found), of(expected));
    let size = largest_of_runs(&expected_live, dim);
    compare(name, &found_live, &expected_live, &size, 4e-5);
    let poison =
        found.iter().enumerate().filter(|(i, _)| expected.get(*i).is_none_or(|e| e.is_nan()));
    assert!(poison.into_iter().all(|(_, value)| value.is_nan()), "{name}: a row without a token");
}

#[test]
fn a_step_matches_its_reference_and_so_does_the_next_one() {
    let table: [([usize; 4], usize, usize); 8] = [
        ([1, 1, 1, 1], 2, 1),
        ([2, 4, 12, 8], 4, 3),
        ([1, 2, 128, 128], 4, 2),
        ([2, 2, 33, 70], 3, 1),
        ([3, 6, 8, 56], 8, 4),
        ([1, 4, 64, 20], 5, 2),
        ([1, 1, 16, 200], 4, 1),
        ([1, 2, 200, 24], 6, 1),
    ];
    for (dims, kernel, count) in table {
        for head_map in [KeyHeads::Grouped, KeyHeads::Tiled] {
            let slots = count + 3;
            let segments = singles(count, 2);
            // Two copies of one state; a slot is left alone.
            let emits = [0, 1].map(|slot| Emit { segment: count - 1, offset: 1, slot });
            let recurrence = Recurrence { segments: &segments, emits: &emits };
            let rows = segments[count - 1].first_row + 2;
            for backend in Backend::all() {
                let mut case = Case::new(shape(dims, slots, head_map), kernel, rows);
                for step in 0..2 {
                    let name = format!("{backend} {dims:?} {head_map:?} of {kernel}, step {step}");
                    let expected = case.expected(recurrence);
                    let found = backend.with(|| case.run(tensor, recurrence)).unwrap();
                    compare_rows(&name, &found[0], &expected[0], dims[3]);
                    assert_eq!(bits(&found[1]), bits(&expected[1]), "{name}: last inputs");
                    let size = largest_of_runs(&expected[2], dims[2] * dims[3]);
                    compare(&name, &found[2], &expected[2], &size, 2e-6);
                    let odd = backend.with(|| case.run(displaced, recurrence)).unwrap();
                    for (odd, found) in odd.iter().zip(&found) {
                        assert_eq!(bits(odd), bits(found), "{name}, displaced");
                    }
                    case.advance(found);
                }
            }
        }
    }
}

#[test]
fn a_step_has_the_same_bits_alone_and_in_a_batch() {
    let segments = singles(3, 0);
    let case = Case::new(shape([2, 4, 24, 40], 3, KeyHeads::Grouped), 4, 5);
    let (width, slot) = (case.rule.width(), case.rule.state.len() / 3);
    for backend in Backend::all() {
        let run = |segments: &[RecurrentSegment]| {
            let recurrence = Recurrence { segments, emits: &[] };
            backend.with(|| case.run(tensor, recurrence)).unwrap()
        };
        let all = run(&segments);
        for segment in &segments {
            let alone = run(&[*segment]);
            let range = segment.first_row * width..(segment.first_row + 1) * width;
            assert_eq!(bits(&alone[0][range.clone()]), bits(&all[0][range]), "{backend}");
            let range = segment.slot as usize * slot..(segment.slot as usize + 1) * slot;
            assert_eq!(bits(&alone[2][range.clone()]), bits(&all[2][range]), "{backend}");
        }
    }
}

#[test]
fn on_the_cpu_a_step_has_the_bits_of_its_three_operators() {
    let segments = singles(3, 0);
    let case = Case::new(shape([2, 4, 24, 40], 4, KeyHeads::Tiled), 4, 4);
    let emits = [Emit { segment: 1, offset: 1, slot: 3 }];
    let recurrence = Recurrence { segments: &segments, emits: &emits };
    let Shape { key_heads, key_dim, value_dim, head_map, .. } = case.rule.shape;
    let options =
        GatedDeltaOptions { key_heads, key_dim, value_dim, head_map, form: Form::Sequential };
    for backend in Backend::all().into_iter().filter(|backend| !backend.is_gpu()) {
        let expected = backend.with(|| {
            case.run_with(tensor, |out, inputs, states| {
                let GatedDeltaStepInputs { rule, conv, gate, norm } = inputs;
                let qkv = poisoned(case.rule.rows(), case.rule.shape.qkv_width());
                let read = poisoned(case.rule.rows(), case.rule.width());
                short_conv(&qkv, rule.qkv, conv, states.conv, recurrence)?;
                let rule = GatedDeltaInputs { qkv: &qkv, ..rule };
                gated_delta(&read, rule, states.delta, recurrence, options)?;
                rms_norm_gated(out, &read, gate, norm, EPS, case.rule.rows())
            })
        });
        let (expected, found) =
            (expected.unwrap(), backend.with(|| case.run(tensor, recurrence)).unwrap());
        // The norm of a row of NaN is NaN.
        for (expected, found) in expected.iter().zip(&found) {
            let same =
                |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
            assert!(expected.iter().zip(found).all(same), "{backend}");
        }
    }
}

#[test]
fn a_step_whose_operands_do_not_fit_is_refused() {
    let case = Case::new(shape([1, 2, 8, 8], 2, KeyHeads::Grouped), 4, 2);
    let refused = |case: &Case, segments: &[RecurrentSegment]| {
        let recurrence = Recurrence { segments, emits: &[] };
        case.run(tensor, recurrence).unwrap_err().to_string()
    };
    let long = [RecurrentSegment { first_row: 0, len: 2, slot: 0 }];
    assert!(refused(&case, &long).contains("segments must be of one token each"));
    let outside = [RecurrentSegment { first_row: 0, len: 1, slot: 2 }];
    assert!(refused(&case, &outside).contains("slots"));
    let one = [RecurrentSegment { first_row: 0, len: 1, slot: 1 }];
    let short = Case { norm: vec![1.0; 7], ..Case::new(case.rule.shape, 4, 2) };
    assert!(refused(&short, &one).contains("norm must be [8], found [7]"));
    let recurrence = Recurrence { segments: &one, emits: &[] };
    let aliased = case.run_with(tensor, |out, inputs, states| {
        let options = GatedDeltaStepOptions {
            key_heads: 1,
            key_dim: 8,
            value_dim: 8,
            head_map: KeyHeads::Grouped,
            eps: EPS,
        };
        let inputs = GatedDeltaStepInputs { gate: out, ..inputs };
        gated_delta_step(out, inputs, states, recurrence, options)
    });
    assert!(matches!(aliased, Err(Error::Aliased { operand: "gate", .. })));
}

#[cfg(any(feature = "cuda", feature = "emulate", feature = "metal"))]
#[test]
fn heads_and_kernels_that_a_gpu_has_no_room_for_are_refused() {
    for backend in Backend::all().into_iter().filter(|backend| backend.is_gpu()) {
        for (dims, kernel, expected) in [
            ([1, 1, 257, 8], 4, "state must be at most [.., 256, 512] on a GPU"),
            ([1, 1, 8, 513], 4, "state must be at most [.., 256, 512] on a GPU"),
            ([1, 1, 8, 8], 9, "conv must be [at most 8, channels] on a GPU"),
        ] {
            let case = Case::new(shape(dims, 1, KeyHeads::Grouped), kernel, 1);
            let segments = [RecurrentSegment { first_row: 0, len: 1, slot: 0 }];
            let recurrence = Recurrence { segments: &segments, emits: &[] };
            let found = backend.with(|| case.run(tensor, recurrence)).unwrap_err().to_string();
            assert!(found.contains(expected), "{found}");
        }
    }
}
