//! Scores of lines: with transposed keys, sixteen tokens to a vector; with values, a token at a time.

use std::ops::Range;

use super::{Lines, WIDE};
use crate::simd::{LANES, Simd};

impl Lines<'_> {
    /// Raw scores of every line over the token vectors of a page.
    ///
    /// # Safety
    /// The processor has the instructions of `S`; `keys` are `[key_dim, tokens]` and have the
    /// vectors.
    #[inline(always)]
    pub(super) unsafe fn score_keys<S: Simd>(&mut self, keys: *const f32, vectors: Range<usize>) {
        // SAFETY: the caller's promise; a tile takes no more lines than there are.
        unsafe {
            for_tiles!(self.score_rows::<S>(keys, vectors.clone()));
        }
    }

    /// Adds to the raw scores of every line what the tokens' values make with its second query.
    ///
    /// # Safety
    /// The processor has the instructions of `S`; `values` are `[tokens, dim]`, of which `seen` can
    /// be read, and the scores of their vectors were written.
    #[inline(always)]
    pub(super) unsafe fn score_values<S: Simd>(&mut self, values: *const f32, seen: Range<usize>) {
        // SAFETY: the caller's promise; a tile takes no more lines than there are.
        unsafe {
            for_tiles!(self.match_rows::<S>(values, seen.clone()));
        }
    }

    /// Raw scores of `R` lines over the token vectors of a page; returns `R`.
    #[inline(always)]
    unsafe fn score_rows<S: Simd, const R: usize>(
        &mut self,
        line: usize,
        keys: *const f32,
        vectors: Range<usize>,
    ) -> usize {
        let mut vector = vectors.start;
        // SAFETY: the caller's promise.
        unsafe {
            while vector < vectors.end {
                vector += match vectors.end - vector >= WIDE {
                    true => self.score_tile::<S, R, WIDE>(line, keys, vector),
                    false => self.score_tile::<S, R, 1>(line, keys, vector),
                };
            }
        }
        R
    }

    #[inline(always)]
    unsafe fn score_tile<S: Simd, const R: usize, const V: usize>(
        &mut self,
        line: usize,
        keys: *const f32,
        vector: usize,
    ) -> usize {
        // SAFETY: the caller's promise: lines and vectors exist in the queries, keys and scores.
        unsafe {
            let queries = self.queries.as_ptr().add(line * self.query_stride);
            let keys = keys.add(vector * LANES);
            let mut acc = [[S::splat(0.0); V]; R];
            for dim in 0..self.widths.key_dim {
                let mut key = [S::splat(0.0); V];
                for v in 0..V {
                    key[v] = S::load(keys.add(dim * self.tokens + v * LANES));
                }
                for r in 0..R {
                    let query = S::splat(*queries.add(r * self.query_stride + dim));
                    for v in 0..V {
                        acc[r][v] = S::fma(query, key[v], acc[r][v]);
                    }
                }
            }
            let scores = self.scores.as_mut_ptr().add(line * self.tokens + vector * LANES);
            for r in 0..R {
                for v in 0..V {
                    S::store(scores.add(r * self.tokens + v * LANES), acc[r][v]);
                }
            }
        }
        V
    }

    /// The part of `R` lines in [`score_values`](Self::score_values); returns `R`.
    #[inline(always)]
    unsafe fn match_rows<S: Simd, const R: usize>(
        &mut self,
        line: usize,
        values: *const f32,
        seen: Range<usize>,
    ) -> usize {
        let mut token = seen.start;
        // SAFETY: the caller's promise.
        unsafe {
            while token < seen.end {
                token += match seen.end - token >= WIDE {
                    true => self.match_tile::<S, R, WIDE>(line, values, token),
                    false => self.match_tile::<S, R, 1>(line, values, token),
                };
            }
        }
        R
    }

    #[inline(always)]
    unsafe fn match_tile<S: Simd, const R: usize, const T: usize>(
        &mut self,
        line: usize,
        values: *const f32,
        token: usize,
    ) -> usize {
        // SAFETY: the caller's promise: lines and tokens exist in the queries, values and scores.
        unsafe {
            let queries = self.queries.as_ptr().add(line * self.query_stride + self.key_stride);
            let values = values.add(token * self.dim);
            let mut acc = [[S::splat(0.0); T]; R];
            for dim in (0..self.dim).step_by(LANES) {
                let mut value = [S::splat(0.0); T];
                for t in 0..T {
                    value[t] = S::load(values.add(t * self.dim + dim));
                }
                for r in 0..R {
                    let query = S::load(queries.add(r * self.query_stride + dim));
                    for t in 0..T {
                        acc[r][t] = S::fma(query, value[t], acc[r][t]);
                    }
                }
            }
            let scores = self.scores.as_mut_ptr().add(line * self.tokens + token);
            for r in 0..R {
                for t in 0..T {
                    *scores.add(r * self.tokens + t) += S::sum(acc[r][t]);
                }
            }
        }
        T
    }
}
