//! The definition of routing, `expert_matmul` and `combine_experts`.

use std::cmp::Ordering;

use super::{RouterOptions, Scoring};

/// The experts that a row chooses, the best first, with their weights.
pub fn route(logits: &[f32], correction: &[f32], options: &RouterOptions) -> Vec<(usize, f32)> {
    let scores = match options.scoring {
        Scoring::Softmax => softmax(logits),
        Scoring::Sigmoid => logits.iter().map(|logit| 1.0 / (1.0 + (-logit).exp())).collect(),
    };
    // Probabilities that round to the same number are told apart by their logits.
    let mut values: Vec<f32> = match options.scoring {
        Scoring::Softmax => logits.to_vec(),
        Scoring::Sigmoid => scores.iter().zip(correction).map(|(s, c)| s + c).collect(),
    };
    if options.groups > 1 {
        let size = values.len() / options.groups;
        let sum_of_two = |group: &[f32]| -> f32 {
            order(group).into_iter().take(2).map(|index| group[index]).sum()
        };
        let groups: Vec<f32> = values.chunks(size).map(sum_of_two).collect();
        for group in order(&groups).into_iter().skip(options.groups_per_token) {
            values[group * size..(group + 1) * size].fill(f32::NEG_INFINITY);
        }
    }
    let chosen: Vec<usize> = order(&values).into_iter().take(options.experts_per_token).collect();
    let sum = match options.renormalize {
        true => chosen.iter().map(|expert| scores[*expert]).sum::<f32>() + 1e-20,
        false => 1.0,
    };
    chosen.into_iter().map(|expert| (expert, scores[expert] / sum * options.scale)).collect()
}

/// Probabilities.
fn softmax(logits: &[f32]) -> Vec<f32> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f32> = logits.iter().map(|logit| (logit - largest).exp()).collect();
    let sum: f32 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

/// Indices from the largest value to the least, the lower index first among equals; what is not a
/// number comes before all numbers.
fn order(values: &[f32]) -> Vec<usize> {
    let mut indices: Vec<usize> = (0..values.len()).collect();
    indices.sort_by(|a, b| {
        let (a, b) = (values[*a], values[*b]);
        b.partial_cmp(&a).unwrap_or_else(|| match (a.is_nan(), b.is_nan()) {
            (true, false) => Ordering::Less,
            (false, true) => Ordering::Greater,
            _ => Ordering::Equal,
        })
    });
    indices
}

/// The result of one pair: a row times the values of its expert, `[outputs, x.len()]`.
pub fn expert(x: &[f32], weight: &[f32]) -> Vec<f32> {
    let dot = |row: &[f32]| {
        let mut sum = 0.0;
        for i in 0..x.len() {
            sum += x[i] * row[i];
        }
        sum
    };
    weight.chunks(x.len()).map(dot).collect()
}

/// Adds to one row the results of its pairs, the best choice first.
pub fn combine(out: &mut [f32], pairs: &[(&[f32], f32)]) {
    for i in 0..out.len() {
        let mut sum = 0.0;
        for (y, weight) in pairs {
            sum += weight * y[i];
        }
        out[i] += sum;
    }
}
