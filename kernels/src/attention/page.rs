//! One page of keys and values against a block of queries ("lines"): scores, online softmax, sums.
//!
//! A line's arithmetic does not depend on the other lines: each score and each sum has one
//! accumulator and one order, and tokens a line does not see add nothing to it.

use std::ops::Range;

use super::Shape;
use crate::simd::{LANES, Simd, exp};

/// Vectors of scores or values that a tile holds for each line.
const WIDE: usize = 4;

/// Memory of a block, kept by each thread.
pub(super) struct Scratch {
    numbers: Vec<f32>,
}

impl Scratch {
    pub(super) const EMPTY: Self = Self { numbers: Vec::new() };

    /// Readies room for `count` lines with empty sums.
    pub(super) fn begin(&mut self, count: usize, shape: &Shape) -> Lines<'_> {
        let tokens = shape.page_tokens.next_multiple_of(LANES);
        let dim = shape.head_dim.next_multiple_of(LANES);
        let sizes = [count * dim, count * dim, count * tokens, 3 * count, dim * tokens];
        let total = sizes.iter().sum::<usize>() + dim * tokens;
        if self.numbers.len() < total {
            self.numbers.resize(total, 0.0);
        }
        let (queries, rest) = self.numbers.split_at_mut(sizes[0]);
        let (sums, rest) = rest.split_at_mut(sizes[1]);
        let (scores, rest) = rest.split_at_mut(sizes[2]);
        let (state, rest) = rest.split_at_mut(sizes[3]);
        let (keys, rest) = rest.split_at_mut(sizes[4]);
        let values = &mut rest[..dim * tokens];
        sums.fill(0.0);
        let (largest, rest) = state.split_at_mut(count);
        let (weights, factors) = rest.split_at_mut(count);
        largest.fill(f32::NEG_INFINITY);
        weights.fill(0.0);
        let shape = *shape;
        Lines {
            count,
            shape,
            tokens,
            dim,
            queries,
            sums,
            scores,
            largest,
            weights,
            factors,
            keys,
            values,
        }
    }
}

/// The lines of a block and what they have summed up so far.
pub(super) struct Lines<'a> {
    /// How many.
    pub(super) count: usize,
    shape: Shape,
    /// Tokens of a page and elements of a head, rounded up to whole vectors.
    tokens: usize,
    dim: usize,
    /// `[count, dim]`.
    queries: &'a mut [f32],
    /// `[count, dim]`: weighted values.
    sums: &'a mut [f32],
    /// `[count, tokens]` of the page at hand, then weights.
    scores: &'a mut [f32],
    /// Largest score so far.
    largest: &'a mut [f32],
    /// Sum of weights so far.
    weights: &'a mut [f32],
    /// What the page at hand makes of the sums before it.
    factors: &'a mut [f32],
    /// A page of keys and of values filled up to whole vectors, where the shape is odd.
    keys: &'a mut [f32],
    values: &'a mut [f32],
}

/// The blocks of one head in one page.
#[derive(Clone, Copy)]
pub(super) struct Page<'a> {
    /// `[head_dim, page_tokens]`.
    pub(super) keys: &'a [f32],
    /// `[page_tokens, head_dim]`.
    pub(super) values: &'a [f32],
    /// Factor on the scores.
    pub(super) scale: f32,
}

