//! From a row of logits to a token, in the order of the protocol: penalties and bias on the raw
//! logits, then (temperature 0) argmax, or top_k, softmax, top_p, min_p, draw.
//!
//! Deterministic: ties go to the lower id, sums run in a fixed order in f64, and the draw depends on
//! the seed and the index of the token alone. No full sort: the likeliest tokens are selected in one
//! pass over the row, and more of them only where the mass that is asked for lies deeper.

mod penalties;
mod random;
mod select;
#[cfg(test)]
mod tests;

use crate::event::TokenLogprobs;
use crate::request::Sampling;
use penalties::Penalties;
use select::{Candidate, select_top};

/// Most alternatives a token's logprobs may list.
pub const TOP_LOGPROBS_MAX: usize = 1024;

/// How many of the likeliest tokens are looked at first, and how many times more when those do not
/// reach.
const FIRST_SELECTED: usize = 256;
const SELECTED_GROWTH: usize = 16;

/// The logits hold an infinity or a NaN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotFinite;

/// Draws tokens; keeps its buffers, so that a draw allocates nothing once they have grown.
#[derive(Debug, Default)]
pub(crate) struct Sampler {
    penalties: Penalties,
    top: Vec<Candidate>,
}

/// Unnormalised probabilities of one row: `exp((logit - max) / temperature)`.
#[derive(Debug, Clone, Copy)]
struct Weights {
    max: f32,
    temperature: f32,
}

impl Weights {
    fn of(self, logit: f32) -> f64 {
        ((f64::from(logit) - f64::from(self.max)) / f64::from(self.temperature)).exp()
    }
}

impl Sampler {
    /// The token that follows `history` (prompt and completion), drawn from `logits` `[vocab_size]`.
    /// `draw` is the seed and the index of the token in its completion.
    ///
    /// # Errors
    /// [`NotFinite`].
    pub(crate) fn sample(
        &mut self,
        logits: &[f32],
        sampling: &Sampling,
        history: &[u32],
        draw: (u64, usize),
    ) -> Result<u32, NotFinite> {
        if !is_finite(logits) {
            return Err(NotFinite);
        }
        let row = self.penalties.apply(logits, sampling, history);
        let best = argmax(row);
        if sampling.temperature == 0.0 {
            return Ok(best);
        }
        let uniform = random::uniform(draw.0, draw.1 as u64);
        let weights = Weights { max: row[best as usize], temperature: sampling.temperature };
        Ok(draw_token(row, sampling, weights, uniform, &mut self.top))
    }

    /// Logprobs of the raw `logits`: of `chosen`, and of the `count` likeliest.
    pub(crate) fn logprobs(&mut self, logits: &[f32], chosen: u32, count: usize) -> TokenLogprobs {
        let max = f64::from(logits[argmax(logits) as usize]);
        let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - max).exp()).sum();
        let log_total = max + sum.ln();
        let logprob = |logit: f32| (f64::from(logit) - log_total) as f32;
        select_top(logits, count, &mut self.top);
        TokenLogprobs {
            logprob: logprob(logits[chosen as usize]),
            top: self.top.iter().map(|top| (top.id, logprob(top.logit))).collect(),
        }
    }
}

/// Whether all logits are. Looks at a block at a time, for a loop that may stop at any element is
/// not vectorised.
fn is_finite(row: &[f32]) -> bool {
    row.chunks(1024).all(|block| block.iter().fold(true, |all, logit| all & logit.is_finite()))
}

/// The largest logit's id, the lowest of several. The row is finite.
fn argmax(row: &[f32]) -> u32 {
    /// Maxima kept side by side, so that they fill a vector register.
    const LANES: usize = 16;
    let mut maxima = [f32::NEG_INFINITY; LANES];
    let blocks = row.chunks_exact(LANES);
    for (lane, &logit) in blocks.remainder().iter().enumerate() {
        maxima[lane] = logit;
    }
    for block in blocks {
        for (max, &logit) in maxima.iter_mut().zip(block) {
            *max = if logit > *max { logit } else { *max };
        }
    }
    let max = maxima.into_iter().fold(f32::NEG_INFINITY, f32::max);
    row.iter().position(|&logit| logit == max).unwrap_or(0) as u32
}

/// Filters and draws. The survivors of top_k, top_p and min_p are a prefix of the tokens in order of
/// likelihood; so much of that order is made as is needed.
fn draw_token(
    row: &[f32],
    sampling: &Sampling,
    weights: Weights,
    uniform: f64,
    top: &mut Vec<Candidate>,
) -> u32 {
    let limited = (1..row.len()).contains(&sampling.top_k);
    let survivors = if limited { sampling.top_k } else { row.len() };
    let total: f64 = if limited {
        select_top(row, survivors, top);
        top.iter().map(|candidate| weights.of(candidate.logit)).sum()
    } else {
        select_top(row, FIRST_SELECTED.min(survivors), top);
        row.iter().map(|&logit| weights.of(logit)).sum()
    };
    let nucleus =
        if sampling.top_p < 1.0 { f64::from(sampling.top_p) * total } else { f64::INFINITY };
    let least = f64::from(sampling.min_p);
    let filtered = sampling.top_p < 1.0 || sampling.min_p > 0.0;
    let (mut kept, mut mass) = (survivors, total);
    if filtered {
        (kept, mass) = (0, 0.0);
        while let Some(candidate) = nth(row, kept, survivors, top) {
            let weight = weights.of(candidate.logit);
            if kept > 0 && (mass >= nucleus || weight < least) {
                break;
            }
            kept += 1;
            mass += weight;
        }
    }
    let target = uniform * mass;
    let (mut place, mut before) = (0, 0.0);
    while let Some(candidate) = nth(row, place, kept, top) {
        before += weights.of(candidate.logit);
        place += 1;
        // The last one also where rounding left the sum below the mass.
        if before > target || place == kept {
            return candidate.id;
        }
    }
    argmax(row)
}

/// The token at `place` in order of likelihood, if that is below `end`; selects more if needed.
fn nth(row: &[f32], place: usize, end: usize, top: &mut Vec<Candidate>) -> Option<Candidate> {
    if place >= end {
        return None;
    }
    if place >= top.len() {
        select_top(row, (top.len() * SELECTED_GROWTH).min(row.len()), top);
    }
    top.get(place).copied()
}
