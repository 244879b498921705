//! Attention on the CPU: blocks of query rows that share a key head, page by page with an online
//! softmax (Milakov and Gimelshein, 2018), over all cores. The loops over a page are in `page.rs`.

use std::cell::RefCell;

use super::page::{Blocks, Lines, Scratch, Widths};
use super::{AttentionOptions, Inputs, KvType, PageTable, Pages, Segment, Shape};
use crate::isa::Isa;
use crate::pool::{Parts, Pool};
use crate::simd::{Kernel, Simd, dispatch};

/// Query rows times query heads of one key head that go over the pages together: enough to reuse a
/// page from the first-level cache, few enough for their sums to stay there too.
const BLOCK_LINES: usize = 24;
/// Multiply-adds below which the calling thread works alone.
const PARALLEL_MIN: usize = 32 * 1024;

thread_local! {
    /// Sums and scores of a block; grows to the largest one this thread has seen.
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch::EMPTY) };
}

/// Attention of every row of every segment; `out` is `[capacity, heads, head_dim]`.
pub(super) fn paged_attention(
    out: &mut [f32],
    inputs: Inputs<'_>,
    table: PageTable<'_>,
    shape: &Shape,
    options: AttentionOptions,
) {
    let isa = Isa::current();
    let tokens = (BLOCK_LINES / (shape.heads / shape.kv_heads)).max(1);
    let blocks_of = |segment: &Segment| segment.len.div_ceil(tokens);
    let blocks: usize = table.segments.iter().map(blocks_of).sum();
    let pairs: usize = table.segments.iter().map(|s| s.len * (s.first_position + s.len)).sum();
    let out = Parts::new(out);
    let task = |index: usize| {
        // Long rows first: the last blocks of a segment see the most tokens.
        let (mut block, kv_head) = (blocks - 1 - index / shape.kv_heads, index % shape.kv_heads);
        for segment in table.segments {
            if block < blocks_of(segment) {
                let first = block * tokens;
                let rows = first..segment.len.min(first + tokens);
                let call =
                    Block { out: &out, inputs, table, shape, options, segment, rows, kv_head };
                return SCRATCH.with_borrow_mut(|scratch| match shape.kv_type {
                    KvType::F32 => dispatch(isa, Job::<false> { call, scratch }),
                    KvType::Int8 => dispatch(isa, Job::<true> { call, scratch }),
                });
            }
            block -= blocks_of(segment);
        }
    };
    let tasks = blocks * shape.kv_heads;
    match pairs * shape.heads * shape.head_dim < PARALLEL_MIN {
        true => (0..tasks).for_each(task),
        false => Pool::current(|pool| pool.run(tasks, task)),
    }
}

/// Some rows of a segment, and the query heads of one key head.
struct Block<'a> {
    out: &'a Parts<'a, f32>,
    inputs: Inputs<'a>,
    table: PageTable<'a>,
    shape: &'a Shape,
    options: AttentionOptions,
    segment: &'a Segment,
    rows: std::ops::Range<usize>,
    kv_head: usize,
}

/// `INT8` says that keys and values are in 8 bits.
struct Job<'a, const INT8: bool> {
    call: Block<'a>,
    scratch: &'a mut Scratch,
}

impl<const INT8: bool> Kernel for Job<'_, INT8> {
    type Output = ();

    const PRODUCTS: bool = INT8;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { call, scratch } = self;
        let (shape, tokens) = (call.shape, call.shape.page_tokens);
        let queries = shape.heads / shape.kv_heads;
        let widths = Widths {
            page_tokens: tokens,
            key_dim: shape.head_dim,
            value_dim: shape.head_dim,
            kv_type: shape.kv_type,
            match_values: false,
        };
        let mut lines = scratch.begin(call.rows.len() * queries, widths);
        call.load(&mut lines);
        if INT8 {
            // SAFETY: the caller's promise.
            unsafe { lines.round_queries::<S>() };
        }
        let first = call.first_token(call.rows.start);
        let last = call.segment.first_position + call.rows.end - 1;
        let pages = &call.table.pages[call.segment.first_page..];
        for index in first / tokens..=last / tokens {
            if index < last / tokens {
                call.blocks(pages[index + 1] as usize).prefetch();
            }
            let blocks = call.blocks(pages[index] as usize);
            let visible = |line: usize| {
                let row = call.rows.start + line / queries;
                let end = call.segment.first_position + row + 1;
                let start = index * tokens;
                let clip = |token: usize| token.saturating_sub(start).min(tokens);
                clip(call.first_token(row))..clip(end)
            };
            // SAFETY: the caller's promise.
            unsafe { lines.page::<S, INT8>(blocks, call.options.scale, &visible) };
        }
        call.store(&lines);
    }
}

impl Block<'_> {
    /// The keys and values of a page.
    fn blocks(&self, page: usize) -> Blocks<'_> {
        let start = self.shape.block(page, self.kv_head);
        let range = start..start + self.shape.block_len();
        match self.inputs.pages {
            Pages::F32 { keys, values } => {
                Blocks::F32 { keys: &keys[range.clone()], values: &values[range] }
            }
            Pages::Int8 { keys, values } => {
                Blocks::Int8 { keys: &keys[range.clone()], values: &values[range] }
            }
        }
    }

    /// The first token that row `row` of the segment sees.
    fn first_token(&self, row: usize) -> usize {
        let end = self.segment.first_position + row + 1;
        self.options.window.map_or(0, |window| end.saturating_sub(window))
    }

    /// Where the head of a line begins in the queries and in the output.
    fn start(&self, line: usize) -> usize {
        let queries = self.shape.heads / self.shape.kv_heads;
        let row = self.segment.first_row + self.rows.start + line / queries;
        let head = self.kv_head * queries + line % queries;
        (row * self.shape.heads + head) * self.shape.head_dim
    }

    /// Takes the queries of the block.
    fn load(&self, lines: &mut Lines<'_>) {
        for line in 0..lines.count {
            let query = &self.inputs.q[self.start(line)..][..self.shape.head_dim];
            lines.query_mut(line).copy_from_slice(query);
        }
    }

    /// Divides the sums of values by the sums of weights.
    fn store(&self, lines: &Lines<'_>) {
        for line in 0..lines.count {
            // SAFETY: each head of each row belongs to one block, and segments do not overlap.
            let out = unsafe { self.out.part(self.start(line), self.shape.head_dim) };
            let (values, weight) = lines.sums(line);
            for (out, value) in out.iter_mut().zip(values) {
                *out = value / weight;
            }
        }
    }
}
