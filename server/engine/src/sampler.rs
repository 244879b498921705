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

use sconce_models::{Draw, TopRow};

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
        let likeliest = Likeliest::Row { row, selected: &mut self.top };
        // Of a whole row every token is known.
        Ok(draw_token(likeliest, sampling, weights, uniform).unwrap_or(best))
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

/// How a device draws the token that [`Sampler::sample`] would; none where it needs the history or a
/// bias, which only the host has.
pub(crate) fn device_draw(
    sampling: &Sampling,
    history: &[u32],
    draw: (u64, usize),
) -> Option<Draw> {
    let &Sampling { temperature, top_k, top_p, min_p, .. } = sampling;
    let uniform = random::uniform(draw.0, draw.1 as u64);
    let draw = Draw { temperature, top_k, top_p, min_p, uniform };
    (!Penalties::change(sampling, history)).then_some(draw)
}

/// Draws from the largest logits of a row alone what [`Sampler::sample`] draws from the row, but for the
/// rounding of a sum; none where they do not tell. The sampling is one that [`device_draw`] is for.
///
/// # Errors
/// [`NotFinite`].
pub(crate) fn sample_top(
    top: &TopRow<'_>,
    vocab_size: usize,
    sampling: &Sampling,
    draw: (u64, usize),
) -> Result<Option<u32>, NotFinite> {
    if !top.sums[0].is_finite() {
        return Err(NotFinite);
    }
    if sampling.temperature == 0.0 {
        return Ok(top.ids.first().copied());
    }
    let uniform = random::uniform(draw.0, draw.1 as u64);
    let weights = Weights { max: top.values[0], temperature: sampling.temperature };
    let likeliest = Likeliest::Top { top, vocab_size };
    Ok(draw_token(likeliest, sampling, weights, uniform))
}

/// [`Sampler::logprobs`] from the largest logits of a row alone; none where they are too few.
pub(crate) fn top_logprobs(top: &TopRow<'_>, chosen: u32, count: usize) -> Option<TokenLogprobs> {
    let log_total = f64::from(top.values[0]) + f64::from(top.sums[0]).ln();
    let logprob = |logit: f32| (f64::from(logit) - log_total) as f32;
    let place = top.ids.iter().position(|id| *id == chosen)?;
    if count > top.ids.len() {
        return None;
    }
    let likeliest = top.ids.iter().zip(top.values).take(count);
    Some(TokenLogprobs {
        logprob: logprob(top.values[place]),
        top: likeliest.map(|(id, logit)| (*id, logprob(*logit))).collect(),
    })
}

/// The tokens of a row in order of likelihood.
enum Likeliest<'a> {
    /// Selected from the row as far as they are asked for.
    Row { row: &'a [f32], selected: &'a mut Vec<Candidate> },
    /// The first ones alone.
    Top { top: &'a TopRow<'a>, vocab_size: usize },
}

impl Likeliest<'_> {
    /// Number of all tokens.
    fn len(&self) -> usize {
        match self {
            Self::Row { row, .. } => row.len(),
            Self::Top { vocab_size, .. } => *vocab_size,
        }
    }

    /// Readies the first `count` tokens to be asked for; false if they are not known.
    fn select(&mut self, count: usize) -> bool {
        match self {
            Self::Row { row, selected } => {
                select_top(row, count, selected);
                true
            }
            Self::Top { top, .. } => count <= top.ids.len(),
        }
    }

    /// Sum of the weights of the first `count`, which were selected, or of all tokens.
    fn total(&self, limit: Option<usize>, weights: Weights) -> f64 {
        match (self, limit) {
            (Self::Row { selected, .. }, Some(_)) => {
                selected.iter().map(|candidate| weights.of(candidate.logit)).sum()
            }
            (Self::Row { row, .. }, None) => row.iter().map(|&logit| weights.of(logit)).sum(),
            (Self::Top { top, .. }, Some(count)) => {
                top.values[..count].iter().map(|&logit| weights.of(logit)).sum()
            }
            (Self::Top { top, .. }, None) => f64::from(top.sums[1]),
        }
    }

    /// The token at `place`, which is below the length; none if it is not known.
    fn nth(&mut self, place: usize) -> Option<Candidate> {
        match self {
            Self::Row { row, selected } => {
                if place >= selected.len() {
                    select_top(row, (selected.len() * SELECTED_GROWTH).min(row.len()), selected);
                }
                selected.get(place).copied()
            }
            Self::Top { top, .. } => {
                let (id, logit) = (*top.ids.get(place)?, *top.values.get(place)?);
                Some(Candidate { logit, id })
            }
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

/// Filters and draws; none if tokens are needed that are not known. The survivors of top_k, top_p and
/// min_p are a prefix of the tokens in order of likelihood; so much of that order is made as is needed.
fn draw_token(
    mut likeliest: Likeliest<'_>,
    sampling: &Sampling,
    weights: Weights,
    uniform: f64,
) -> Option<u32> {
    let limit = Some(sampling.top_k).filter(|top_k| (1..likeliest.len()).contains(top_k));
    let survivors = limit.unwrap_or(likeliest.len());
    if !likeliest.select(limit.unwrap_or(FIRST_SELECTED.min(survivors))) && limit.is_some() {
        return None;
    }
    let total = likeliest.total(limit, weights);
    let nucleus =
        if sampling.top_p < 1.0 { f64::from(sampling.top_p) * total } else { f64::INFINITY };
    let least = f64::from(sampling.min_p);
    let filtered = sampling.top_p < 1.0 || sampling.min_p > 0.0;
    let (mut kept, mut mass) = (survivors, total);
    if filtered {
        (kept, mass) = (0, 0.0);
        while kept < survivors {
            let weight = weights.of(likeliest.nth(kept)?.logit);
            if kept > 0 && (mass >= nucleus || weight < least) {
                break;
            }
            kept += 1;
            mass += weight;
        }
    }
    let target = uniform * mass;
    let mut before = 0.0;
    for place in 0..kept {
        let candidate = likeliest.nth(place)?;
        before += weights.of(candidate.logit);
        // The last one also where rounding left the sum below the mass.
        if before > target || place + 1 == kept {
            return Some(candidate.id);
        }
    }
    None
}
