//! One page of keys and values against a block of queries ("lines"): scores, online softmax, sums.
//!
//! A line's arithmetic does not depend on the other lines: each score and each sum has one
//! accumulator and one order, and tokens a line does not see add nothing to it.

/// Calls a method of [`Lines`] for tiles of lines, from the first to the last. Its arguments are the
/// tile's first line and those given, its constant how many lines the tile has.
macro_rules! for_tiles {
    ($lines:ident.$method:ident::<$simd:ident>($($argument:expr),+)) => {
        let mut line = 0;
        while line < $lines.count {
            let left = ($lines.count - line).min($simd::ATTENTION_ROWS);
            line += match left {
                6.. => $lines.$method::<$simd, 6>(line, $($argument),+),
                4..=5 => $lines.$method::<$simd, 4>(line, $($argument),+),
                3 => $lines.$method::<$simd, 3>(line, $($argument),+),
                2 => $lines.$method::<$simd, 2>(line, $($argument),+),
                _ => $lines.$method::<$simd, 1>(line, $($argument),+),
            };
        }
    };
}

mod codes;
mod fetch;
mod parts;
mod products;
mod scores;
mod sums;

use std::ops::Range;

use self::codes::{CodeScratch, Codes};
use self::fetch::Fetch;
pub(crate) use self::parts::Part;
use super::kv_type::KvType;
use crate::simd::{LANES, Simd, exp};

/// Vectors of scores or values, or tokens, that a tile holds for each line.
const WIDE: usize = 4;

/// Lines of the cache fetched for each line's softmax, and for the rounding of its weights.
const LINE_LINES: usize = 12;

/// Widths of what attention reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Widths {
    /// Tokens of a page.
    pub(crate) page_tokens: usize,
    /// Elements of a key.
    pub(crate) key_dim: usize,
    /// Elements of a value.
    pub(crate) value_dim: usize,
    /// How they are kept.
    pub(crate) kv_type: KvType,
    /// Whether values are matched too, as a second part of the keys: a query then has `value_dim`
    /// elements more.
    pub(crate) match_values: bool,
}

/// Memory of a block, kept by each thread.
pub(crate) struct Scratch {
    numbers: Vec<f32>,
    codes: CodeScratch,
}

impl Scratch {
    pub(crate) const EMPTY: Self = Self { numbers: Vec::new(), codes: CodeScratch::EMPTY };

    /// Readies room for `count` lines with empty sums.
    pub(crate) fn begin(&mut self, count: usize, widths: Widths) -> Lines<'_> {
        let tokens = widths.page_tokens.next_multiple_of(LANES);
        let key_stride = widths.key_dim.next_multiple_of(LANES);
        let dim = widths.value_dim.next_multiple_of(LANES);
        let query_stride = key_stride + if widths.match_values { dim } else { 0 };
        let sizes = [
            count * query_stride,
            count * dim,
            count * tokens,
            3 * count,
            widths.key_dim * tokens,
            widths.page_tokens * dim,
            count * dim,
            2 * count,
        ];
        let total = sizes.iter().sum();
        if self.numbers.len() < total {
            self.numbers.resize(total, 0.0);
        }
        let (queries, rest) = self.numbers.split_at_mut(sizes[0]);
        let (sums, rest) = rest.split_at_mut(sizes[1]);
        let (scores, rest) = rest.split_at_mut(sizes[2]);
        let (state, rest) = rest.split_at_mut(sizes[3]);
        let (keys, rest) = rest.split_at_mut(sizes[4]);
        let (values, rest) = rest.split_at_mut(sizes[5]);
        let (totals, rest) = rest.split_at_mut(sizes[6]);
        let (total_weights, rest) = rest[..sizes[7]].split_at_mut(count);
        let total_largest = rest;
        queries.fill(0.0);
        sums.fill(0.0);
        let (largest, rest) = state.split_at_mut(count);
        let (weights, factors) = rest.split_at_mut(count);
        largest.fill(f32::NEG_INFINITY);
        weights.fill(0.0);
        totals.fill(0.0);
        total_weights.fill(0.0);
        total_largest.fill(f32::NEG_INFINITY);
        let codes = match widths.kv_type {
            KvType::F32 => self.codes.begin(0, 0, [0, 0]),
            KvType::Int8 => self.codes.begin(count, tokens, [widths.key_dim, dim]),
        };
        Lines {
            count,
            widths,
            tokens,
            key_stride,
            query_stride,
            dim,
            queries,
            sums,
            scores,
            largest,
            weights,
            factors,
            keys,
            values,
            totals,
            total_weights,
            total_largest,
            codes,
            fetch: Fetch::default(),
        }
    }
}

