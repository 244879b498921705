//! Rows of the table of `draw_tokens`.

use candle_core::Tensor;
use sconce_kernels::draw_tokens::{
    Draw, Drawn, DrawnTokens, MARGIN, MIN_P_MIN, TEMPERATURE_MIN, reference,
};
use sconce_kernels::top_logits::{TOP_MAX, TopLogits, Wanted};

use crate::common::{Backend, Random, device, tensor};

/// Draws from rows of logits on a backend: of each row what came out, what should have, and how near
/// an edge was to it.
fn draw(
    backend: Backend,
    logits: &[f32],
    vocab: usize,
    draws: &[Option<Draw>],
    counts: &[u32],
) -> Vec<(Drawn, Drawn, f64)> {
    let (rows, held) = (draws.len(), TOP_MAX.min(vocab));
    let temperature = |draw: &Option<Draw>| draw.map_or(1.0, |draw| draw.temperature);
    let wanted: Vec<Wanted> = draws
        .iter()
        .zip(counts)
        .map(|(draw, count)| Wanted { count: (*count).max(1), temperature: temperature(draw) })
        .collect();
    let (mut top, mut drawn) = backend.with(|| {
        let top = TopLogits::new(rows + 1, vocab, held, &device()).unwrap();
        (top, DrawnTokens::new(rows + 1, &device()).unwrap())
    });
    let tensor = tensor(logits, vocab);
    backend.with(|| top.find(&tensor, &wanted)).unwrap();
    backend.with(|| drawn.draw(&top, draws, counts)).unwrap();
    let words: Vec<u32> = drawn.words.flatten_all().unwrap().to_vec1().unwrap();
    assert_eq!(words[rows], 0, "{backend}: wrote beyond the live rows");
    let row = |row: usize| {
        let Some(draw) = draws[row].filter(|_| counts[row] > 0) else {
            return (Drawn::of(words[row]), Drawn::Undrawn, f64::INFINITY);
        };
        let logits = &logits[row * vocab..][..vocab];
        let wanted = wanted[row];
        let (largest, sums) = top_logits(logits, wanted);
        let (ids, values): (Vec<u32>, Vec<f32>) = largest.into_iter().unzip();
        let top = reference::Top { values: &values, ids: &ids, sums, vocab };
        let (expected, nearest) = reference::draw(top, &draw);
        (Drawn::of(words[row]), expected, nearest)
    };
    (0..rows).map(row).collect()
}

fn top_logits(logits: &[f32], wanted: Wanted) -> (Vec<(u32, f32)>, [f32; 2]) {
    let count = wanted.count as usize;
    sconce_kernels::top_logits::reference::find(logits, count, wanted.temperature)
}

/// Draws of all kinds, with a third of the settings of each row off.
fn draws(rows: usize, random: &mut Random) -> Vec<Option<Draw>> {
    let mut part = || f32::midpoint(random.numbers(1)[0], 1.0);
    (0..rows)
        .map(|row| {
            let kind = (part() * 27.0) as usize;
            Some(Draw {
                temperature: if row % 8 == 7 { 0.0 } else { 0.05 + 2.0 * part() },
                top_k: if kind.is_multiple_of(3) { 0 } else { 1 + (part() * 70.0) as usize },
                top_p: if (kind / 3).is_multiple_of(3) { 1.0 } else { part() },
                min_p: if kind / 9 == 0 { 0.0 } else { 0.4 * part() * part() },
                uniform: f64::from(part()).min(0.999_999),
            })
        })
        .collect()
}

#[test]
fn draw_tokens_matches_its_reference() {
    for (vocab, rows) in [(1, 3), (7, 40), (64, 60), (300, 120), (5000, 24)] {
        let mut random = Random::new(vocab as u64 + 11);
        let logits: Vec<f32> = random.numbers(rows * vocab).iter().map(|x| x * 6.0).collect();
        let draws = draws(rows, &mut random);
        let held = TOP_MAX.min(vocab);
        let counts: Vec<u32> =
            draws.iter().map(|draw| draw.unwrap().looks_at(held) as u32).collect();
        for backend in Backend::all() {
            let mut tokens = 0;
            for (row, (found, expected, nearest)) in
                draw(backend, &logits, vocab, &draws, &counts).into_iter().enumerate()
            {
                let case = format!("{backend} {vocab}, row {row}: {:?}, {nearest}", draws[row]);
                // Between twice the margin and half of it, arithmetic may see an edge near or not.
                if nearest > 2.0 * f64::from(MARGIN) {
                    assert_eq!(found, expected, "{case}");
                } else {
                    assert!([expected, Drawn::Undrawn].contains(&found), "{case}: {found:?}");
                    assert!(nearest > f64::from(MARGIN) / 2.0 || found == Drawn::Undrawn, "{case}");
                }
                tokens += usize::from(matches!(found, Drawn::Token(_)));
            }
            assert!(tokens * 3 > rows, "{backend} {vocab}: {tokens} of {rows} rows were drawn");
        }
    }
}

/// A draw from four weights of 1, 1/2, 1/4 and 1/8 after one of 0.
fn from_halves(backend: Backend, draw_of: Draw) -> Drawn {
    let half = 0.5_f32.ln();
    let logits = [-90.0, 0.0, half, 2.0 * half, 3.0 * half];
    draw(backend, &logits, 5, &[Some(draw_of)], &[5])[0].0
}

