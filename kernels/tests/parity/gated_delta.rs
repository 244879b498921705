//! Rows of the table of `gated_delta`: both forms against the definition, and what may not change
//! bits. How the two forms compare over lengths and decays is in `gated_delta_forms.rs`.

use std::sync::Arc;

use candle_core::Tensor;
use sconce_kernels::gated_delta::{Inputs, Shape, reference};
use sconce_kernels::{
    Emit, Error, Form, GatedDeltaInputs, GatedDeltaOptions, KeyHeads, Pool, Recurrence,
    RecurrentSegment, gated_delta,
};

use crate::common::{
    Backend, Random, bits, compare, device, levels, poisoned, tensor, values, vector,
};

/// Operands of the rule: keys, queries and values of some rows, and states to start from.
pub(crate) struct Case {
    pub(crate) shape: Shape,
    pub(crate) qkv: Vec<f32>,
    pub(crate) a: Vec<f32>,
    pub(crate) b: Vec<f32>,
    pub(crate) rate: Vec<f32>,
    pub(crate) dt_bias: Vec<f32>,
    pub(crate) state: Vec<f32>,
}

/// Key heads, value heads, key width, value width.
pub(crate) fn shape(dims: [usize; 4], slots: usize, head_map: KeyHeads) -> Shape {
    let [key_heads, value_heads, key_dim, value_dim] = dims;
    Shape { slots, key_heads, value_heads, key_dim, value_dim, head_map }
}

impl Case {
    /// Seeded operands; `rate` is the same for all heads.
    pub(crate) fn new(shape: Shape, rows: usize, rate: f32) -> Self {
        let mut random = Random::new((rows + 1000 * shape.key_dim + shape.value_dim) as u64);
        let mut numbers = |count: usize, factor: f32| -> Vec<f32> {
            random.numbers(count).iter().map(|number| number * factor).collect()
        };
        let states = shape.slots * shape.value_heads * shape.key_dim * shape.value_dim;
        Self {
            shape,
            qkv: numbers(rows * shape.qkv_width(), 1.0),
            a: numbers(rows * shape.value_heads, 3.0),
            b: numbers(rows * shape.value_heads, 3.0),
            rate: vec![rate; shape.value_heads],
            dt_bias: numbers(shape.value_heads, 1.0),
            state: numbers(states, 1.0),
        }
    }

    pub(crate) fn rows(&self) -> usize {
        self.a.len() / self.shape.value_heads
    }

    /// Elements of a row of the output.
    pub(crate) fn width(&self) -> usize {
        self.shape.value_heads * self.shape.value_dim
    }

    /// Outputs, with a row more than there is, and states.
    pub(crate) fn run(&self, form: Form, recurrence: Recurrence<'_>) -> (Vec<f32>, Vec<f32>) {
        self.try_run(form, recurrence).unwrap()
    }

    fn try_run(
        &self,
        form: Form,
        recurrence: Recurrence<'_>,
    ) -> Result<(Vec<f32>, Vec<f32>), Error> {
        let Shape { slots, key_heads, value_heads, key_dim, value_dim, head_map } = self.shape;
        let dims = (slots, value_heads, key_dim, value_dim);
        let state = Tensor::from_slice(&self.state, dims, &device()).unwrap();
        let out = poisoned(self.rows() + 1, self.width());
        let inputs = GatedDeltaInputs {
            qkv: &tensor(&self.qkv, self.shape.qkv_width()),
            a: &tensor(&self.a, value_heads),
            b: &tensor(&self.b, value_heads),
            rate: &vector(&self.rate),
            dt_bias: &vector(&self.dt_bias),
        };
        let options = GatedDeltaOptions { key_heads, key_dim, value_dim, head_map, form };
        gated_delta(&out, inputs, &state, recurrence, options)?;
        Ok((values(&out), values(&state)))
    }

    /// What the reference makes of it.
    pub(crate) fn expected(&self, recurrence: Recurrence<'_>) -> (Vec<f32>, Vec<f32>) {
        let (mut out, mut state) = (vec![f32::NAN; self.rows() * self.width()], self.state.clone());
        let inputs = Inputs {
            qkv: &self.qkv,
            a: &self.a,
            b: &self.b,
            rate: &self.rate,
            dt_bias: &self.dt_bias,
        };
        reference::gated_delta(&mut out, &mut state, inputs, recurrence, &self.shape);
        (out, state)
    }
}

