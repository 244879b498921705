//! Penalties for tokens that were there before, and the bias of single tokens.

use crate::request::Sampling;

/// Applies penalties; keeps its buffers.
#[derive(Debug, Default)]
pub(super) struct Penalties {
    /// The row with penalties.
    row: Vec<f32>,
    /// How often each token is in the history; zero between two calls.
    counts: Vec<u32>,
    /// The tokens of the history, each once.
    seen: Vec<u32>,
}

impl Penalties {
    /// `logits` with repeat penalty, then presence and frequency penalty over the last
    /// `repeat_last_n` tokens of `history`, then the bias. Stays finite.
    pub(super) fn apply<'a>(
        &'a mut self,
        logits: &'a [f32],
        sampling: &Sampling,
        history: &[u32],
    ) -> &'a [f32] {
        if !Self::change(sampling, history) {
            return logits;
        }
        let history = Self::window(sampling, history);
        self.row.clear();
        self.row.extend_from_slice(logits);
        self.count(history, logits.len());
        for &id in &self.seen {
            let count = std::mem::take(&mut self.counts[id as usize]);
            let logit = &mut self.row[id as usize];
            let repeated = if *logit < 0.0 {
                *logit * sampling.repeat_penalty
            } else {
                *logit / sampling.repeat_penalty
            };
            let often = sampling.frequency_penalty * count as f32;
            *logit = clamp(clamp(repeated) - sampling.presence_penalty - often);
        }
        for &(id, bias) in &sampling.logit_bias {
            let logit = &mut self.row[id as usize];
            *logit = clamp(*logit + bias);
        }
        &self.row
    }

    /// Whether there is anything to apply.
    pub(super) fn change(sampling: &Sampling, history: &[u32]) -> bool {
        !Self::window(sampling, history).is_empty() || !sampling.logit_bias.is_empty()
    }

    /// The tokens that are penalised.
    fn window<'h>(sampling: &Sampling, history: &'h [u32]) -> &'h [u32] {
        let penalised = sampling.repeat_penalty != 1.0
            || sampling.presence_penalty != 0.0
            || sampling.frequency_penalty != 0.0;
        let from = history.len().saturating_sub(sampling.repeat_last_n);
        if penalised { &history[from..] } else { &[] }
    }

    /// Room of the buffers, for the test that they grow once.
    #[cfg(test)]
    pub(super) fn capacities(&self) -> [usize; 3] {
        [self.row.capacity(), self.counts.capacity(), self.seen.capacity()]
    }

    fn count(&mut self, history: &[u32], vocab_size: usize) {
        self.seen.clear();
        // Rows of several models may differ in length; what is past one stays zero.
        if self.counts.len() < vocab_size {
            self.counts.resize(vocab_size, 0);
        }
        for &id in history {
            let count = &mut self.counts[id as usize];
            if *count == 0 {
                self.seen.push(id);
            }
            *count += 1;
        }
    }
}

/// A penalty may overflow; the largest finite number is far enough.
fn clamp(logit: f32) -> f32 {
    logit.clamp(f32::MIN, f32::MAX)
}