#[test]
fn each_filter_keeps_what_it_says() {
    let whole = Draw { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, uniform: 0.0 };
    let last = Draw { uniform: 0.999, ..whole };
    let cases = [
        (whole, 1),
        (Draw { uniform: 0.53, ..whole }, 1),
        (Draw { uniform: 0.54, ..whole }, 2),
        (last, 4),
        (Draw { top_k: 3, ..last }, 3),
        (Draw { top_p: 0.79, ..last }, 2),
        (Draw { top_p: 0.81, ..last }, 3),
        (Draw { min_p: 0.24, ..last }, 3),
        (Draw { min_p: 0.26, ..last }, 2),
        (Draw { top_k: 3, top_p: 0.86, ..last }, 3),
        (Draw { top_k: 3, top_p: 0.85, min_p: 0.6, ..last }, 1),
        // The weights are 1, 1/4, 1/16 and 1/64.
        (Draw { temperature: 0.5, uniform: 0.76, ..whole }, 2),
        (Draw::GREEDY, 1),
    ];
    for backend in Backend::all() {
        for (draw, token) in cases {
            assert_eq!(from_halves(backend, draw), Drawn::Token(token), "{backend} {draw:?}");
        }
    }
}

#[test]
fn what_an_edge_decides_and_what_lies_deeper_is_left_undrawn() {
    let whole = Draw { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, uniform: 0.5 };
    for backend in Backend::all() {
        let edges = [
            // After the first of 1.875.
            Draw { uniform: 1.0 / 1.875, ..whole },
            Draw { top_p: 0.8, ..whole },
            Draw { min_p: 0.25, ..whole },
            Draw { temperature: TEMPERATURE_MIN / 2.0, ..whole },
            Draw { min_p: MIN_P_MIN / 2.0, ..whole },
        ];
        for draw in edges {
            assert_eq!(from_halves(backend, draw), Drawn::Undrawn, "{backend} {draw:?}");
        }
        // Of a flat row the largest that are known are too few, unless the draw is among them.
        let logits = [0.0; 4 * 300];
        let draws = [0.1, 0.5].map(|uniform| Some(Draw { uniform, ..whole }));
        let limited = Draw { top_k: 40, ..whole };
        let draws = [draws[0], draws[1], Some(limited), Some(limited)];
        let found = draw(backend, &logits, 300, &draws, &[64, 64, 40, 39]);
        let found: Vec<_> = found.into_iter().map(|(found, ..)| found).collect();
        // The edge after twenty of forty is the draw.
        let expected = [Drawn::Token(30), Drawn::Undrawn, Drawn::Undrawn, Drawn::Undrawn];
        assert_eq!(found[1..], expected[1..], "{backend}");
        // So it is at a tenth of 300.
        assert_eq!(found[0], Drawn::Undrawn, "{backend}");
        let between =
            [Some(Draw { uniform: 0.1017, ..whole }), Some(Draw { uniform: 0.51, ..limited })];
        let found = draw(backend, &logits[..600], 300, &between, &[64, 40]);
        assert_eq!([found[0].0, found[1].0], [Drawn::Token(30), Drawn::Token(20)], "{backend}");
    }
}

#[test]
fn rows_without_a_draw_and_logits_that_are_not_finite_are_told() {
    let mut logits = [0.5_f32; 4 * 100];
    logits[150] = f32::NAN;
    logits[299] = f32::NEG_INFINITY;
    logits[17] = 3.0;
    logits[333] = 9.0;
    let draw_of = Some(Draw { temperature: 0.7, ..Draw::GREEDY });
    for backend in Backend::all() {
        let draws = [Some(Draw::GREEDY), draw_of, Some(Draw::GREEDY), None];
        let found = draw(backend, &logits, 100, &draws, &[1, 64, 1, 0]);
        let found: Vec<_> = found.into_iter().map(|(found, ..)| found).collect();
        let expected = [Drawn::Token(17), Drawn::NotFinite, Drawn::NotFinite, Drawn::Undrawn];
        assert_eq!(found, expected, "{backend}");
    }
}

#[test]
fn rows_and_counts_that_do_not_fit_are_refused() {
    let mut top = TopLogits::new(2, 8, 2, &device()).unwrap();
    let wanted = [Wanted { count: 2, temperature: 1.0 }; 2];
    let logits: Tensor = tensor(&[0.0; 16], 8);
    top.find(&logits, &wanted).unwrap();
    let mut drawn = DrawnTokens::new(1, &device()).unwrap();
    let greedy = Some(Draw::GREEDY);
    let mut said = |draws: &[Option<Draw>], counts: &[u32]| {
        drawn.draw(&top, draws, counts).unwrap_err().to_string()
    };
    assert_eq!(said(&[greedy; 2], &[1; 2]), "draw_tokens: draws must be at most 1, found 2");
    assert_eq!(said(&[greedy], &[3]), "draw_tokens: counts must be at most 2, found 3");
    assert!(said(&[greedy], &[]).contains("counts"), "{}", said(&[greedy], &[]));
    drawn.draw(&top, &[greedy], &[1]).unwrap();
}
