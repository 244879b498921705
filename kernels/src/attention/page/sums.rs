//! Weighted sums of a page's values.

use std::ops::Range;

use super::{Lines, WIDE};
use crate::simd::{LANES, Simd};

impl Lines<'_> {
    /// Adds the weighted values of the tokens that each line sees, among those `seen` by any, to the
    /// sums of the line.
    ///
    /// # Safety
    /// The processor has the instructions of `S`; `values` are `[tokens, dim]`, of which `seen` can
    /// be read, and the lines' weights of those tokens were written.
    #[inline(always)]
    pub(super) unsafe fn sum_values<S: Simd>(
        &mut self,
        values: *const f32,
        visible: &impl Fn(usize) -> Range<usize>,
    ) {
        // SAFETY: the caller's promise; a tile takes no more lines than there are.
        unsafe {
            for_tiles!(self.sum_rows::<S>(values, visible));
        }
    }

    /// Adds the weighted values of a page's tokens to the sums of `R` lines; returns `R`.
    #[inline(always)]
    unsafe fn sum_rows<S: Simd, const R: usize>(
        &mut self,
        line: usize,
        values: *const f32,
        visible: &impl Fn(usize) -> Range<usize>,
    ) -> usize {
        let runs = Runs::of(std::array::from_fn(|r| visible(line + r)));
        let vectors = self.dim / LANES;
        let mut vector = 0;
        // SAFETY: the caller's promise.
        unsafe {
            while vector < vectors {
                vector += match vectors - vector >= WIDE {
                    true => self.sum_tile::<S, R, WIDE>(line, values, vector, &runs),
                    false => self.sum_tile::<S, R, 1>(line, values, vector, &runs),
                };
            }
        }
        R
    }

    #[inline(always)]
    unsafe fn sum_tile<S: Simd, const R: usize, const V: usize>(
        &mut self,
        line: usize,
        values: *const f32,
        vector: usize,
        runs: &Runs<R>,
    ) -> usize {
        // SAFETY: the caller's promise: lines, tokens and vectors exist.
        unsafe {
            let values = values.add(vector * LANES);
            let weights = self.scores.as_ptr().add(line * self.tokens);
            let sums = self.sums.as_mut_ptr().add(line * self.dim + vector * LANES);
            let mut acc = [[S::splat(0.0); V]; R];
            for r in 0..R {
                let factor = S::splat(self.factors[line + r]);
                for v in 0..V {
                    acc[r][v] = S::mul(S::load(sums.add(r * self.dim + v * LANES)), factor);
                }
            }
            for r in 0..R {
                let weights = weights.add(r * self.tokens);
                self.sum_run::<S, V>(&mut acc[r], weights, values, runs.before[r].clone());
            }
            for token in runs.common.clone() {
                let mut value = [S::splat(0.0); V];
                for v in 0..V {
                    value[v] = S::load(values.add(token * self.dim + v * LANES));
                }
                for r in 0..R {
                    let weight = S::splat(*weights.add(r * self.tokens + token));
                    for v in 0..V {
                        acc[r][v] = S::fma(weight, value[v], acc[r][v]);
                    }
                }
            }
            for r in 0..R {
                let weights = weights.add(r * self.tokens);
                self.sum_run::<S, V>(&mut acc[r], weights, values, runs.after[r].clone());
            }
            for r in 0..R {
                for v in 0..V {
                    S::store(sums.add(r * self.dim + v * LANES), acc[r][v]);
                }
            }
        }
        V
    }

    /// Adds the weighted values of tokens to one line.
    #[inline(always)]
    unsafe fn sum_run<S: Simd, const V: usize>(
        &self,
        acc: &mut [S::F; V],
        weights: *const f32,
        values: *const f32,
        tokens: Range<usize>,
    ) {
        for token in tokens {
            // SAFETY: the caller's promise: the tokens exist.
            unsafe {
                let weight = S::splat(*weights.add(token));
                for v in 0..V {
                    let value = S::load(values.add(token * self.dim + v * LANES));
                    acc[v] = S::fma(weight, value, acc[v]);
                }
            }
        }
    }
}

/// The tokens of a page that `R` lines see: those that all of them do, and for each line those
/// before and after. What a line does not see is left out, for a weight of zero does not undo a
/// value that is infinite or no number.
struct Runs<const R: usize> {
    before: [Range<usize>; R],
    common: Range<usize>,
    after: [Range<usize>; R],
}

impl<const R: usize> Runs<R> {
    fn of(visible: [Range<usize>; R]) -> Self {
        let start = visible.iter().map(|range| range.start).max().unwrap_or(0);
        let end = visible.iter().map(|range| range.end).min().unwrap_or(0);
        if start >= end {
            // All of a line's tokens in one run.
            return Self { before: visible, common: 0..0, after: [const { 0..0 }; R] };
        }
        Self {
            before: visible.each_ref().map(|range| range.start..start),
            common: start..end,
            after: visible.each_ref().map(|range| end..range.end),
        }
    }
}
