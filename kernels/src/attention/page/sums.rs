//! Weighted sums of a page's values.

use std::ops::Range;

use super::{Lines, WIDE};
use crate::simd::{LANES, Simd};

impl Lines<'_> {
    /// Adds the weighted values of the tokens `seen` to the sums of every line.
    ///
    /// # Safety
    /// The processor has the instructions of `S`; `values` are `[tokens, dim]`, of which `seen` can
    /// be read, and the lines' weights of those tokens were written.
    #[inline(always)]
    pub(super) unsafe fn sum_values<S: Simd>(&mut self, values: *const f32, seen: Range<usize>) {
        // SAFETY: the caller's promise; a tile takes no more lines than there are.
        unsafe {
            for_tiles!(self.sum_rows::<S>(values, seen.clone()));
        }
    }

    /// Adds the weighted values of a page's tokens to the sums of `R` lines; returns `R`.
    #[inline(always)]
    unsafe fn sum_rows<S: Simd, const R: usize>(
        &mut self,
        line: usize,
        values: *const f32,
        seen: Range<usize>,
    ) -> usize {
        let vectors = self.dim / LANES;
        let mut vector = 0;
        // SAFETY: the caller's promise.
        unsafe {
            while vector < vectors {
                vector += match vectors - vector >= WIDE {
                    true => self.sum_tile::<S, R, WIDE>(line, values, vector, seen.clone()),
                    false => self.sum_tile::<S, R, 1>(line, values, vector, seen.clone()),
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
        seen: Range<usize>,
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
            for token in seen {
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
                for v in 0..V {
                    S::store(sums.add(r * self.dim + v * LANES), acc[r][v]);
                }
            }
        }
        V
    }
}
