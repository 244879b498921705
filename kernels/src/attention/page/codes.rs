//! Queries and weights of lines as integers, to be multiplied with keys and values in 8 bits: each in
//! two planes, `128 * high + low`, which loses nothing that 8 bits of the other side would show.

use std::ops::Range;

use super::Lines;
use crate::attention::kv_type::{KEY_GROUP, VALUE_GROUP};
use crate::matmul::reference::INT16_MAX;
use crate::rounding::Rounding;
use crate::simd::{LANES, Simd};

/// Integers of the lines of a block; empty where pages are f32.
#[derive(Default)]
pub(super) struct CodeScratch {
    codes: Vec<i8>,
    numbers: Vec<f32>,
    zeros: Vec<i32>,
}

/// The same, cut for a number of lines.
pub(super) struct Codes<'a> {
    /// `[count, 2, key_dim]`.
    pub(super) queries: &'a mut [i8],
    /// `[count]`.
    pub(super) query_scales: &'a mut [f32],
    /// `[count, key_groups]`: less what the zero point of keys adds to the sums of products.
    pub(super) query_zeros: &'a mut [i32],
    /// `[count, value_groups, 2, tokens]` of the page at hand.
    pub(super) weights: &'a mut [i8],
    /// `[count, value_groups]` of the page at hand.
    pub(super) weight_scales: &'a mut [f32],
    /// `[count, value_groups]` of the page at hand: as for queries.
    pub(super) weight_zeros: &'a mut [i32],
    /// `[tokens]`: weights times scales of values.
    products: &'a mut [f32],
}

impl CodeScratch {
    pub(super) const EMPTY: Self =
        Self { codes: Vec::new(), numbers: Vec::new(), zeros: Vec::new() };

    /// Room for `count` lines.
    pub(super) fn begin(
        &mut self,
        count: usize,
        tokens: usize,
        [key_dim, value_dim]: [usize; 2],
    ) -> Codes<'_> {
        let (keys, values) = (count * key_dim.div_ceil(KEY_GROUP), value_dim.div_ceil(VALUE_GROUP));
        let values = count * values;
        let (queries, weights) = (count * 2 * key_dim, values * 2 * tokens);
        grow(&mut self.codes, queries + weights);
        grow(&mut self.numbers, count + values + tokens);
        grow(&mut self.zeros, keys + values);
        let (queries, rest) = self.codes.split_at_mut(queries);
        let weights = &mut rest[..weights];
        let (query_scales, rest) = self.numbers.split_at_mut(count);
        let (weight_scales, rest) = rest.split_at_mut(values);
        let (query_zeros, rest_zeros) = self.zeros.split_at_mut(keys);
        Codes {
            queries,
            query_scales,
            query_zeros,
            weights,
            weight_scales,
            weight_zeros: &mut rest_zeros[..values],
            products: &mut rest[..tokens],
        }
    }
}

fn grow<T: Clone + Default>(vector: &mut Vec<T>, len: usize) {
    if vector.len() < len {
        vector.resize(len, T::default());
    }
}

impl Lines<'_> {
    /// Makes integers of the queries, which are all there.
    ///
    /// # Safety
    /// The processor has the instructions of `S`.
    #[inline(always)]
    pub(crate) unsafe fn round_queries<S: Simd>(&mut self) {
        let dim = self.widths.key_dim;
        let groups = dim.div_ceil(KEY_GROUP);
        for line in 0..self.count {
            // SAFETY: the caller's promise; the line exists, groups are whole vectors.
            unsafe {
                let query = self.queries.as_ptr().add(line * self.query_stride);
                let high = self.codes.queries.as_mut_ptr().add(line * 2 * dim);
                let rounding = Rounding::of::<S>(query, dim / LANES, INT16_MAX);
                // A query of zeros has codes of zero, which any scale fits; it is a factor of scores
                // that are minus infinity, too.
                let scale = if rounding.scale == 0.0 { 1.0 } else { rounding.scale };
                self.codes.query_scales[line] = scale;
                for group in 0..groups {
                    let first = group * KEY_GROUP;
                    let vectors = (dim - first).min(KEY_GROUP) / LANES;
                    let high = high.add(first);
                    let from = query.add(first);
                    let sum = round::<S>(rounding, from, vectors, high, high.add(dim));
                    self.codes.query_zeros[line * groups + group] = -(sum << 7);
                }
            }
        }
    }

    /// Makes integers of the weights of a line over the vectors of a page, times the values' scales.
    ///
    /// # Safety
    /// The processor has the instructions of `S`; `scales` are `[value_groups, tokens]`, and the
    /// weights of the vectors were written.
    #[inline(always)]
    pub(super) unsafe fn round_weights<S: Simd>(
        &mut self,
        line: usize,
        scales: *const f32,
        visible: Range<usize>,
        vectors: Range<usize>,
    ) {
        let (tokens, groups) = (self.tokens, self.widths.value_dim.div_ceil(VALUE_GROUP));
        let covered = vectors.start * LANES..vectors.end * LANES;
        for group in 0..groups {
            let at = line * groups + group;
            // SAFETY: the caller's promise; line, group and vectors exist.
            unsafe {
                let weights = self.scores.as_ptr().add(line * tokens);
                let scales = scales.add(group * tokens);
                let products = self.codes.products.as_mut_ptr();
                for vector in vectors.clone() {
                    let at = vector * LANES;
                    S::store(
                        products.add(at),
                        S::mul(S::load(weights.add(at)), S::load(scales.add(at))),
                    );
                }
                // Tokens that the line does not see may have scales that are not numbers.
                let seen =
                    if visible.is_empty() { covered.end..covered.end } else { visible.clone() };
                self.codes.products[covered.start..seen.start].fill(0.0);
                self.codes.products[seen.end..covered.end].fill(0.0);
                let high = self.codes.weights.as_mut_ptr().add(at * 2 * tokens + covered.start);
                let products = self.codes.products.as_ptr().add(covered.start);
                let rounding = Rounding::of::<S>(products, vectors.len(), INT16_MAX);
                let low = high.add(tokens);
                let sum = round::<S>(rounding, products, vectors.len(), high, low);
                self.codes.weight_scales[at] = rounding.scale;
                self.codes.weight_zeros[at] = -(sum << 7);
            }
        }
    }
}

/// Rounds vectors of numbers to two planes of codes; returns the sum of the codes.
///
/// # Safety
/// The processor has the instructions of `S`; `vectors` vectors can be read and written.
#[inline(always)]
unsafe fn round<S: Simd>(
    rounding: Rounding,
    from: *const f32,
    vectors: usize,
    high: *mut i8,
    low: *mut i8,
) -> i32 {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sum = S::int_splat(0);
        for vector in 0..vectors {
            let code = rounding.codes::<S>(S::load(from.add(vector * LANES)));
            sum = S::int_add(sum, code);
            let upper = S::int_sar7(S::int_add(code, S::int_splat(64)));
            S::store_i8(high.add(vector * LANES), upper);
            S::store_i8(low.add(vector * LANES), S::int_sub(code, S::int_shl7(upper)));
        }
        S::int_sum(sum)
    }
}