/// For each run of `len` elements the largest magnitude in it, as often as it has elements.
pub(crate) fn largest_of_runs(values: &[f32], len: usize) -> Vec<f32> {
    let largest = |run: &[f32]| run.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
    values.chunks(len).flat_map(|run| std::iter::repeat_n(largest(run), run.len())).collect()
}

/// Segments of the given lengths, one after another, in slots from 0 on.
fn segments(lens: &[usize]) -> Vec<RecurrentSegment> {
    let mut first_row = 0;
    let segment = |(slot, len): (usize, &usize)| {
        let segment = RecurrentSegment { first_row, len: *len, slot: slot as u32 };
        first_row += len;
        segment
    };
    lens.iter().enumerate().map(segment).collect()
}

/// Of outputs and of states. The chunked form of a GPU may have tensor cores work on operands of two
/// bf16 parts, 16 bits of mantissa.
fn tolerances(backend: Backend, form: Form) -> [f32; 2] {
    match (backend.is_gpu(), form) {
        (true, Form::Chunked) => [1e-4, 5e-5],
        _ => [1e-5, 2e-6],
    }
}

/// Fewest numbers whose largest an error is held against.
const RUN_MIN: usize = 16;

#[test]
fn gated_delta_matches_its_reference() {
    let table: [([usize; 4], &[usize]); 9] = [
        ([1, 1, 1, 1], &[1, 3]),
        ([1, 1, 16, 16], &[1, 20]),
        ([2, 4, 128, 128], &[1, 70, 2]),
        ([2, 2, 24, 40], &[65, 1]),
        ([1, 3, 40, 24], &[5, 0, 130]),
        ([2, 6, 33, 70], &[3, 66]),
        ([4, 4, 64, 200], &[1, 1, 1, 9]),
        ([3, 6, 8, 56], &[64, 128]),
        ([1, 2, 200, 20], &[1, 67]),
    ];
    for (dims, lens) in table {
        for head_map in [KeyHeads::Grouped, KeyHeads::Tiled] {
            let slots = lens.len() + 2;
            let case = Case::new(shape(dims, slots, head_map), lens.iter().sum(), -0.3);
            let segments = segments(lens);
            let last = lens.len() - 1;
            let emits = [
                Emit { segment: last, offset: lens[last], slot: slots as u32 - 1 },
                Emit { segment: last, offset: lens[last].div_ceil(2), slot: slots as u32 - 2 },
            ];
            let recurrence = Recurrence { segments: &segments, emits: &emits };
            let (expected, expected_state) = case.expected(recurrence);
            // An error is held against what a row, or a state, has of numbers: one alone may be small
            // because larger ones cancelled out, which loses digits. So narrow heads take several.
            let out_size = largest_of_runs(&expected, dims[3].max(RUN_MIN));
            let state_size = largest_of_runs(&expected_state, (dims[2] * dims[3]).max(RUN_MIN));
            for backend in Backend::all() {
                for form in [Form::Sequential, Form::Chunked] {
                    let (out, state) = backend.with(|| case.run(form, recurrence));
                    let name = format!("{backend} {form:?} {dims:?} {head_map:?} {lens:?}");
                    let [of_out, of_state] = tolerances(backend, form);
                    compare(&name, &out, &expected, &out_size, of_out);
                    compare(&name, &state, &expected_state, &state_size, of_state);
                }
            }
        }
    }
}

#[test]
fn a_sequence_has_the_same_bits_whole_in_pieces_alone_and_on_any_number_of_threads() {
    for dims in [[2, 4, 64, 128], [1, 2, 24, 40]] {
        let case = Case::new(shape(dims, 3, KeyHeads::Grouped), 150, -0.1);
        let width = case.width();
        let whole = segments(&[20, 130]);
        for isa in levels() {
            let recurrence = Recurrence { segments: &whole, emits: &[] };
            let (expected, end) = isa.with(|| case.run(Form::Sequential, recurrence));
            for (threads, piece) in [(1, 1), (2, 7), (3, 64), (4, 33)] {
                let pool = Arc::new(Pool::new(threads).unwrap());
                let mut part = Case::new(shape(dims, 3, KeyHeads::Grouped), 150, -0.1);
                for start in (20..150).step_by(piece) {
                    let len = piece.min(150 - start);
                    let segment = RecurrentSegment { first_row: start, len, slot: 1 };
                    let recurrence = Recurrence { segments: &[segment], emits: &[] };
                    let run = || isa.with(|| part.run(Form::Sequential, recurrence));
                    let (out, state) = Pool::with(&pool, run);
                    let range = start * width..(start + len) * width;
                    let same = bits(&out[range.clone()]) == bits(&expected[range]);
                    assert!(same, "{isa} {dims:?} pieces of {piece} at {start}");
                    part.state = state;
                }
                let slot = part.state.len() / 3;
                let same = bits(&part.state[slot..2 * slot]) == bits(&end[slot..2 * slot]);
                assert!(same, "{isa} {dims:?} pieces of {piece}");
            }
        }
    }
}

