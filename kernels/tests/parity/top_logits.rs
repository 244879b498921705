//! Rows of the table of `top_logits`.

use candle_core::Tensor;
use sconce_kernels::top_logits::{TOP_MAX, TopLogits, VOCAB_MAX, Wanted, reference};

use crate::common::{Backend, Random, device, tensor, values};

/// Largest relative error of a sum: of f32 in another order, with the powers of the backend.
const SUM_TOLERANCE: f32 = 2e-6;

/// Finds on a backend, with one row of room left, and compares all of it.
fn compare(backend: Backend, logits: &[f32], vocab: usize, top: usize, wanted: &[Wanted]) {
    let case = format!("{backend} {}x{vocab}, {top}", wanted.len());
    let mut found =
        backend.with(|| TopLogits::new(wanted.len() + 1, vocab, top, &device()).unwrap());
    let tensor = tensor(logits, vocab);
    backend.with(|| found.find(&tensor, wanted)).unwrap();
    let ids: Vec<u32> = found.ids.flatten_all().unwrap().to_vec1().unwrap();
    let (top_values, sums) = (values(&found.values), values(&found.sums));
    for (row, Wanted { count, temperature }) in wanted.iter().enumerate() {
        let (logits, count) = (&logits[row * vocab..][..vocab], *count as usize);
        let (expected, expected_sums) = reference::find(logits, count, *temperature);
        let (expected_ids, expected_values): (Vec<u32>, Vec<f32>) = expected.into_iter().unzip();
        assert_eq!(ids[row * top..][..count], expected_ids, "{case}: row {row}");
        if logits.iter().all(|logit| !logit.is_nan()) {
            assert_eq!(top_values[row * top..][..count], expected_values, "{case}: row {row}");
        }
        for (found, expected) in sums[2 * row..][..2].iter().zip(expected_sums) {
            let near = (found - expected).abs() <= expected * SUM_TOLERANCE;
            assert!(near || found.is_nan() && expected.is_nan(), "{case}: {found}, {expected}");
        }
    }
    let beyond = wanted.len() * top;
    assert!(ids[beyond..].iter().all(|id| *id == 0), "{case}: wrote beyond the live rows");
}

#[test]
fn top_logits_matches_its_reference() {
    // rows, vocab, top
    for (rows, vocab, top) in
        [(0, 8, 1), (1, 1, 1), (3, 40, 5), (2, 4096, 64), (2, 4097, 3), (1, 9001, 64)]
    {
        let mut random = Random::new(vocab as u64);
        // In quarters, so that many are equal.
        let logits: Vec<f32> = random
            .numbers(rows * vocab)
            .iter()
            .map(|number| if top > 3 { (number * 80.0).round() / 4.0 } else { number * 9.0 })
            .collect();
        // Of the first row as many as there is room for, of others fewer, of one the largest alone.
        let wanted: Vec<Wanted> = (0..rows)
            .map(|row| Wanted {
                count: (top / (row * row + 1)).max(1) as u32,
                temperature: row as f32 * 0.7,
            })
            .collect();
        for backend in Backend::all() {
            compare(backend, &logits, vocab, top, &wanted);
        }
    }
}

#[test]
fn logits_that_are_no_numbers_come_first_and_show_in_the_sums() {
    let mut logits = Random::new(5).numbers(3 * 5000);
    logits[4321] = f32::NAN;
    logits[5000 + 17] = f32::INFINITY;
    logits[10_000 + 4999] = f32::NEG_INFINITY;
    for backend in Backend::all() {
        let wanted = [(4, 1.0), (1, 0.5), (3, 2.0)];
        let wanted = wanted.map(|(count, temperature)| Wanted { count, temperature });
        compare(backend, &logits, 5000, 4, &wanted);
    }
}

#[test]
fn more_than_there_is_room_for_is_refused() {
    let device = device();
    for (vocab, top) in [(8, 0), (8, 9), (VOCAB_MAX, TOP_MAX + 1), (VOCAB_MAX + 1, 1)] {
        assert!(TopLogits::new(1, vocab, top, &device).is_err(), "{vocab} {top}");
    }
    let mut found = TopLogits::new(1, 8, 2, &device).unwrap();
    let wanted = |count| Wanted { count, temperature: 1.0 };
    let error = found.find(&tensor(&[0.0; 16], 8), &[wanted(1); 2]).unwrap_err().to_string();
    assert_eq!(error, "top_logits: wanted must be at most 1, found 2");
    for count in [0, 3] {
        let error = found.find(&tensor(&[0.0; 8], 8), &[wanted(count)]).unwrap_err().to_string();
        assert_eq!(error, format!("top_logits: count must be 1 to 2, found {count}"));
    }
    let narrow = Tensor::new(&[[0_f32; 7]], &device).unwrap();
    assert!(found.find(&narrow, &[wanted(1)]).is_err());
}
