//! Latent attention on the CPU: the heads of a row are lines over the same pages, so blocks of lines
//! go over the pages as in `attention`, over all cores. The loops over a page are in
//! `attention/page`.

use std::cell::RefCell;
use std::ops::Range;

use super::{Inputs, Shape};
use crate::attention::page::{Blocks, Lines, Scratch, Widths};
use crate::attention::{KvType, PageTable, Segment};
use crate::isa::Isa;
use crate::pool::{Parts, Pool};
use crate::simd::{Kernel, Simd, dispatch};

/// Heads of rows that go over the pages together at most: enough to read a page of latents from the
/// second-level cache once for several, few enough for their sums to stay there too.
const BLOCK_LINES: usize = 24;
/// Lines of a block at least: fewer would read latents as often as they compute with them.
const BLOCK_LINES_MIN: usize = 4;
/// Multiply-adds below which the calling thread works alone.
const PARALLEL_MIN: usize = 32 * 1024;

thread_local! {
    /// Sums and scores of a block; grows to the largest one this thread has seen.
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch::EMPTY) };
}

/// Attention of every row of every segment; `out` is `[capacity, heads, latent_dim]`.
pub(super) fn latent_attention(
    out: &mut [f32],
    inputs: Inputs<'_>,
    table: PageTable<'_>,
    shape: &Shape,
    scale: f32,
) {
    let isa = Isa::current();
    let pairs: usize = table.segments.iter().map(|s| s.len * (s.first_position + s.len)).sum();
    let work = pairs * shape.heads * (shape.latent_dim + shape.rope_dim);
    Pool::current(|pool| {
        let threads = if work < PARALLEL_MIN { 1 } else { pool.threads() };
        let lines_of = |segment: &Segment| segment.len * shape.heads;
        let lines: usize = table.segments.iter().map(lines_of).sum();
        // A few rows are split by heads, so that every thread has some.
        let even = lines.div_ceil(threads).next_multiple_of(2);
        let per_block = even.clamp(BLOCK_LINES_MIN, BLOCK_LINES);
        let blocks_of = |segment: &Segment| lines_of(segment).div_ceil(per_block);
        let blocks: usize = table.segments.iter().map(blocks_of).sum();
        let out = Parts::new(out);
        let task = |index: usize| {
            // Long rows first: the last blocks of a segment see the most tokens.
            let mut block = blocks - 1 - index;
            for segment in table.segments {
                if block < blocks_of(segment) {
                    let first = block * per_block;
                    let lines = first..lines_of(segment).min(first + per_block);
                    let call = Block { out: &out, inputs, table, shape, scale, segment, lines };
                    return SCRATCH.with_borrow_mut(|scratch| dispatch(isa, Job { call, scratch }));
                }
                block -= blocks_of(segment);
            }
        };
        match threads {
            1 => (0..blocks).for_each(task),
            _ => pool.run(blocks, task),
        }
    });
}

/// Some heads of some rows of a segment; line `row * heads + head` of it.
struct Block<'a> {
    out: &'a Parts<'a, f32>,
    inputs: Inputs<'a>,
    table: PageTable<'a>,
    shape: &'a Shape,
    scale: f32,
    segment: &'a Segment,
    lines: Range<usize>,
}

struct Job<'a> {
    call: Block<'a>,
    scratch: &'a mut Scratch,
}

impl Kernel for Job<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { call, scratch } = self;
        let Shape { heads, page_tokens, rope_dim, latent_dim } = *call.shape;
        let mut lines = scratch.begin(
            call.lines.len(),
            Widths {
                page_tokens,
                key_dim: rope_dim,
                value_dim: latent_dim,
                kv_type: KvType::F32,
                match_values: true,
            },
        );
        call.load(&mut lines);
        // Tokens that a line of the block sees.
        let end_of =
            |line: usize| call.segment.first_position + (call.lines.start + line) / heads + 1;
        let pages = end_of(lines.count - 1).div_ceil(page_tokens);
        for index in 0..pages {
            let page = call.table.pages[call.segment.first_page + index] as usize;
            let keys = rope_dim * page_tokens;
            let latents = latent_dim * page_tokens;
            let blocks = Blocks::F32 {
                keys: &call.inputs.keys[page * keys..][..keys],
                values: &call.inputs.latents[page * latents..][..latents],
            };
            let visible =
                |line: usize| 0..end_of(line).saturating_sub(index * page_tokens).min(page_tokens);
            // SAFETY: the caller's promise.
            unsafe { lines.page::<S, false>(blocks, None, call.scale, &visible) };
        }
        call.store(&lines);
    }
}

impl Block<'_> {
    /// Index of a line of the block among all heads of all rows of the step.
    fn head_row(&self, line: usize) -> usize {
        self.segment.first_row * self.shape.heads + self.lines.start + line
    }

    /// Takes the queries of the block.
    fn load(&self, lines: &mut Lines<'_>) {
        let Shape { rope_dim, latent_dim, .. } = *self.shape;
        for line in 0..lines.count {
            let at = self.head_row(line);
            lines.query_mut(line).copy_from_slice(&self.inputs.q_rope[at * rope_dim..][..rope_dim]);
            let latent = &self.inputs.q_latent[at * latent_dim..][..latent_dim];
            lines.value_query_mut(line).copy_from_slice(latent);
        }
    }

    /// Divides the sums of latents by the sums of weights.
    fn store(&self, lines: &Lines<'_>) {
        let width = self.shape.latent_dim;
        for line in 0..lines.count {
            // SAFETY: each head of each row belongs to one block, and segments do not overlap.
            let out = unsafe { self.out.part(self.head_row(line) * width, width) };
            let sums = lines.sums(line);
            for (out, latent) in out.iter_mut().zip(sums.values) {
                *out = latent / sums.weight;
            }
        }
    }
}
