//! The sampler against a slow twin that sorts everything, against the definition of each option, and
//! against the distribution it is meant to draw from.

use proptest::prelude::*;
use sconce_kernels::draw_tokens::reference::{self, Top};
use sconce_models::Drawn;

use super::*;

/// Penalties and bias, one token after the other.
fn penalised(logits: &[f32], sampling: &Sampling, history: &[u32]) -> Vec<f32> {
    let window = &history[history.len().saturating_sub(sampling.repeat_last_n)..];
    let mut row = logits.to_vec();
    for (id, logit) in row.iter_mut().enumerate() {
        let count = window.iter().filter(|&&seen| seen as usize == id).count();
        if count > 0 {
            *logit = if *logit < 0.0 {
                *logit * sampling.repeat_penalty
            } else {
                *logit / sampling.repeat_penalty
            };
            *logit = *logit - sampling.presence_penalty - sampling.frequency_penalty * count as f32;
        }
        for &(biased, bias) in &sampling.logit_bias {
            if biased as usize == id {
                *logit += bias;
            }
        }
    }
    row
}

/// What survives the filters, likeliest first, with its weight.
fn survivors(row: &[f32], sampling: &Sampling) -> Vec<(u32, f64)> {
    let mut order: Vec<u32> = (0..row.len() as u32).collect();
    order.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]).then(a.cmp(&b)));
    if sampling.top_k > 0 {
        order.truncate(sampling.top_k);
    }
    let max = f64::from(row[order[0] as usize]);
    let weight =
        |id: u32| ((f64::from(row[id as usize]) - max) / f64::from(sampling.temperature)).exp();
    let mut kept: Vec<(u32, f64)> = order.iter().map(|&id| (id, weight(id))).collect();
    let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
    if sampling.top_p < 1.0 {
        let mut before = 0.0;
        let mut count = 0;
        for (_, weight) in &kept {
            if count > 0 && before / total >= f64::from(sampling.top_p) {
                break;
            }
            before += weight;
            count += 1;
        }
        kept.truncate(count);
    }
    kept.retain(|(_, weight)| *weight >= f64::from(sampling.min_p));
    kept
}

fn naive(logits: &[f32], sampling: &Sampling, history: &[u32], draw: (u64, usize)) -> u32 {
    let row = penalised(logits, sampling, history);
    if sampling.temperature == 0.0 {
        let best = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        return row.iter().position(|&logit| logit == best).unwrap() as u32;
    }
    let kept = survivors(&row, sampling);
    let mass: f64 = kept.iter().map(|(_, weight)| weight).sum();
    let target = random::uniform(draw.0, draw.1 as u64) * mass;
    let mut before = 0.0;
    for (id, weight) in &kept {
        before += weight;
        if before > target {
            return *id;
        }
    }
    kept.last().unwrap().0
}

fn any_sampling(vocab: u32) -> impl Strategy<Value = Sampling> {
    let filters = (
        prop_oneof![Just(0.0_f32), 0.1_f32..4.0],
        prop_oneof![Just(1.0_f32), 0.01_f32..1.0],
        prop_oneof![Just(0_usize), 1..(vocab as usize + 10)],
        prop_oneof![Just(0.0_f32), 0.0_f32..=1.0],
    );
    let penalties = (
        prop_oneof![Just(1.0_f32), 0.5_f32..2.0],
        prop_oneof![Just(0.0_f32), -2.0_f32..2.0],
        prop_oneof![Just(0.0_f32), -1.0_f32..1.0],
        prop_oneof![Just(0_usize), Just(usize::MAX), 1..20_usize],
        prop::collection::vec((0..vocab, -5.0_f32..5.0), 0..4),
    );
    (filters, penalties).prop_map(
        |((temperature, top_p, top_k, min_p), (repeat, presence, frequency, last_n, bias))| {
            Sampling {
                temperature,
                top_p,
                top_k,
                min_p,
                repeat_penalty: repeat,
                presence_penalty: presence,
                frequency_penalty: frequency,
                repeat_last_n: last_n,
                seed: None,
                logit_bias: bias,
            }
        },
    )
}

