//! Sums over a part of the tokens, and how they become those over all.

use super::Lines;

/// What a run of tokens makes of a line.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part<'a> {
    /// Values, weighted relative to the largest score.
    pub(crate) values: &'a [f32],
    /// Sum of the weights.
    pub(crate) weight: f32,
    /// Largest score that is a number; minus infinity if the line sees none of the tokens.
    pub(crate) largest: f32,
}

impl Lines<'_> {
    /// The part of a line that the pages since the last end of a part made.
    pub(crate) fn sums(&self, line: usize) -> Part<'_> {
        Part {
            values: &self.sums[line * self.dim..][..self.widths.value_dim],
            weight: self.weights[line],
            largest: self.largest[line],
        }
    }

    /// All parts of a line that were ended or added.
    pub(crate) fn total(&self, line: usize) -> Part<'_> {
        Part {
            values: &self.totals[line * self.dim..][..self.widths.value_dim],
            weight: self.total_weights[line],
            largest: self.total_largest[line],
        }
    }

    /// Adds the part of every line to its total, and begins another.
    pub(crate) fn end_part(&mut self) {
        for line in 0..self.count {
            let values = &self.sums[line * self.dim..][..self.dim];
            let part = Part { values, weight: self.weights[line], largest: self.largest[line] };
            add(
                &mut self.totals[line * self.dim..][..self.dim],
                &mut self.total_weights[line],
                &mut self.total_largest[line],
                part,
            );
        }
        self.sums.fill(0.0);
        self.weights.fill(0.0);
        self.largest.fill(f32::NEG_INFINITY);
    }

    /// Adds a part that was made elsewhere to the total of a line.
    pub(crate) fn add_part(&mut self, line: usize, part: Part<'_>) {
        add(
            &mut self.totals[line * self.dim..][..self.widths.value_dim],
            &mut self.total_weights[line],
            &mut self.total_largest[line],
            part,
        );
    }
}

/// Adds a part to a total. One that sees nothing changes no bit of it; the first one is copied. One
/// whose scores are not numbers has a weight that is none.
fn add(totals: &mut [f32], weight: &mut f32, largest: &mut f32, part: Part<'_>) {
    if part.largest == f32::NEG_INFINITY && part.weight == 0.0 {
        return;
    }
    let most = largest.max(part.largest);
    let (before, now) = ((*largest - most).exp(), (part.largest - most).exp());
    for (total, value) in totals.iter_mut().zip(part.values) {
        *total = *total * before + value * now;
    }
    *weight = *weight * before + part.weight * now;
    *largest = most;
}
