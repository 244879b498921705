//! Rows of the tables of `short_conv` and `rms_norm_gated`.

use candle_core::Tensor;
use sconce_kernels::rms_norm_gated::reference::rms_norm_gated as normalized;
use sconce_kernels::short_conv::{Inputs, reference};
use sconce_kernels::{Emit, Error, Pool, Recurrence, RecurrentSegment, rms_norm_gated, short_conv};

use crate::common::{
    Backend, Random, bits, compare, device, displaced, poisoned, tensor, values, vector,
};

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

/// Operands of a convolution with one slot more than is used.
struct Convolution {
    channels: usize,
    kernel: usize,
    x: Vec<f32>,
    weight: Vec<f32>,
    state: Vec<f32>,
    slots: usize,
}

impl Convolution {
    fn new(channels: usize, kernel: usize, rows: usize, slots: usize) -> Self {
        let mut random = Random::new((channels * 100 + kernel) as u64);
        let x = random.numbers((rows + 1) * channels);
        let weight = random.numbers(kernel * channels);
        let state = random.numbers(slots * (kernel - 1) * channels);
        Self { channels, kernel, x, weight, state, slots }
    }

    /// Outputs and states of the operator.
    fn run(&self, recurrence: Recurrence<'_>) -> (Vec<f32>, Vec<f32>) {
        self.run_on(tensor, recurrence)
    }

    /// The same on tensors of rows that `rows` makes.
    fn run_on(
        &self,
        rows: fn(&[f32], usize) -> Tensor,
        recurrence: Recurrence<'_>,
    ) -> (Vec<f32>, Vec<f32>) {
        let shape = (self.slots, self.kernel - 1, self.channels);
        let state = rows(&self.state, self.channels).reshape(shape).unwrap();
        let out = rows(&vec![f32::NAN; self.x.len()], self.channels);
        let (x, weight) = (rows(&self.x, self.channels), rows(&self.weight, self.channels));
        short_conv(&out, &x, &weight, &state, recurrence).unwrap();
        (values(&out), values(&state))
    }
}

#[test]
fn short_conv_matches_its_reference() {
    let table: [(usize, usize, &[usize]); 10] = [
        (1, 4, &[1]),
        (8, 3, &[1, 1, 0, 1, 1]),
        (16, 4, &[5, 1, 2]),
        (40, 4, &[3, 64]),
        (1030, 4, &[1, 20]),
        (24, 2, &[1, 7]),
        (8, 5, &[9]),
        (6, 6, &[1, 40]),
        (24, 7, &[2, 3]),
        (520, 8, &[33, 0, 101]),
    ];
    for (channels, kernel, lens) in table {
        let segments = segments(lens);
        let rows = lens.iter().sum();
        let slots = lens.len() + 5;
        let case = Convolution::new(channels, kernel, rows, slots);
        // In no order, on the way and at the end, and twice at one place; the last slot stays.
        let last = lens.len() - 1;
        let offsets = [(last, lens[last]), (0, lens[0]), (last, 1), (last, lens[last].min(32))];
        let emits: Vec<Emit> = (lens.len() as u32..)
            .zip(offsets)
            .map(|(slot, (segment, offset))| Emit { segment, offset, slot })
            .collect();
        let recurrence = Recurrence { segments: &segments, emits: &emits };
        let (mut expected, mut state) = (vec![0.0; rows * channels], case.state.clone());
        let inputs = Inputs { x: &case.x, weight: &case.weight, channels };
        reference::short_conv(&mut expected, &mut state, inputs, recurrence);
        let magnitudes = vec![kernel as f32; expected.len()];
        for backend in Backend::all() {
            let (out, found) = backend.with(|| case.run(recurrence));
            let name = format!("{backend} {channels}x{kernel} {lens:?}");
            compare(&name, &out, &expected, &magnitudes, 5e-7);
            assert_eq!(bits(&found), bits(&state), "{name}: states");
            let odd = backend.with(|| case.run_on(displaced, recurrence));
            assert_eq!((bits(&odd.0), bits(&odd.1)), (bits(&out), bits(&state)), "{name}, odd");
        }
    }
}