impl Lines<'_> {
    /// The query of a line, to be filled.
    pub(super) fn query_mut(&mut self, line: usize) -> &mut [f32] {
        &mut self.queries[line * self.dim..][..self.shape.head_dim]
    }

    /// Weighted values and the sum of weights of a line.
    pub(super) fn sums(&self, line: usize) -> (&[f32], f32) {
        (&self.sums[line * self.dim..][..self.shape.head_dim], self.weights[line])
    }

    /// Adds a page to every line; `visible(line)` are the tokens of the page that the line sees.
    ///
    /// # Safety
    /// The processor has the instructions of `S`.
    #[inline(always)]
    pub(super) unsafe fn page<S: Simd>(
        &mut self,
        page: Page<'_>,
        visible: &impl Fn(usize) -> Range<usize>,
    ) {
        let seen = self.seen(visible);
        if seen.is_empty() {
            return;
        }
        let page = self.whole_vectors(page, seen.end);
        // SAFETY: the caller's promise; both pages are filled up to whole vectors, and every line
        // index is below the count.
        unsafe {
            let vectors = seen.start / LANES..seen.end.div_ceil(LANES);
            let mut line = 0;
            while line < self.count {
                line += match self.count - line {
                    left if left >= 6 && S::ATTENTION_ROWS >= 6 => {
                        self.score_rows::<S, 6>(page.keys, line, vectors.clone())
                    }
                    left if left >= 3 && S::ATTENTION_ROWS >= 3 => {
                        self.score_rows::<S, 3>(page.keys, line, vectors.clone())
                    }
                    _ => self.score_rows::<S, 1>(page.keys, line, vectors.clone()),
                };
            }
            for line in 0..self.count {
                self.weigh::<S>(line, page.scale, visible(line), vectors.clone());
            }
            let mut line = 0;
            while line < self.count {
                line += match self.count - line {
                    left if left >= 6 && S::ATTENTION_ROWS >= 6 => {
                        self.sum_rows::<S, 6>(page.values, line, seen.clone())
                    }
                    left if left >= 3 && S::ATTENTION_ROWS >= 3 => {
                        self.sum_rows::<S, 3>(page.values, line, seen.clone())
                    }
                    _ => self.sum_rows::<S, 1>(page.values, line, seen.clone()),
                };
            }
        }
    }

    /// The tokens that any line sees.
    fn seen(&self, visible: &impl Fn(usize) -> Range<usize>) -> Range<usize> {
        let ranges = || (0..self.count).map(visible).filter(|range| !range.is_empty());
        let start = ranges().map(|range| range.start).min().unwrap_or(0);
        start..ranges().map(|range| range.end).max().unwrap_or(0)
    }

    /// The page with rows of whole vectors: as it is, or the tokens before `end` copied. Raw, as
    /// the copy lives in the scratch beside what is written meanwhile.
    fn whole_vectors(&mut self, page: Page<'_>, end: usize) -> RawPage {
        let Shape { page_tokens, head_dim, .. } = self.shape;
        let mut raw =
            RawPage { keys: page.keys.as_ptr(), values: page.values.as_ptr(), scale: page.scale };
        if page_tokens != self.tokens {
            for (to, from) in
                self.keys.chunks_exact_mut(self.tokens).zip(page.keys.chunks_exact(page_tokens))
            {
                to[..page_tokens].copy_from_slice(from);
            }
            raw.keys = self.keys.as_ptr();
        }
        if head_dim != self.dim {
            let rows = page.values.chunks_exact(head_dim).take(end);
            for (to, from) in self.values.chunks_exact_mut(self.dim).zip(rows) {
                to[..head_dim].copy_from_slice(from);
            }
            raw.values = self.values.as_ptr();
        }
        raw
    }

    /// Raw scores of `R` lines over the token vectors of a page; returns `R`.
    #[inline(always)]
    unsafe fn score_rows<S: Simd, const R: usize>(
        &mut self,
        keys: *const f32,
        line: usize,
        vectors: Range<usize>,
    ) -> usize {
        let mut vector = vectors.start;
        // SAFETY: the caller's promise.
        unsafe {
            while vector < vectors.end {
                vector += match vectors.end - vector >= WIDE {
                    true => self.score_tile::<S, R, WIDE>(keys, line, vector),
                    false => self.score_tile::<S, R, 1>(keys, line, vector),
                };
            }
        }
        R
    }

    #[inline(always)]
    unsafe fn score_tile<S: Simd, const R: usize, const V: usize>(
        &mut self,
        keys: *const f32,
        line: usize,
        vector: usize,
    ) -> usize {
        // SAFETY: the caller's promise: lines and vectors exist in the queries, keys and scores.
        unsafe {
            let queries = self.queries.as_ptr().add(line * self.dim);
            let keys = keys.add(vector * LANES);
            let mut acc = [[S::splat(0.0); V]; R];
            for dim in 0..self.shape.head_dim {
                let mut key = [S::splat(0.0); V];
                for v in 0..V {
                    key[v] = S::load(keys.add(dim * self.tokens + v * LANES));
                }
                for r in 0..R {
                    let query = S::splat(*queries.add(r * self.dim + dim));
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

    /// Turns the scores of a line into weights relative to its largest score so far.
    #[inline(always)]
    unsafe fn weigh<S: Simd>(
        &mut self,
        line: usize,
        scale: f32,
        visible: Range<usize>,
        vectors: Range<usize>,
    ) {
        let scores = &mut self.scores[line * self.tokens..][..self.tokens];
        let covered = vectors.start * LANES..vectors.end * LANES;
        if visible.is_empty() {
            scores[covered].fill(0.0);
            self.factors[line] = 1.0;
            return;
        }
        scores[covered.start..visible.start].fill(f32::NEG_INFINITY);
        scores[visible.end..covered.end].fill(f32::NEG_INFINITY);
        // SAFETY: the caller's promise; the vectors lie inside the scores of the line.
        unsafe {
            let scores = scores.as_mut_ptr();
            let mut most = S::splat(self.largest[line]);
            for vector in vectors.clone() {
                let at = scores.add(vector * LANES);
                let scaled = S::mul(S::load(at), S::splat(scale));
                S::store(at, scaled);
                most = S::max(scaled, most);
            }
            let largest = S::largest(most);
            let mut sum = S::splat(0.0);
            for vector in vectors {
                let at = scores.add(vector * LANES);
                let weight = exp::<S>(S::sub(S::load(at), S::splat(largest)));
                S::store(at, weight);
                sum = S::add(sum, weight);
            }
            let mut factor = [0.0; LANES];
            let before = S::splat(self.largest[line] - largest);
            S::store(factor.as_mut_ptr(), exp::<S>(before));
            self.factors[line] = factor[0];
            self.weights[line] = self.weights[line] * factor[0] + S::sum(sum);
            self.largest[line] = largest;
        }
    }

    /// Adds the weighted values of a page's tokens to the sums of `R` lines; returns `R`.
    #[inline(always)]
    unsafe fn sum_rows<S: Simd, const R: usize>(
        &mut self,
        values: *const f32,
        line: usize,
        seen: Range<usize>,
    ) -> usize {
        let vectors = self.dim / LANES;
        let mut vector = 0;
        // SAFETY: the caller's promise.
        unsafe {
            while vector < vectors {
                vector += match vectors - vector >= WIDE {
                    true => self.sum_tile::<S, R, WIDE>(values, line, vector, seen.clone()),
                    false => self.sum_tile::<S, R, 1>(values, line, vector, seen.clone()),
                };
            }
        }
        R
    }

    #[inline(always)]
    unsafe fn sum_tile<S: Simd, const R: usize, const V: usize>(
        &mut self,
        values: *const f32,
        line: usize,
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

/// A page whose rows are whole vectors.
#[derive(Clone, Copy)]
struct RawPage {
    keys: *const f32,
    values: *const f32,
    scale: f32,
}
