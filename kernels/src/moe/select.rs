//! How a row chooses its experts. In plain f32, row by row: a few thousand operations beside the
//! millions of the experts, and the same choice on every instruction set.

use std::cell::RefCell;

use super::routing::{RouterOptions, Scoring};
use crate::pool::{Parts, Pool};

/// Logits that a task takes at least: as many as take longer to look at than a fork.
const TASK_LOGITS: usize = 4 * 1024;
/// Keeps a sum of weights from being zero, as the reference implementations do.
const LEAST_SUM: f32 = 1e-20;

thread_local! {
    /// Scores of a row's experts and of its groups; grows to the most experts this thread has seen.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Where the choices go: `[rows, choices]`, the best first.
pub(super) struct Chosen<'a> {
    pub(super) ids: &'a mut [u32],
    pub(super) weights: &'a mut [f32],
}

/// Chooses for the rows of `logits`, `[rows, experts]`.
pub(super) fn rows(
    logits: &[f32],
    experts: usize,
    correction: Option<&[f32]>,
    options: &RouterOptions,
    chosen: Chosen<'_>,
) {
    let choices = options.experts_per_token;
    let rows = logits.len() / experts;
    let per_task = TASK_LOGITS.div_ceil(experts);
    let (ids, weights) = (Parts::new(chosen.ids), Parts::new(chosen.weights));
    let task = |task: usize| {
        SCRATCH.with_borrow_mut(|scratch| {
            for row in task * per_task..rows.min((task + 1) * per_task) {
                // SAFETY: each row comes once, and rows do not overlap.
                let (ids, weights) = unsafe {
                    (ids.part(row * choices, choices), weights.part(row * choices, choices))
                };
                let logits = &logits[row * experts..][..experts];
                match options.scoring {
                    Scoring::Softmax => softmax(logits, ids, weights),
                    Scoring::Sigmoid => {
                        let correction = correction.unwrap_or_default();
                        sigmoid(logits, correction, options, scratch, ids);
                        for (weight, id) in weights.iter_mut().zip(&*ids) {
                            *weight = logistic(logits[*id as usize]);
                        }
                    }
                }
                finish(weights, options);
            }
        });
    };
    Pool::current(|pool| pool.run(rows.div_ceil(per_task), task));
}

/// Chooses by logits, which are in the order of their probabilities, and weighs by probability.
fn softmax(logits: &[f32], ids: &mut [u32], weights: &mut [f32]) {
    best(logits, |_| true, ids);
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // Not a number, if one of the logits is none.
    let sum: f32 = logits.iter().map(|logit| (logit - largest).exp()).sum();
    for (weight, id) in weights.iter_mut().zip(ids) {
        *weight = (logits[*id as usize] - largest).exp() / sum;
    }
}

/// Chooses by corrected scores, from the best groups.
fn sigmoid(
    logits: &[f32],
    correction: &[f32],
    options: &RouterOptions,
    scratch: &mut Vec<f32>,
    ids: &mut [u32],
) {
    let corrections = correction.iter().copied().chain(std::iter::repeat(0.0));
    scratch.clear();
    scratch.extend(logits.iter().zip(corrections).map(|(logit, c)| logistic(*logit) + c));
    if options.groups == 1 {
        return best(scratch, |_| true, ids);
    }
    let size = logits.len() / options.groups;
    for group in 0..options.groups {
        let mut two = [0; 2];
        let two = &mut two[..size.min(2)];
        best(&scratch[group * size..][..size], |_| true, two);
        let value = two.iter().map(|id| scratch[group * size + *id as usize]).sum();
        scratch.push(value);
    }
    let (scores, values) = scratch.split_at(logits.len());
    // A group is chosen if fewer than `groups_per_token` come before it.
    let chosen = |group: usize| {
        let before = |other: usize| match other < group {
            true => !beats(values[group], values[other]),
            false => beats(values[other], values[group]),
        };
        (0..options.groups).filter(|other| before(*other)).count() < options.groups_per_token
    };
    best(scores, |expert| chosen(expert / size), ids);
}

/// Renormalizes and scales the weights of a row.
fn finish(weights: &mut [f32], options: &RouterOptions) {
    if options.renormalize {
        let sum = weights.iter().sum::<f32>() + LEAST_SUM;
        weights.iter_mut().for_each(|weight| *weight /= sum);
    }
    weights.iter_mut().for_each(|weight| *weight *= options.scale);
}

/// Indices of the largest values that are allowed, the largest first and the lower index first among
/// equals; at least `ids.len()` must be allowed.
fn best(values: &[f32], allowed: impl Fn(usize) -> bool, ids: &mut [u32]) {
    let mut count = 0;
    for (index, value) in values.iter().enumerate() {
        let beaten = |id: &u32| beats(*value, values[*id as usize]);
        if count == ids.len() && !beaten(&ids[count - 1]) || !allowed(index) {
            continue;
        }
        let place = ids[..count].partition_point(|id| !beaten(id));
        count = (count + 1).min(ids.len());
        ids.copy_within(place..count - 1, place + 1);
        ids[place] = index as u32;
    }
}

/// Whether `a` comes before `b`; what is not a number comes before all numbers.
fn beats(a: f32, b: f32) -> bool {
    a > b || a.is_nan() && !b.is_nan()
}

fn logistic(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}