/// The lines of a block and what they have summed up so far.
pub(crate) struct Lines<'a> {
    /// How many.
    pub(crate) count: usize,
    widths: Widths,
    /// Tokens of a page, elements of a key, of a query and of a value, rounded up to whole vectors.
    tokens: usize,
    key_stride: usize,
    query_stride: usize,
    dim: usize,
    /// `[count, query_stride]`: what keys are matched with, then what values are.
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
    /// What the parts before made: weighted values `[count, dim]`, sums of weights, largest scores.
    totals: &'a mut [f32],
    total_weights: &'a mut [f32],
    total_largest: &'a mut [f32],
    /// Queries and weights as integers, where pages are such.
    codes: Codes<'a>,
    /// The page after the one at hand, where it is fetched.
    fetch: Fetch,
}

/// The blocks of one head in one page, in the order that [`KvType`] gives.
#[derive(Clone, Copy)]
pub(crate) enum Blocks<'a> {
    F32 { keys: &'a [f32], values: &'a [f32] },
    Int8 { keys: &'a [u32], values: &'a [u32] },
}

impl Lines<'_> {
    /// The query of a line for the keys, to be filled.
    pub(crate) fn query_mut(&mut self, line: usize) -> &mut [f32] {
        &mut self.queries[line * self.query_stride..][..self.widths.key_dim]
    }

    /// The query of a line for the values, to be filled where they are matched.
    pub(crate) fn value_query_mut(&mut self, line: usize) -> &mut [f32] {
        &mut self.queries[line * self.query_stride + self.key_stride..][..self.widths.value_dim]
    }

    /// Adds a page to every line; `visible(line)` are the tokens of the page that the line sees,
    /// `scale` is the factor on the scores, `next` the page that comes after this one, to be fetched
    /// meanwhile. Blocks are in 8 bits if `INT8`, which is the only code that is
    /// compiled then.
    ///
    /// # Safety
    /// The processor has the instructions of `S`; the blocks are of the type that the lines were
    /// made for, in 8 bits after [`round_queries`](Self::round_queries).
    #[inline(always)]
    pub(crate) unsafe fn page<S: Simd, const INT8: bool>(
        &mut self,
        blocks: Blocks<'_>,
        next: Option<Blocks<'_>>,
        scale: f32,
        visible: &impl Fn(usize) -> Range<usize>,
    ) {
        let seen = self.seen(visible);
        if seen.is_empty() {
            return;
        }
        let vectors = seen.start / LANES..seen.end.div_ceil(LANES);
        match blocks {
            Blocks::F32 { keys, values } if !INT8 => {
                let page = self.whole_vectors(keys, values, seen.end);
                // SAFETY: the caller's promise; both blocks are filled up to whole vectors.
                unsafe {
                    self.score_keys::<S>(page.keys, vectors.clone());
                    if self.widths.match_values {
                        self.score_values::<S>(page.values, seen.clone());
                    }
                    for line in 0..self.count {
                        self.weigh::<S>(line, scale, visible(line), vectors.clone());
                    }
                    self.sum_values::<S>(page.values, visible);
                }
            }
            Blocks::Int8 { keys, values } if INT8 => {
                let (keys, values) = (keys.as_ptr(), values.as_ptr());
                self.fetch = match next {
                    Some(Blocks::Int8 { keys, values }) => Fetch::new([keys, values]),
                    _ => Fetch::default(),
                };
                // SAFETY: the caller's promise; scales follow the codes of a block.
                unsafe {
                    self.score_codes::<S>(keys, vectors.clone());
                    let scales = values.add(self.dim / 4 * self.tokens).cast();
                    for line in 0..self.count {
                        self.fetch.some(LINE_LINES);
                        let scale = scale * self.codes.query_scales[line];
                        self.weigh::<S>(line, scale, visible(line), vectors.clone());
                        self.fetch.some(LINE_LINES);
                        self.round_weights::<S>(line, scales, visible(line), vectors.clone());
                    }
                    self.sum_codes::<S>(values, seen);
                    self.fetch.all();
                }
            }
            _ => unreachable!("blocks are of the type that the lines were made for"),
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
    fn whole_vectors(&mut self, keys: &[f32], values: &[f32], end: usize) -> RawPage {
        let Widths { page_tokens, value_dim, .. } = self.widths;
        let mut raw = RawPage { keys: keys.as_ptr(), values: values.as_ptr() };
        if page_tokens != self.tokens {
            let rows = keys.chunks_exact(page_tokens);
            for (to, from) in self.keys.chunks_exact_mut(self.tokens).zip(rows) {
                to[..page_tokens].copy_from_slice(from);
            }
            raw.keys = self.keys.as_ptr();
        }
        if value_dim != self.dim {
            let rows = values.chunks_exact(value_dim).take(end);
            for (to, from) in self.values.chunks_exact_mut(self.dim).zip(rows) {
                to[..value_dim].copy_from_slice(from);
                // Left from another shape they could be NaN, which a matched zero would not undo.
                to[value_dim..].fill(0.0);
            }
            raw.values = self.values.as_ptr();
        }
        raw
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
}

/// A page whose rows are whole vectors.
#[derive(Clone, Copy)]
struct RawPage {
    keys: *const f32,
    values: *const f32,
}