#[test]
fn a_convolution_has_the_same_bits_whole_in_pieces_and_on_any_number_of_threads() {
    let case = Convolution::new(600, 4, 50, 2);
    let whole = segments(&[50]);
    for backend in Backend::all() {
        let recurrence = Recurrence { segments: &whole, emits: &[] };
        let (expected, end) = backend.with(|| case.run(recurrence));
        for (threads, piece) in [(1, 1), (2, 7), (3, 2)] {
            let pool = std::sync::Arc::new(Pool::new(threads).unwrap());
            let mut part = Convolution::new(600, 4, 50, 2);
            for start in (0..50).step_by(piece) {
                let len = piece.min(50 - start);
                let segment = RecurrentSegment { first_row: start, len, slot: 0 };
                let recurrence = Recurrence { segments: &[segment], emits: &[] };
                let (out, state) = Pool::with(&pool, || backend.with(|| part.run(recurrence)));
                let range = start * 600..(start + len) * 600;
                assert_eq!(bits(&out[range.clone()]), bits(&expected[range]), "{backend} {start}");
                part.state = state;
            }
            assert_eq!(bits(&part.state), bits(&end), "{backend} pieces of {piece}");
        }
    }
}

#[cfg(any(feature = "cuda", feature = "emulate", feature = "metal"))]
#[test]
fn kernels_of_more_inputs_than_a_gpu_has_registers_for_are_refused() {
    for backend in Backend::all().into_iter().filter(|backend| backend.is_gpu()) {
        let (x, weight) = (tensor(&[1.0; 8], 4), tensor(&[1.0; 36], 4));
        let state = Tensor::full(0.0_f32, (1, 8, 4), &device()).unwrap();
        let state = state.contiguous().unwrap();
        let recurrence = Recurrence { segments: &segments(&[2]), emits: &[] };
        let out = poisoned(2, 4);
        let found = backend.with(|| short_conv(&out, &x, &weight, &state, recurrence));
        let message = "short_conv: weight must be [2 to 8, channels] on a GPU, found [9, 4]";
        assert_eq!(found.unwrap_err().to_string(), message);
    }
}

#[test]
fn a_convolution_over_ones_sums_the_inputs_it_sees() {
    let x = tensor(&[1.0, 2.0, 4.0], 1);
    let weight = tensor(&[1.0; 3], 1);
    let state = Tensor::from_slice(&[100.0_f32, 200.0], (1, 2, 1), &device()).unwrap();
    let segment = RecurrentSegment { first_row: 0, len: 3, slot: 0 };
    let out = poisoned(3, 1);
    let recurrence = Recurrence { segments: &[segment], emits: &[] };
    short_conv(&out, &x, &weight, &state, recurrence).unwrap();
    let silu = |sum: f32| sum / (1.0 + (-sum).exp());
    for (found, sum) in values(&out).into_iter().zip([301.0, 203.0, 7.0]) {
        assert!((found - silu(sum)).abs() < 1e-5, "{found} for {sum}");
    }
    assert_eq!(values(&state), [2.0, 4.0]);
}

#[test]
fn a_convolution_whose_operands_do_not_fit_is_refused() {
    let (x, weight) = (tensor(&[1.0; 8], 4), tensor(&[1.0; 12], 4));
    let state = |dims: (usize, usize, usize)| Tensor::full(0.0_f32, dims, &device()).unwrap();
    let state = |dims| state(dims).contiguous().unwrap();
    let segments = segments(&[2]);
    let run = |x: &Tensor, state: &Tensor, segments| {
        short_conv(&poisoned(2, 4), x, &weight, state, Recurrence { segments, emits: &[] })
    };
    assert!(run(&x, &state((1, 2, 4)), &segments).is_ok());
    let found = run(&x, &state((1, 3, 4)), &segments).unwrap_err().to_string();
    assert_eq!(found, "short_conv: state must be [slots, 2, 4], found [1, 3, 4]");
    assert!(matches!(
        run(&tensor(&[1.0; 8], 2), &state((1, 2, 4)), &segments),
        Err(Error::Shape { .. })
    ));
    let found = short_conv(
        &poisoned(2, 4),
        &x,
        &tensor(&[1.0; 4], 4),
        &state((1, 2, 4)),
        Recurrence::default(),
    );
    assert!(matches!(found, Err(Error::Shape { operand: "weight", .. })));
    let outside = [RecurrentSegment { slot: 1, ..segments[0] }];
    assert!(matches!(run(&x, &state((1, 2, 4)), &outside), Err(Error::Index { .. })));
    let long = [RecurrentSegment { len: 3, ..segments[0] }];
    assert!(matches!(run(&x, &state((1, 2, 4)), &long), Err(Error::Shape { .. })));
}

