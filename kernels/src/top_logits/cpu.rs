//! `top_logits` on the CPU: the kept logits of a row in a sorted list that few logits enter.

use super::{Found, Wanted};
use crate::pool::{Parts, Pool};

pub(super) fn find(found: Found<'_>, logits: &[f32], vocab: usize, wanted: &[Wanted]) {
    let Found { values, ids, sums, top } = found;
    let (values, ids, sums) = (Parts::new(values), Parts::new(ids), Parts::new(sums));
    let task = |row: usize| {
        // SAFETY: each row comes once, and rows do not overlap.
        let (values, ids, sums) = unsafe {
            (values.part(row * top, top), ids.part(row * top, top), sums.part(row * 2, 2))
        };
        let logits = &logits[row * vocab..][..vocab];
        let Wanted { count, temperature } = wanted[row];
        largest(logits, &mut values[..count as usize], &mut ids[..count as usize]);
        let temperature = if temperature > 0.0 { temperature } else { 1.0 };
        sums[0] = sum(logits, values[0], 1.0);
        sums[1] = if temperature == 1.0 { sums[0] } else { sum(logits, values[0], temperature) };
    };
    Pool::current(|pool| pool.run(wanted.len(), task));
}

/// The largest logits of a row, the largest first and of equal ones the first.
fn largest(row: &[f32], values: &mut [f32], ids: &mut [u32]) {
    let mut count = 0;
    for (id, logit) in row.iter().enumerate() {
        if count == values.len() && !before(*logit, values[count - 1]) {
            continue;
        }
        let place = values[..count].partition_point(|kept| !before(*logit, *kept));
        count = (count + 1).min(values.len());
        values.copy_within(place..count - 1, place + 1);
        ids.copy_within(place..count - 1, place + 1);
        (values[place], ids[place]) = (*logit, id as u32);
    }
}

/// Whether `a` comes before `b`; what is not a number comes before all numbers.
fn before(a: f32, b: f32) -> bool {
    a > b || a.is_nan() && !b.is_nan()
}

/// Sum of `exp((logit - max) / temperature)`.
fn sum(row: &[f32], max: f32, temperature: f32) -> f32 {
    if row.iter().any(|logit| !logit.is_finite()) {
        return f32::NAN;
    }
    let weight = |logit: &f32| f64::from((logit - max) / temperature).exp();
    row.iter().map(weight).sum::<f64>() as f32
}
