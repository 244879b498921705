//! The chunked form of `gated_delta` against the sequential one: every short length, a long one, and
//! decays at both ends.

use sconce_kernels::{Emit, Form, KeyHeads, Recurrence, RecurrentSegment};

use crate::common::{Backend, compare, levels};
use crate::gated_delta::{Case, largest_of_runs, shape};

/// Largest difference allowed, relative to the largest output of the head in the same 64 rows (where
/// a query happens to be at right angles to all keys, nothing but rounding is left), or to the largest
/// element of the head's state.
const TOLERANCE: f32 = 1e-4;
/// Rates from a decay that is nearly 1 over a moderate one to one that underflows at once.
const RATES: [f32; 6] = [0.0, -1e-4, -0.05, -1.0, -30.0, -1e5];

/// The same on a GPU, whose tensor cores may work on operands of two bf16 parts: they have 16 bits of
/// mantissa, and products that nearly cancel show it.
const GPU_TOLERANCE: f32 = 5e-4;

/// Compares the two forms over the first `len` rows.
fn compare_forms(backend: Backend, name: &str, case: &Case, len: usize) {
    let segment = RecurrentSegment { first_row: 0, len, slot: 0 };
    let recurrence = Recurrence { segments: &[segment], emits: &[] };
    let run = |form| backend.with(|| case.run(form, recurrence));
    let (expected, expected_state) = run(Form::Sequential);
    let (found, state) = run(Form::Chunked);
    let tolerance = if backend.is_gpu() { GPU_TOLERANCE } else { TOLERANCE };
    let expected = &expected[..len * case.width()];
    let name = format!("{backend} {name} length {len}");
    compare(&name, &found, expected, &sizes_of_outputs(case, expected), tolerance);
    let head = case.shape.key_dim * case.shape.value_dim;
    let sizes = largest_of_runs(&expected_state, head);
    compare(&format!("{name} state"), &state, &expected_state, &sizes, tolerance);
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

/// The backends that are GPUs, which are emulated more slowly than a CPU computes.
fn gpus() -> impl Iterator<Item = Backend> {
    Backend::all().into_iter().filter(|backend| backend.is_gpu())
}

#[test]
fn both_forms_agree_over_every_short_length() {
    let cpu = levels().last().map(Backend::Cpu);
    for (index, rate) in RATES.into_iter().enumerate() {
        let (name, wide_name) = (format!("rate {rate}"), format!("wide, rate {rate}"));
        let case = Case::new(shape([1, 2, 16, 24], 1, KeyHeads::Grouped), 200, rate);
        for (cpu, len) in cpu.iter().flat_map(|cpu| (1..=200).map(move |len| (*cpu, len))) {
            compare_forms(cpu, &name, &case, len);
        }
        let wide = Case::new(shape([1, 1, 128, 128], 1, KeyHeads::Grouped), 200, rate);
        if let Some(cpu) = cpu {
            for len in [1, 63, 64, 65, 129 + index, 200] {
                compare_forms(cpu, &wide_name, &wide, len);
            }
        }
        for backend in gpus() {
            for len in [1, 15, 64, 65, 128 + index] {
                compare_forms(backend, &name, &case, len);
            }
            if index % 2 == 0 {
                compare_forms(backend, &wide_name, &wide, 66 + index);
            }
        }
    }
}

#[test]
fn both_forms_agree_over_a_long_sequence() {
    for rate in RATES {
        let name = format!("rate {rate}");
        let case = Case::new(shape([1, 2, 32, 32], 1, KeyHeads::Grouped), 4096, rate);
        for isa in levels() {
            compare_forms(Backend::Cpu(isa), &name, &case, 4096);
        }
        // More than the chunks that are prepared together.
        let narrow = Case::new(shape([1, 1, 8, 8], 1, KeyHeads::Grouped), 4200, rate);
        for backend in gpus() {
            compare_forms(backend, &name, &narrow, 4200);
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
    for backend in Backend::all() {
        compare_forms(backend, "mixed decays", &case, 200);
    }
}

#[test]
fn both_forms_agree_on_keys_that_repeat() {
    let mut case = Case::new(shape([1, 1, 16, 16], 1, KeyHeads::Grouped), 300, -1e-4);
    let width = case.shape.qkv_width();
    let key = case.qkv[16..32].to_vec();
    for row in case.qkv.chunks_exact_mut(width) {
        row[16..32].copy_from_slice(&key);
    }
    for backend in Backend::all() {
        compare_forms(backend, "equal keys", &case, 300);
    }
}

/// Tokens, and the one with a NaN: not among the first 16, which kernels treat on their own.
const SICK_OF: (usize, usize) = (24, 19);

/// Operands with a NaN: where it is, the token up to which it reaches, and the only column if there is
/// one.
fn sick() -> [(&'static str, Case, usize, Option<usize>); 5] {
    let (tokens, bad) = SICK_OF;
    let with = |spoil: &dyn Fn(&mut Case)| {
        let mut case = Case::new(shape([1, 1, 16, 16], 2, KeyHeads::Grouped), tokens, -0.1);
        spoil(&mut case);
        case
    };
    let row = bad * 48;
    [
        ("decay", with(&|case| case.a[bad] = f32::NAN), tokens, None),
        ("strength", with(&|case| case.b[bad] = f32::NAN), tokens, None),
        ("query", with(&|case| case.qkv[row + 3] = f32::NAN), bad + 1, None),
        ("key", with(&|case| case.qkv[row + 16 + 5] = f32::NAN), tokens, None),
        ("value", with(&|case| case.qkv[row + 32 + 7] = f32::NAN), tokens, Some(7)),
    ]
}

#[test]
fn what_is_not_a_number_stays_visible_and_reaches_nothing_before_it() {
    let (tokens, bad) = SICK_OF;
    let segment = RecurrentSegment { first_row: 0, len: tokens, slot: 0 };
    let emits = [Emit { segment: 0, offset: bad, slot: 1 }];
    let recurrence = Recurrence { segments: &[segment], emits: &emits };
    let forms = [Form::Sequential, Form::Chunked];
    for (backend, form) in Backend::all().into_iter().flat_map(|b| forms.map(|form| (b, form))) {
        for (operand, case, end, only) in sick() {
            let (out, state) = backend.with(|| case.run(form, recurrence));
            let name = format!("{backend} {form:?}, a NaN in the {operand}");
            for (token, row) in out[..tokens * 16].chunks(16).enumerate() {
                for (column, value) in row.iter().enumerate() {
                    let reached = (bad..end).contains(&token) && only.is_none_or(|c| c == column);
                    assert_eq!(value.is_nan(), reached, "{name}: token {token} column {column}");
                }
            }
            let (after, kept) = state.split_at(256);
            assert!(kept.iter().all(|value| value.is_finite()), "{name}: kept before");
            for (place, value) in after.iter().enumerate() {
                let reached = end == tokens && only.is_none_or(|c| c == place % 16);
                assert_eq!(value.is_nan(), reached, "{name}: state {place}");
            }
        }
    }
}