/// Rows with many equal logits, so that ties are met.
fn any_row() -> impl Strategy<Value = Vec<f32>> {
    prop_oneof![
        prop::collection::vec(-8.0_f32..8.0, 40),
        prop::collection::vec((-3_i8..3).prop_map(f32::from), 40),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        cases: 2000,
        ..ProptestConfig::default()
    })]

    #[test]
    fn it_draws_what_the_slow_twin_draws(
        row in any_row(),
        sampling in any_sampling(40),
        history in prop::collection::vec(0..40_u32, 0..30),
        draw in (any::<u64>(), 0..1000_usize),
    ) {
        let mut sampler = Sampler::default();
        let drawn = sampler.sample(&row, &sampling, &history, draw).unwrap();
        prop_assert_eq!(drawn, naive(&row, &sampling, &history, draw));
        // The buffers of one draw must not show in the next.
        let again = sampler.sample(&row, &sampling, &history, draw).unwrap();
        prop_assert_eq!(drawn, again);
    }

    #[test]
    fn selection_is_the_head_of_the_sorted_row(row in any_row(), count in 0..60_usize) {
        let mut sorted: Vec<u32> = (0..row.len() as u32).collect();
        sorted.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]).then(a.cmp(&b)));
        sorted.truncate(count);
        let mut top = Vec::new();
        select_top(&row, count, &mut top);
        prop_assert_eq!(top.iter().map(|one| one.id).collect::<Vec<_>>(), sorted);
    }
}

/// A row of a real size, with a long flat tail.
fn large_row() -> Vec<f32> {
    (0..150_000_u64).map(|id| (random::uniform(7, id) * 6.0) as f32).collect()
}

#[test]
fn it_draws_what_the_slow_twin_draws_from_a_large_flat_row() {
    let row = large_row();
    let mut sampler = Sampler::default();
    for (temperature, top_p, top_k, min_p) in [
        (1.0, 1.0, 0, 0.0),
        (1.0, 0.9, 0, 0.0),
        (2.0, 0.999, 0, 0.05),
        (0.7, 0.95, 5000, 0.0),
        (1.0, 1.0, 40, 0.0),
    ] {
        let sampling = Sampling { temperature, top_p, top_k, min_p, ..Sampling::default() };
        for index in 0..3 {
            let draw = (1, index);
            let drawn = sampler.sample(&row, &sampling, &[], draw).unwrap();
            assert_eq!(drawn, naive(&row, &sampling, &[], draw), "{sampling:?}");
        }
    }
}

#[test]
fn buffers_grow_once() {
    let row = large_row();
    let mut sampler = Sampler::default();
    let sampling = Sampling { top_k: 40, presence_penalty: 0.1, ..Sampling::default() };
    let sizes = |sampler: &mut Sampler, index| {
        sampler.sample(&row, &sampling, &[1, 2, 3], (1, index)).unwrap();
        (sampler.top.capacity(), sampler.penalties.capacities())
    };
    let first = sizes(&mut sampler, 0);
    for index in 1..20 {
        assert_eq!(sizes(&mut sampler, index), first);
    }
}

#[test]
fn draws_follow_the_distribution() {
    const DRAWS: usize = 40_000;
    let row = [2.0, 1.0, 0.0, -1.0, 0.5, -3.0];
    for sampling in [
        Sampling::default(),
        Sampling { temperature: 2.0, ..Sampling::default() },
        Sampling { top_k: 3, ..Sampling::default() },
        Sampling { top_p: 0.7, ..Sampling::default() },
        Sampling { min_p: 0.2, ..Sampling::default() },
    ] {
        let mut sampler = Sampler::default();
        let mut counts = [0_usize; 6];
        for index in 0..DRAWS {
            counts[sampler.sample(&row, &sampling, &[], (42, index)).unwrap() as usize] += 1;
        }
        let kept = survivors(&row, &sampling);
        let mass: f64 = kept.iter().map(|(_, weight)| weight).sum();
        let mut chi_squared = 0.0;
        for (id, weight) in &kept {
            let due = weight / mass * DRAWS as f64;
            chi_squared += (counts[*id as usize] as f64 - due).powi(2) / due;
        }
        assert_eq!(kept.iter().map(|(id, _)| counts[*id as usize]).sum::<usize>(), DRAWS);
        // 99.9 % quantile of chi squared with five degrees of freedom; the seed is fixed.
        assert!(chi_squared < 20.5, "{chi_squared} for {sampling:?}: {counts:?}");
    }
}

#[test]
fn temperature_zero_takes_the_lowest_of_the_likeliest() {
    let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
    let mut sampler = Sampler::default();
    assert_eq!(sampler.sample(&[0.0, 3.0, 3.0], &sampling, &[], (0, 0)), Ok(1));
    assert_eq!(sampler.sample(&[-0.0, 0.0], &sampling, &[], (0, 0)), Ok(0));
}

