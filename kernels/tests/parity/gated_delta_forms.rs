//! The chunked form of `gated_delta` against the sequential one: every short length, a long one, and
//! decays at both ends.

use sconce_kernels::{Form, Isa, KeyHeads, Recurrence, RecurrentSegment};

use crate::common::compare;
use crate::gated_delta::{Case, largest_of_runs, shape};

/// Largest difference allowed, relative to the largest output of the head in the same 64 rows (where
/// a query happens to be at right angles to all keys, nothing but rounding is left), or to the largest
/// element of the head's state.
const TOLERANCE: f32 = 1e-4;
/// Rates from a decay that is nearly 1 over a moderate one to one that underflows at once.
const RATES: [f32; 6] = [0.0, -1e-4, -0.05, -1.0, -30.0, -1e5];

/// Compares the two forms over the first `len` rows.
fn compare_forms(name: &str, case: &Case, len: usize) {
    let segment = RecurrentSegment { first_row: 0, len, slot: 0 };
    let recurrence = Recurrence { segments: &[segment], emits: &[] };
    let (expected, expected_state) = case.run(Form::Sequential, recurrence);
    let (found, state) = case.run(Form::Chunked, recurrence);
    let expected = &expected[..len * case.width()];
    let name = format!("{name} length {len}");
    compare(&name, &found, expected, &sizes_of_outputs(case, expected), TOLERANCE);
    let head = case.shape.key_dim * case.shape.value_dim;
    let sizes = largest_of_runs(&expected_state, head);
    compare(&format!("{name} state"), &state, &expected_state, &sizes, TOLERANCE);
}

/// For each output the largest of its head in its 64 rows.
fn sizes_of_outputs(case: &Case, out: &[f32]) -> Vec<f32> {
    let (width, dim) = (case.width(), case.shape.value_dim);
    let mut sizes = Vec::new();
    for rows in out.chunks(64 * width) {
        let mut heads = vec![0.0_f32; case.shape.value_heads];
        for (index, value) in rows.iter().enumerate() {
            let head = &mut heads[index % width / dim];
            *head = head.max(value.abs());
        }
        sizes.extend((0..rows.len()).map(|index| heads[index % width / dim]));
    }
    sizes
}

#[test]
fn both_forms_agree_over_every_short_length() {
    for (index, rate) in RATES.into_iter().enumerate() {
        let case = Case::new(shape([1, 2, 16, 24], 1, KeyHeads::Grouped), 200, rate);
        for len in 1..=200 {
            compare_forms(&format!("rate {rate}"), &case, len);
        }
        let wide = Case::new(shape([1, 1, 128, 128], 1, KeyHeads::Grouped), 200, rate);
        for len in [1, 63, 64, 65, 129 + index, 200] {
            compare_forms(&format!("wide, rate {rate}"), &wide, len);
        }
    }
}

#[test]
fn both_forms_agree_over_a_long_sequence() {
    for rate in RATES {
        let case = Case::new(shape([1, 2, 32, 32], 1, KeyHeads::Grouped), 4096, rate);
        for isa in Isa::available() {
            isa.with(|| compare_forms(&format!("{isa}, rate {rate}"), &case, 4096));
        }
    }
}

#[test]
fn both_forms_agree_where_single_tokens_forget_everything() {
    let mut case = Case::new(shape([1, 2, 16, 16], 1, KeyHeads::Grouped), 200, -1.0);
    for (token, a) in case.a.chunks_exact_mut(2).enumerate() {
        // Among decays that are nearly 1, some that underflow and one that is minus infinity.
        a.fill(-12.0);
        match token {
            100 => a.fill(f32::INFINITY),
            _ if token % 17 == 5 => a.fill(1e6),
            _ => (),
        }
    }
    compare_forms("mixed decays", &case, 200);
}

#[test]
fn both_forms_agree_on_keys_that_repeat() {
    let mut case = Case::new(shape([1, 1, 16, 16], 1, KeyHeads::Grouped), 300, -1e-4);
    let width = case.shape.qkv_width();
    let key = case.qkv[16..32].to_vec();
    for row in case.qkv.chunks_exact_mut(width) {
        row[16..32].copy_from_slice(&key);
    }
    compare_forms("equal keys", &case, 300);
}

#[test]
fn a_value_that_is_not_a_number_stays_visible() {
    let mut case = Case::new(shape([1, 1, 16, 16], 1, KeyHeads::Grouped), 4, -0.1);
    case.a[2] = f32::NAN;
    let segment = RecurrentSegment { first_row: 0, len: 4, slot: 0 };
    let recurrence = Recurrence { segments: &[segment], emits: &[] };
    for form in [Form::Sequential, Form::Chunked] {
        let (out, _) = case.run(form, recurrence);
        assert!(out[..32].iter().all(|value| value.is_finite()), "{form:?}: before");
        assert!(out[32..64].iter().all(|value| value.is_nan()), "{form:?}: after");
    }
}
