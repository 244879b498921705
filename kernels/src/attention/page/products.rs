//! Scores and sums over a page in 8 bits: integer dots of lines with codes, scaled once a group.

use std::ops::Range;

use super::Lines;
use crate::attention::kv_type::{KEY_GROUP, VALUE_GROUP};
use crate::simd::{LANES, Simd};

/// Words of codes in a group of a key.
const GROUP_WORDS: usize = KEY_GROUP / 4;
/// Lines up to which a page is read faster than it is computed with: tiles are wider, and the next
/// page is fetched in their loops too.
const FEW_LINES: usize = 3;
/// Lines of the cache fetched for each word of codes.
const WORD_LINES: usize = 3;
/// Vectors of a group of values.
const GROUP_VECTORS: usize = VALUE_GROUP / LANES;

impl Lines<'_> {
    /// Raw scores of every line over the token vectors of a page, but for the scales of queries.
    ///
    /// # Safety
    /// The processor has the instructions of `S`; `keys` is a block of keys in 8 bits that has the
    /// vectors; the queries were rounded.
    #[inline(always)]
    pub(super) unsafe fn score_codes<S: Simd>(&mut self, keys: *const u32, vectors: Range<usize>) {
        // SAFETY: the caller's promise; a tile takes no more lines than there are.
        unsafe {
            for_tiles!(self.score_code_rows::<S>(keys, vectors.clone()));
        }
    }

    /// Adds the weighted values of the tokens `seen` to the sums of every line.
    ///
    /// # Safety
    /// The processor has the instructions of `S`; `values` is a block of values in 8 bits; the lines'
    /// weights of the words of `seen` were rounded.
    #[inline(always)]
    pub(super) unsafe fn sum_codes<S: Simd>(&mut self, values: *const u32, seen: Range<usize>) {
        let words = seen.start / 4..seen.end.div_ceil(4);
        // SAFETY: the caller's promise; a tile takes no more lines than there are.
        unsafe {
            for_tiles!(self.sum_code_rows::<S>(values, words.clone()));
        }
    }

    /// Raw scores of `R` lines over the token vectors of a page; returns `R`.
    #[inline(always)]
    unsafe fn score_code_rows<S: Simd, const R: usize>(
        &mut self,
        line: usize,
        keys: *const u32,
        vectors: Range<usize>,
    ) -> usize {
        let mut vector = vectors.start;
        // SAFETY: the caller's promise.
        unsafe {
            while vector < vectors.end {
                let left = vectors.end - vector;
                vector += match R <= FEW_LINES && left >= 4 {
                    true => self.score_code_tile::<S, R, 4>(line, keys, vector),
                    false if left >= 2 => self.score_code_tile::<S, R, 2>(line, keys, vector),
                    false => self.score_code_tile::<S, R, 1>(line, keys, vector),
                };
            }
        }
        R
    }

    #[inline(always)]
    unsafe fn score_code_tile<S: Simd, const R: usize, const V: usize>(
        &mut self,
        line: usize,
        keys: *const u32,
        vector: usize,
    ) -> usize {
        let (dim, tokens) = (self.widths.key_dim, self.tokens);
        let groups = dim.div_ceil(KEY_GROUP);
        // SAFETY: the caller's promise: lines, groups and vectors exist in queries, keys and scores.
        unsafe {
            let codes = keys.add(vector * LANES).cast::<u8>();
            let scales = keys.add(dim / 4 * tokens + vector * LANES).cast::<f32>();
            let queries = self.codes.queries.as_ptr().add(line * 2 * dim);
            let scores = self.scores.as_mut_ptr().add(line * tokens + vector * LANES);
            for group in 0..groups {
                let mut high = [[S::int_splat(0); V]; R];
                let mut low = [[S::int_splat(0); V]; R];
                for r in 0..R {
                    let zero = *self.codes.query_zeros.as_ptr().add((line + r) * groups + group);
                    low[r] = [S::int_splat(zero); V];
                }
                for word in group * GROUP_WORDS..(dim / 4).min((group + 1) * GROUP_WORDS) {
                    let codes = codes.add(word * tokens * 4);
                    let mut key = [S::load_codes(codes); V];
                    for v in 1..V {
                        key[v] = S::load_codes(codes.add(v * LANES * 4));
                    }
                    if R <= FEW_LINES {
                        self.fetch.some(WORD_LINES);
                    }
                    for r in 0..R {
                        let query = queries.add(r * 2 * dim + word * 4);
                        for v in 0..V {
                            high[r][v] = S::dot::<true>(high[r][v], key[v], query);
                            low[r][v] = S::dot::<true>(low[r][v], key[v], query.add(dim));
                        }
                    }
                }
                for r in 0..R {
                    for v in 0..V {
                        let dot = S::int_add(S::int_shl7(high[r][v]), low[r][v]);
                        let scale = S::load(scales.add(group * tokens + v * LANES));
                        let score = scores.add(r * tokens + v * LANES);
                        let before = if group == 0 { S::splat(0.0) } else { S::load(score) };
                        S::store(score, S::fma(S::int_to_float(dot), scale, before));
                    }
                }
            }
        }
        V
    }

    /// Adds the weighted values of words of four tokens to the sums of `R` lines; returns `R`.
    #[inline(always)]
    unsafe fn sum_code_rows<S: Simd, const R: usize>(
        &mut self,
        line: usize,
        values: *const u32,
        words: Range<usize>,
    ) -> usize {
        let vectors = self.dim / LANES;
        let mut vector = 0;
        // SAFETY: the caller's promise; steps are of one width, which divides a group, until less
        // than that is left of the row: none crosses a group.
        unsafe {
            while vector < vectors {
                let (left, words) = (vectors - vector, words.clone());
                vector += match R <= FEW_LINES && left >= GROUP_VECTORS {
                    true => self.sum_code_tile::<S, R, GROUP_VECTORS>(line, values, vector, words),
                    false if left >= 2 => {
                        self.sum_code_tile::<S, R, 2>(line, values, vector, words)
                    }
                    false => self.sum_code_tile::<S, R, 1>(line, values, vector, words),
                };
            }
        }
        R
    }

    #[inline(always)]
    unsafe fn sum_code_tile<S: Simd, const R: usize, const V: usize>(
        &mut self,
        line: usize,
        values: *const u32,
        vector: usize,
        words: Range<usize>,
    ) -> usize {
        let (dim, tokens) = (self.dim, self.tokens);
        let (groups, group) = (dim.div_ceil(VALUE_GROUP), vector / GROUP_VECTORS);
        // SAFETY: the caller's promise: lines, words and vectors exist.
        unsafe {
            let codes = values.add(vector * LANES).cast::<u8>();
            let weights = self.codes.weights.as_ptr().add((line * groups + group) * 2 * tokens);
            let sums = self.sums.as_mut_ptr().add(line * dim + vector * LANES);
            let mut high = [[S::int_splat(0); V]; R];
            let mut low = [[S::int_splat(0); V]; R];
            for r in 0..R {
                let zero = *self.codes.weight_zeros.as_ptr().add((line + r) * groups + group);
                low[r] = [S::int_splat(zero); V];
            }
            for word in words {
                let codes = codes.add(word * dim * 4);
                let mut value = [S::load_codes(codes); V];
                for v in 1..V {
                    value[v] = S::load_codes(codes.add(v * LANES * 4));
                }
                if R <= FEW_LINES {
                    self.fetch.some(WORD_LINES);
                }
                for r in 0..R {
                    let weight = weights.add(r * groups * 2 * tokens + word * 4);
                    for v in 0..V {
                        high[r][v] = S::dot::<true>(high[r][v], value[v], weight);
                        low[r][v] = S::dot::<true>(low[r][v], value[v], weight.add(tokens));
                    }
                }
            }
            for r in 0..R {
                let at = (line + r) * groups + group;
                let scale = S::splat(*self.codes.weight_scales.as_ptr().add(at));
                let factor = S::splat(self.factors[line + r]);
                for v in 0..V {
                    let dot = S::int_add(S::int_shl7(high[r][v]), low[r][v]);
                    let sum = sums.add(r * dim + v * LANES);
                    let before = S::mul(S::load(sum), factor);
                    S::store(sum, S::fma(S::int_to_float(dot), scale, before));
                }
            }
        }
        V
    }
}