#[test]
fn penalties_work_on_raw_logits_in_their_window() {
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    let mut sampler = Sampler::default();
    let mut best = |row: &[f32], sampling: &Sampling, history: &[u32]| {
        sampler.sample(row, sampling, history, (0, 0)).unwrap()
    };
    let repeat = Sampling { repeat_penalty: 2.0, ..greedy.clone() };
    assert_eq!(best(&[3.0, 2.0], &repeat, &[0]), 1, "positive logits are divided");
    assert_eq!(best(&[-1.0, -1.5], &repeat, &[0, 0]), 1, "negative logits are multiplied");
    assert_eq!(best(&[3.0, 1.0], &repeat, &[0, 0, 0]), 0, "and only once");
    let last = Sampling { repeat_last_n: 1, ..repeat.clone() };
    assert_eq!(best(&[3.0, 2.0], &last, &[0, 1]), 0, "what left the window is free");
    let none = Sampling { repeat_last_n: 0, ..repeat };
    assert_eq!(best(&[3.0, 2.0], &none, &[0]), 0);
    let presence = Sampling { presence_penalty: 0.9, ..greedy.clone() };
    assert_eq!(best(&[3.0, 2.0], &presence, &[0, 0, 0]), 0, "presence counts once");
    let frequency = Sampling { frequency_penalty: 0.4, ..greedy.clone() };
    assert_eq!(best(&[3.0, 2.0], &frequency, &[0, 0]), 0);
    assert_eq!(best(&[3.0, 2.0], &frequency, &[0, 0, 0]), 1, "frequency counts each");
    let bias = Sampling { logit_bias: vec![(1, 0.6), (1, 0.6)], ..greedy };
    assert_eq!(best(&[3.0, 2.0], &bias, &[]), 1, "biases add up");
}

#[test]
fn extreme_options_stay_finite() {
    let mut sampler = Sampler::default();
    let sampling = Sampling {
        temperature: f32::MIN_POSITIVE,
        repeat_penalty: f32::MIN_POSITIVE,
        presence_penalty: f32::MAX,
        logit_bias: vec![(0, f32::MAX), (1, f32::MIN), (1, f32::MIN)],
        ..Sampling::default()
    };
    let row = [f32::MAX, f32::MIN, 1.0];
    assert_eq!(sampler.sample(&row, &sampling, &[0, 1, 2], (3, 3)), Ok(0));
    let hot = Sampling { temperature: f32::MAX, ..Sampling::default() };
    assert!(sampler.sample(&row, &hot, &[], (3, 3)).is_ok());
}

#[test]
fn what_is_not_finite_is_refused() {
    let mut sampler = Sampler::default();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let row = [0.0, bad, 1.0];
        assert_eq!(sampler.sample(&row, &Sampling::default(), &[], (0, 0)), Err(NotFinite));
    }
}

#[test]
fn logprobs_sum_to_one_and_ties_go_to_the_lower_id() {
    let mut sampler = Sampler::default();
    let row = [1.0, 2.0, 2.0, -1.0];
    let logprobs = sampler.logprobs(&row, 3, 4);
    let ids: Vec<_> = logprobs.top.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, [1, 2, 0, 3]);
    assert_eq!(logprobs.logprob, logprobs.top[3].1);
    let sum: f32 = logprobs.top.iter().map(|(_, logprob)| logprob.exp()).sum();
    assert!((sum - 1.0).abs() < 1e-6);
    assert_eq!(sampler.logprobs(&row, 0, 0).top, []);
    assert_eq!(sampler.logprobs(&row, 0, 100).top.len(), 4);
}

/// The largest logits of a row, as a device finds them.
fn top_of(logits: &[f32], count: usize, temperature: f32) -> (Vec<f32>, Vec<u32>, [f32; 2]) {
    let mut top = Vec::new();
    select_top(logits, count, &mut top);
    let max = top[0].logit;
    let sum = |temperature: f32| {
        let weights = Weights { max, temperature };
        logits.iter().map(|&logit| weights.of(logit)).sum::<f64>() as f32
    };
    let by = if temperature > 0.0 { temperature } else { 1.0 };
    let (values, ids) = top.iter().map(|top| (top.logit, top.id)).unzip();
    (values, ids, [sum(1.0), sum(by)])
}