#[test]
fn on_gpus_a_sequence_has_the_same_bits_whole_in_pieces_alone_and_in_a_batch() {
    for dims in [[1, 2, 40, 48], [1, 1, 24, 39]] {
        let case = Case::new(shape(dims, 3, KeyHeads::Grouped), 50, -0.1);
        let width = case.width();
        for backend in Backend::all().into_iter().filter(|backend| backend.is_gpu()) {
            let batch = segments(&[10, 40]);
            let recurrence = Recurrence { segments: &batch, emits: &[] };
            let (expected, end) = backend.with(|| case.run(Form::Sequential, recurrence));
            for piece in [1, 8, 33] {
                let mut part = Case::new(shape(dims, 3, KeyHeads::Grouped), 50, -0.1);
                for start in (10..50).step_by(piece) {
                    let len = piece.min(50 - start);
                    let segment = RecurrentSegment { first_row: start, len, slot: 1 };
                    let recurrence = Recurrence { segments: &[segment], emits: &[] };
                    let (out, state) = backend.with(|| part.run(Form::Sequential, recurrence));
                    let range = start * width..(start + len) * width;
                    let same = bits(&out[range.clone()]) == bits(&expected[range]);
                    assert!(same, "{backend} {dims:?} pieces of {piece} at {start}");
                    part.state = state;
                }
                let slot = part.state.len() / 3;
                let same = bits(&part.state[slot..2 * slot]) == bits(&end[slot..2 * slot]);
                assert!(same, "{backend} {dims:?} pieces of {piece}");
            }
        }
    }
}

/// Steps of many short sequences, where blocks of the sequential form are larger.
#[test]
fn on_gpus_many_sequences_advance_as_each_alone() {
    let dims = [2, 4, 16, 72];
    let lens = vec![1; 40];
    let case = Case::new(shape(dims, 40, KeyHeads::Tiled), 40, -0.2);
    let all = segments(&lens);
    for backend in Backend::all().into_iter().filter(|backend| backend.is_gpu()) {
        let run = |segments| {
            let recurrence = Recurrence { segments, emits: &[] };
            backend.with(|| case.run(Form::Sequential, recurrence))
        };
        let (together, states) = run(&all);
        let slot_len = states.len() / 40;
        for index in [0, 17, 39] {
            let (alone, state) = run(&all[index..=index]);
            let row = index * case.width()..(index + 1) * case.width();
            assert_eq!(bits(&alone[row.clone()]), bits(&together[row]), "{backend} {index}");
            let slot = index * slot_len..(index + 1) * slot_len;
            assert_eq!(bits(&state[slot.clone()]), bits(&states[slot]), "{backend} {index}");
        }
    }
}

#[test]
fn key_heads_that_no_kernel_is_written_for_are_an_error_that_says_so() {
    let case = Case::new(shape([1, 1, 257, 8], 1, KeyHeads::Grouped), 1, -0.1);
    let segments = segments(&[1]);
    let recurrence = Recurrence { segments: &segments, emits: &[] };
    for backend in Backend::all() {
        for form in [Form::Sequential, Form::Chunked] {
            let found = backend.with(|| case.try_run(form, recurrence).map(|_| ()));
            match backend.is_gpu() {
                true => {
                    let expected = "gated_delta: state must be key heads of at most 256 on a GPU, \
                                    found 257";
                    assert_eq!(found.unwrap_err().to_string(), expected);
                }
                false => assert!(found.is_ok(), "{backend}"),
            }
        }
    }
}