#[test]
fn rms_norm_gated_matches_its_reference() {
    for (rows, dim, runs) in
        [(0, 8, 1), (1, 1, 1), (3, 16, 2), (2, 33, 1), (50, 128, 4), (2, 2049, 1), (2, 8200, 1)]
    {
        let mut random = Random::new(dim as u64);
        let width = dim * runs;
        let (x, weight) = (random.numbers((rows + 1) * width), random.numbers(dim));
        let gate: Vec<f32> = random.numbers(x.len()).iter().map(|gate| gate * 10.0).collect();
        let live = rows * width;
        let mut expected = vec![0.0; live];
        let inputs = sconce_kernels::rms_norm_gated::Inputs {
            x: &x[..live],
            gate: &gate[..live],
            weight: &weight,
            eps: 1e-6,
        };
        normalized(&mut expected, inputs);
        let magnitudes: Vec<f32> = expected.iter().map(|value| value.abs()).collect();
        for backend in Backend::all() {
            let out = poisoned(rows + 1, width);
            let (x, gate, weight) = (tensor(&x, width), tensor(&gate, width), vector(&weight));
            backend.with(|| rms_norm_gated(&out, &x, &gate, &weight, 1e-6, rows)).unwrap();
            let case = format!("{backend} {rows}x{runs}x{dim}");
            compare(&case, &values(&out), &expected, &magnitudes, 2e-5);
        }
    }
}

#[test]
fn a_gated_row_has_the_same_bits_alone_and_in_a_batch() {
    let (x, gate) = (Random::new(3).numbers(70 * 264), Random::new(5).numbers(70 * 264));
    let weight = vector(&Random::new(4).numbers(132));
    for backend in Backend::all() {
        let run = |place: fn(&[f32], usize) -> Tensor, x: &[f32], gate: &[f32]| {
            let (x, gate) = (place(x, 264), place(gate, 264));
            let rows = x.dims()[0];
            let out = poisoned(rows, 264);
            backend.with(|| rms_norm_gated(&out, &x, &gate, &weight, 1e-6, rows)).unwrap();
            values(&out)
        };
        let all = run(tensor, &x, &gate);
        for row in [0, 1, 30, 31, 69] {
            let range = row * 264..(row + 1) * 264;
            let alone = run(tensor, &x[range.clone()], &gate[range.clone()]);
            assert_eq!(bits(&alone), bits(&all[range.clone()]), "{backend} row {row}");
            let odd = run(displaced, &x[range.clone()], &gate[range.clone()]);
            assert_eq!(bits(&odd), bits(&all[range]), "{backend} row {row}, odd");
        }
    }
}

#[test]
fn a_gated_norm_whose_operands_do_not_fit_is_refused() {
    let (x, gate, weight) = (tensor(&[1.0; 8], 4), tensor(&[1.0; 8], 4), vector(&[1.0; 4]));
    let out = poisoned(2, 4);
    assert!(rms_norm_gated(&out, &x, &gate, &weight, 1e-6, 2).is_ok());
    let found = rms_norm_gated(&out, &x, &gate, &vector(&[1.0; 3]), 1e-6, 2);
    assert!(matches!(found, Err(Error::Shape { operand: "weight", .. })));
    let found = rms_norm_gated(&out, &x, &gate, &weight, 1e-6, 3);
    assert!(matches!(found, Err(Error::Shape { operand: "out", .. })));
    let found = rms_norm_gated(&out, &x, &out, &weight, 1e-6, 2);
    assert!(matches!(found, Err(Error::Aliased { operand: "gate", .. })));
}