proptest! {
    // The same cases in every run: a draw at the edge of two tokens, whose masses a device knows to
    // seven digits, may fall to either.
    #![proptest_config(ProptestConfig {
        rng_seed: proptest::test_runner::RngSeed::Fixed(6),
        ..ProptestConfig::with_cases(2000)
    })]

    #[test]
    fn the_largest_logits_give_the_token_of_the_whole_row_or_none(
        logits in proptest::collection::vec(-8.0_f32..8.0, 2..60),
        count in 1_usize..20,
        temperature in prop_oneof![Just(0.0_f32), 0.05_f32..3.0],
        top_k in 0_usize..30,
        top_p in prop_oneof![Just(1.0_f32), 0.05_f32..1.0],
        min_p in prop_oneof![Just(0.0_f32), 0.0_f32..0.5],
        seed in any::<u64>(),
    ) {
        let sampling = Sampling { temperature, top_k, top_p, min_p, ..Sampling::default() };
        let count = count.min(logits.len());
        let (values, ids, sums) = top_of(&logits, count, temperature);
        let top = TopRow { values: &values, ids: &ids, sums };
        let mut sampler = Sampler::default();
        let whole = sampler.sample(&logits, &sampling, &[], (seed, 3)).unwrap();
        let found = sample_top(&top, logits.len(), &sampling, (seed, 3)).unwrap();
        prop_assert!(found.is_none_or(|found| found == whole), "{found:?} instead of {whole}");
        prop_assert!(temperature > 0.0 || found.is_some());
        prop_assert!(count < logits.len() || found.is_some());
        // No logit of the row is looked at where a few are kept by any filter.
        prop_assert!(!(1..=count).contains(&top_k) || found.is_some());
        // A device is asked for the same, and gives it where no edge is near.
        let draw = device_draw(&sampling, &[], (seed, 3)).unwrap();
        let looked_at = draw.looks_at(count);
        let largest = Top {
            values: &values[..looked_at], ids: &ids[..looked_at], sums, vocab: logits.len(),
        };
        let (drawn, nearest) = reference::draw(largest, &draw);
        let expected = found.map_or(Drawn::Undrawn, Drawn::Token);
        prop_assert!(drawn == expected || nearest < 1e-12, "{drawn:?}, {expected:?}, {nearest}");
    }
}

#[test]
fn what_needs_the_history_or_a_bias_is_not_for_a_device() {
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    let draws =
        |sampling: &Sampling, history: &[u32]| device_draw(sampling, history, (1, 0)).is_some();
    assert!(draws(&greedy, &[1]));
    let penalised = Sampling { repeat_penalty: 1.5, ..greedy.clone() };
    assert!(!draws(&penalised, &[1]));
    assert!(draws(&penalised, &[]));
    let biased = Sampling { logit_bias: vec![(0, 9.0)], ..greedy };
    assert!(!draws(&biased, &[]));
}

#[test]
fn logits_that_are_not_finite_are_seen_without_the_row() {
    let (values, ids, sums) = top_of(&[1.0, 3.0, 2.0], 2, 1.0);
    let top = TopRow { values: &values, ids: &ids, sums };
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    assert_eq!(sample_top(&top, 3, &greedy, (1, 0)), Ok(Some(1)));
    let broken = TopRow { sums: [f32::NAN; 2], ..top };
    assert_eq!(sample_top(&broken, 3, &greedy, (1, 0)), Err(NotFinite));
}

#[test]
fn logprobs_of_the_largest_logits_are_those_of_the_row() {
    let logits = [0.5, -1.0, 3.0, 2.5, 2.5, -7.0];
    let (values, ids, sums) = top_of(&logits, 4, 1.0);
    let top = TopRow { values: &values, ids: &ids, sums };
    let expected = Sampler::default().logprobs(&logits, 3, 4);
    let found = top_logprobs(&top, 3, 4).unwrap();
    assert_eq!(found.top.len(), 4);
    let all = |of: &TokenLogprobs| -> Vec<(u32, f32)> {
        of.top.iter().copied().chain([(3, of.logprob)]).collect()
    };
    for ((id, logprob), (expected_id, expected)) in all(&found).into_iter().zip(all(&expected)) {
        assert_eq!(id, expected_id);
        assert!((logprob - expected).abs() < 1e-6, "{id}: {logprob}, {expected}");
    }
    // What is not among them needs the row.
    assert!(top_logprobs(&top, 5, 1).is_none());
    assert!(top_logprobs(&top, 3, 5).is_none());
}
