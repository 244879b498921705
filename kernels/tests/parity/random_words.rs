//! Rows of the table of `random_words`.

use candle_core::{DType, Tensor};
use sconce_kernels::random_words::{random_words, reference};

use crate::common::{Backend, device};

#[test]
fn random_words_match_their_reference() {
    for len in [1_usize, 31, 256, 1000] {
        for seed in [0, 7, 0xffff_fff0, 0x1234_5678_9abc_def0] {
            let expected: Vec<u32> = (0..len as u32).map(|i| reference::word(i, seed)).collect();
            for backend in Backend::all() {
                let all = Tensor::full(7_u32, len + 1, &device()).unwrap();
                let out = all.narrow(0, 0, len).unwrap();
                backend.with(|| random_words(&out, seed)).unwrap();
                let found: Vec<u32> = all.to_vec1().unwrap();
                assert_eq!(found[..len], expected, "{backend} {len} {seed}");
                assert_eq!(found[len], 7, "{backend} {len}: wrote beyond the end");
            }
        }
    }
}

#[test]
fn words_of_a_sequence_differ_and_those_of_another_seed_too() {
    let words = |seed| (0..4096).map(move |index| reference::word(index, seed));
    let mut all: Vec<u32> = words(1).chain(words(1 << 32)).chain(words(4096)).collect();
    let ones: u32 = all.iter().map(|word| word.count_ones()).sum();
    let expected = 16 * all.len() as u32;
    assert!(ones.abs_diff(expected) < expected / 100, "{ones} bits are set");
    all.sort_unstable();
    all.dedup();
    // Words of 32 bits: of as many, a few come twice.
    assert!(all.len() > 3 * 4096 - 16, "{} words differ", all.len());
}

#[test]
fn numbers_that_are_no_words_are_refused() {
    for backend in Backend::all() {
        let wrong = Tensor::zeros(8, DType::F32, &device()).unwrap();
        assert!(backend.with(|| random_words(&wrong, 1)).is_err(), "{backend}");
        let turned = Tensor::zeros((2, 8), DType::U32, &device()).unwrap().t().unwrap();
        assert!(backend.with(|| random_words(&turned, 1)).is_err(), "{backend}");
    }
}