#[test]
fn states_copied_out_in_the_middle_are_the_states_reached_by_stopping_there() {
    let offsets = [1, 2, 63, 64, 65, 100, 128, 149];
    for form in [Form::Sequential, Form::Chunked] {
        let case = Case::new(shape([2, 4, 24, 72], 10, KeyHeads::Tiled), 150, -0.05);
        let slot_len = case.state.len() / 10;
        let segment = RecurrentSegment { first_row: 0, len: 150, slot: 9 };
        let emit = |(slot, offset): (usize, &usize)| Emit {
            segment: 0,
            offset: *offset,
            slot: slot as u32,
        };
        // From the last to the first, as the order of emits is free.
        let emits: Vec<Emit> = offsets.iter().enumerate().map(emit).rev().collect();
        for backend in Backend::all() {
            let run = |segment, emits| {
                let recurrence = Recurrence { segments: &[segment], emits };
                backend.with(|| case.run(form, recurrence))
            };
            let (plain, plain_state) = run(segment, &[]);
            let (out, state) = run(segment, &emits);
            assert_eq!(bits(&out), bits(&plain), "{backend} {form:?}: outputs");
            let end = 9 * slot_len;
            assert_eq!(bits(&state[end..]), bits(&plain_state[end..]), "{backend} {form:?}: end");
            for (slot, offset) in offsets.into_iter().enumerate() {
                let (_, stopped) = run(RecurrentSegment { len: offset, ..segment }, &[]);
                let found = &state[slot * slot_len..][..slot_len];
                assert_eq!(bits(found), bits(&stopped[end..]), "{backend} {form:?} at {offset}");
            }
        }
    }
}

#[test]
fn a_full_write_is_read_back_and_overwritten() {
    // Two values under one key, written with full strength and without decay: the second replaces
    // the first, which a plain sum would not do.
    let shape = shape([1, 1, 2, 1], 1, KeyHeads::Grouped);
    let case = Case {
        shape,
        qkv: vec![3.0, 4.0, 3.0, 4.0, 5.0, 3.0, 4.0, 3.0, 4.0, 7.0],
        a: vec![0.0; 2],
        b: vec![100.0; 2],
        rate: vec![0.0],
        dt_bias: vec![0.0],
        state: vec![0.0; 2],
    };
    let segment = RecurrentSegment { first_row: 0, len: 2, slot: 0 };
    let recurrence = Recurrence { segments: &[segment], emits: &[] };
    let forms = [Form::Sequential, Form::Chunked];
    for (backend, form) in Backend::all().into_iter().flat_map(|b| forms.map(|form| (b, form))) {
        let (out, state) = backend.with(|| case.run(form, recurrence));
        let scale = 0.5_f32.sqrt();
        let tolerance = 7.0 * tolerances(backend, form)[1];
        for (found, expected) in [
            (out[0], 5.0 * scale),
            (out[1], 7.0 * scale),
            (state[0], 7.0 * 0.6),
            (state[1], 7.0 * 0.8),
        ] {
            let close = (found - expected).abs() < tolerance;
            assert!(close, "{backend} {form:?}: {found}, not {expected}");
        }
    }
}

#[test]
fn operands_that_do_not_fit_are_refused() {
    let case = Case::new(shape([2, 4, 8, 8], 2, KeyHeads::Grouped), 3, -0.1);
    let good = segments(&[2, 1]);
    let run =
        |segments: &[RecurrentSegment], emits: &[Emit], key_heads: usize, value_dim: usize| {
            let out = poisoned(3, 32);
            let dims = (2, 4, 8, 8);
            let state = Tensor::from_slice(&case.state, dims, &device()).unwrap();
            let inputs = GatedDeltaInputs {
                qkv: &tensor(&case.qkv, case.shape.qkv_width()),
                a: &tensor(&case.a, 4),
                b: &tensor(&case.b, 4),
                rate: &vector(&case.rate),
                dt_bias: &vector(&case.dt_bias),
            };
            let head_map = KeyHeads::Grouped;
            let form = Form::Sequential;
            let options = GatedDeltaOptions { key_heads, key_dim: 8, value_dim, head_map, form };
            gated_delta(&out, inputs, &state, Recurrence { segments, emits }, options)
        };
    assert!(run(&good, &[], 2, 8).is_ok());
    for key_heads in [0, 3] {
        assert!(matches!(run(&good, &[], key_heads, 8), Err(Error::Shape { .. })));
    }
    let found = run(&good, &[], 2, 16).unwrap_err().to_string();
    let expected = "gated_delta: state must be [slots, a multiple of 2, 8, 16], found [2, 4, 8, 8]";
    assert_eq!(found, expected);
    let found = run(&good, &[], 4, 8);
    assert!(matches!(found, Err(Error::Shape { operand: "qkv", .. })), "{found:?}");
    let shared = [good[0], RecurrentSegment { slot: 0, ..good[1] }];
    assert!(matches!(run(&shared, &[], 2, 8), Err(Error::Shape { operand: "slots", .. })));
    let emit = Emit { segment: 0, offset: 1, slot: 1 };
    assert!(matches!(run(&good, &[emit], 2, 8), Err(Error::Shape { operand: "slots", .. })));
    assert!(run(&good[..1], &[emit], 2, 8).is_ok());
}
