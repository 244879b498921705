//! The definition of `top_logits`: a sorted row.

use std::cmp::Ordering;

/// The `top` largest of a row with their ids, and its sums.
pub fn find(row: &[f32], top: usize, temperature: f32) -> (Vec<(u32, f32)>, [f32; 2]) {
    let mut order: Vec<u32> = (0..row.len() as u32).collect();
    order.sort_by(|a, b| {
        let (a, b) = (row[*a as usize], row[*b as usize]);
        b.partial_cmp(&a).unwrap_or_else(|| match (a.is_nan(), b.is_nan()) {
            (true, false) => Ordering::Less,
            (false, true) => Ordering::Greater,
            _ => Ordering::Equal,
        })
    });
    let largest = order.iter().take(top).map(|id| (*id, row[*id as usize])).collect();
    let temperature = if temperature > 0.0 { temperature } else { 1.0 };
    let max = row[order[0] as usize];
    let sums = [1.0, temperature].map(|temperature| {
        if row.iter().any(|logit| !logit.is_finite()) {
            return f32::NAN;
        }
        let weight = |logit: &f32| f64::from((logit - max) / temperature).exp();
        row.iter().map(weight).sum::<f64>() as f32
    });
    (largest, sums)
}
