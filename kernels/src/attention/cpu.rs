//! Attention on the CPU: blocks of query rows that share a key head, page by page with an online
//! softmax (Milakov and Gimelshein, 2018), over all cores. The loops over a page are in `page`.
//!
//! What a row has summed up starts anew every [`SPLIT_TOKENS`] tokens, and the parts are merged in
//! order, so that a few rows over many tokens can be spread over cores (as in Flash-Decoding, Dao et
//! al., 2023) with the bits that one core gives.

use std::cell::RefCell;
use std::ops::Range;

use super::page::{Blocks, Lines, Part, Scratch, Widths};
use super::{AttentionOptions, Inputs, KvSide, KvType, PageTable, Pages, Segment, Shape};
use crate::isa::Isa;
use crate::pool::{Parts, Pool};
use crate::simd::{Kernel, Simd, dispatch};

/// Query rows times query heads of one key head that go over the pages together: enough to reuse a
/// page from the first-level cache, few enough for their sums to stay there too.
const BLOCK_LINES: usize = 24;
/// Multiply-adds below which the calling thread works alone.
const PARALLEL_MIN: usize = 32 * 1024;
/// Tokens of a part, from a multiple of as many on; whole pages, at least one.
const SPLIT_TOKENS: usize = 512;
/// Tasks for each thread below which parts are tasks of their own.
const TASKS_MIN: usize = 4;
/// Most numbers of parts that are kept at a time: 16 MiB.
const PARTS_MAX: usize = 4 << 20;

thread_local! {
    /// Sums and scores of a block; grows to the largest one this thread has seen.
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch::EMPTY) };
    /// Parts of a few rows, `[lines, splits, head_dim + 2]`; grows to the longest rows seen, at most
    /// [`PARTS_MAX`].
    static PARTS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Attention of every row of every segment; `out` is `[capacity, heads, head_dim]`.
pub(super) fn paged_attention(
    out: &mut [f32],
    inputs: Inputs<'_>,
    table: PageTable<'_>,
    shape: &Shape,
    options: AttentionOptions,
) {
    let call = Call { out: Parts::new(out), inputs, table, shape, options, isa: Isa::current() };
    let blocks = table.segments.iter().map(|segment| call.blocks_of(segment)).sum::<usize>();
    let tasks = blocks * shape.kv_heads;
    let pairs: usize = table.segments.iter().map(|s| s.len * (s.first_position + s.len)).sum();
    if pairs * shape.heads * shape.head_dim < PARALLEL_MIN {
        return (0..tasks).for_each(|task| call.run(&call.block(blocks, task), None));
    }
    Pool::current(|pool| {
        let lines: usize = table.segments.iter().map(|segment| segment.len * shape.heads).sum();
        let splits = table.segments.iter().map(|segment| call.splits_of(segment)).max();
        let splits = splits.unwrap_or(0);
        let numbers = lines * splits * call.part_len();
        let few = tasks < TASKS_MIN * pool.threads();
        if pool.threads() == 1 || splits < 2 || !few || numbers > PARTS_MAX {
            return pool.run(tasks, |task| call.run(&call.block(blocks, task), None));
        }
        PARTS.with_borrow_mut(|parts| {
            if parts.len() < numbers {
                parts.resize(numbers, 0.0);
            }
            let to = PartTable { numbers: Parts::new(&mut parts[..numbers]), splits };
            pool.run(tasks * splits, |task| {
                let block = call.block(blocks, task / splits);
                call.run(&block, Some((&to, task % splits)));
            });
            pool.run(tasks, |task| call.merge(&call.block(blocks, task), &to));
        });
    });
}

/// Where tasks leave parts.
struct PartTable<'a> {
    numbers: Parts<'a, f32>,
    /// Parts of a line, at most.
    splits: usize,
}

/// What all tasks of a call share.
struct Call<'a> {
    out: Parts<'a, f32>,
    inputs: Inputs<'a>,
    table: PageTable<'a>,
    shape: &'a Shape,
    options: AttentionOptions,
    isa: Isa,
}

/// Some rows of a segment, and the query heads of one key head.
struct Block<'a> {
    segment: &'a Segment,
    rows: Range<usize>,
    kv_head: usize,
    /// Rows of the segments before.
    rows_before: usize,
}

impl<'a> Call<'a> {
    /// Query heads of a key head.
    fn queries(&self) -> usize {
        self.shape.heads / self.shape.kv_heads
    }

    /// Rows of a block.
    fn block_rows(&self) -> usize {
        (BLOCK_LINES / self.queries()).max(1)
    }

    fn blocks_of(&self, segment: &Segment) -> usize {
        segment.len.div_ceil(self.block_rows())
    }

    /// Pages of a part.
    fn split_pages(&self) -> usize {
        (SPLIT_TOKENS / self.shape.page_tokens).max(1)
    }

    /// Numbers of a part: sums of values, sum of weights, largest score.
    fn part_len(&self) -> usize {
        self.shape.head_dim + 2
    }

    /// Parts of the longest block of a segment, at most.
    fn splits_of(&self, segment: &Segment) -> usize {
        let part_tokens = self.split_pages() * self.shape.page_tokens;
        let all = (segment.first_position + segment.len).div_ceil(part_tokens);
        // A window may begin anywhere in its first part.
        let in_window = |window: usize| {
            window.saturating_add(self.block_rows()).div_ceil(part_tokens).saturating_add(1)
        };
        self.options.window.map_or(all, |window| in_window(window).min(all))
    }

    /// Block `task` of all; the last ones of a segment, which see the most tokens, come first.
    fn block(&self, blocks: usize, task: usize) -> Block<'a> {
        let mut index = blocks - 1 - task / self.shape.kv_heads;
        let kv_head = task % self.shape.kv_heads;
        let mut rows_before = 0;
        for segment in self.table.segments {
            let count = self.blocks_of(segment);
            if index < count {
                let first = index * self.block_rows();
                let rows = first..segment.len.min(first + self.block_rows());
                return Block { segment, rows, kv_head, rows_before };
            }
            index -= count;
            rows_before += segment.len;
        }
        unreachable!("there are as many blocks as were counted")
    }

    /// Computes a block, or one part of it.
    fn run(&self, block: &Block<'_>, part: Option<(&PartTable<'_>, usize)>) {
        SCRATCH.with_borrow_mut(|scratch| match self.shape.kv_type {
            KvType::F32 => dispatch(self.isa, Job::<false> { call: self, block, part, scratch }),
            KvType::Int8 => dispatch(self.isa, Job::<true> { call: self, block, part, scratch }),
        });
    }

    /// The pages that rows of a block see.
    fn pages(&self, block: &Block<'_>) -> Range<usize> {
        let tokens = self.shape.page_tokens;
        let last = block.segment.first_position + block.rows.end - 1;
        self.first_token(block.segment, block.rows.start) / tokens..last / tokens + 1
    }

    /// The keys and values of a page.
    fn blocks(&self, page: u32, kv_head: usize) -> Blocks<'a> {
        let range = |side| {
            let start = self.shape.block(side, page as usize, kv_head);
            start..start + self.shape.block_len(side)
        };
        let (of_keys, of_values) = (range(KvSide::Keys), range(KvSide::Values));
        match self.inputs.pages {
            Pages::F32 { keys, values } => {
                Blocks::F32 { keys: &keys[of_keys], values: &values[of_values] }
            }
            Pages::Int8 { keys, values } => {
                Blocks::Int8 { keys: &keys[of_keys], values: &values[of_values] }
            }
        }
    }

    /// The first token that row `row` of a segment sees.
    fn first_token(&self, segment: &Segment, row: usize) -> usize {
        let end = segment.first_position + row + 1;
        self.options.window.map_or(0, |window| end.saturating_sub(window))
    }

    /// Where the head of a line begins in the queries and in the output.
    fn start(&self, block: &Block<'_>, line: usize) -> usize {
        let row = block.segment.first_row + block.rows.start + line / self.queries();
        let head = block.kv_head * self.queries() + line % self.queries();
        (row * self.shape.heads + head) * self.shape.head_dim
    }

    /// Where a part of a line begins.
    fn part_start(&self, block: &Block<'_>, line: usize, splits: usize, split: usize) -> usize {
        let row = block.rows_before + block.rows.start + line / self.queries();
        let head = block.kv_head * self.queries() + line % self.queries();
        ((row * self.shape.heads + head) * splits + split) * self.part_len()
    }

    /// Divides the sums of values by the sum of weights.
    fn store(&self, block: &Block<'_>, line: usize, total: Part<'_>) {
        // SAFETY: each head of each row belongs to one block, and segments do not overlap.
        let out = unsafe { self.out.part(self.start(block, line), self.shape.head_dim) };
        for (out, value) in out.iter_mut().zip(total.values) {
            *out = value / total.weight;
        }
    }

    /// Adds up the parts of a block, in order.
    fn merge(&self, block: &Block<'_>, from: &PartTable<'_>) {
        let count = self.split_range(block).len();
        SCRATCH.with_borrow_mut(|scratch| {
            let lines = block.rows.len() * self.queries();
            let mut lines = scratch.begin(lines, self.widths());
            for line in 0..lines.count {
                for split in 0..count {
                    let start = self.part_start(block, line, from.splits, split);
                    // SAFETY: the tasks that wrote parts are done; this one alone reads the line's.
                    let part = unsafe { from.numbers.part(start, self.part_len()) };
                    let (values, [weight, largest]) = part.split_last_chunk().expect("has both");
                    lines.add_part(line, Part { values, weight: *weight, largest: *largest });
                }
                self.store(block, line, lines.total(line));
            }
        });
    }

    /// The parts that rows of a block see, counted from the first token of the sequence.
    fn split_range(&self, block: &Block<'_>) -> Range<usize> {
        let (pages, per) = (self.pages(block), self.split_pages());
        pages.start / per..pages.end.div_ceil(per)
    }

    fn widths(&self) -> Widths {
        Widths {
            page_tokens: self.shape.page_tokens,
            key_dim: self.shape.head_dim,
            value_dim: self.shape.head_dim,
            kv_type: self.shape.kv_type,
            match_values: false,
        }
    }
}

/// `INT8` says that keys and values are in 8 bits.
struct Job<'a, const INT8: bool> {
    call: &'a Call<'a>,
    block: &'a Block<'a>,
    /// Only this part of the tokens, and where it goes.
    part: Option<(&'a PartTable<'a>, usize)>,
    scratch: &'a mut Scratch,
}

impl<const INT8: bool> Kernel for Job<'_, INT8> {
    type Output = ();

    const PRODUCTS: bool = INT8;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { call, block, part, scratch } = self;
        let (seen, per) = (call.pages(block), call.split_pages());
        let splits = call.split_range(block);
        let splits = match part {
            Some((_, split)) if splits.start + split >= splits.end => return,
            Some((_, split)) => splits.start + split..splits.start + split + 1,
            None => splits,
        };
        let last_page = seen.end.min(splits.end * per) - 1;
        let mut lines = scratch.begin(block.rows.len() * call.queries(), call.widths());
        for line in 0..lines.count {
            let query = &call.inputs.q[call.start(block, line)..][..call.shape.head_dim];
            lines.query_mut(line).copy_from_slice(query);
        }
        if INT8 {
            // SAFETY: the caller's promise.
            unsafe { lines.round_queries::<S>() };
        }
        for split in splits {
            let pages = seen.start.max(split * per)..seen.end.min((split + 1) * per);
            // SAFETY: the caller's promise.
            unsafe { add_pages::<S, INT8>(&mut lines, call, block, pages, last_page) };
            match part {
                Some((to, split)) => leave(&lines, call, block, to, split),
                None => lines.end_part(),
            }
        }
        if part.is_none() {
            (0..lines.count).for_each(|line| call.store(block, line, lines.total(line)));
        }
    }
}

/// Adds pages of a block's sequence to its lines; `last_page` is the last that will be added.
#[inline(always)]
unsafe fn add_pages<S: Simd, const INT8: bool>(
    lines: &mut Lines<'_>,
    call: &Call<'_>,
    block: &Block<'_>,
    pages: Range<usize>,
    last_page: usize,
) {
    let (tokens, queries) = (call.shape.page_tokens, call.queries());
    let numbers = &call.table.pages[block.segment.first_page..];
    for index in pages {
        let blocks = |index: usize| call.blocks(numbers[index], block.kv_head);
        let next = (index < last_page).then(|| blocks(index + 1));
        let visible = |line: usize| {
            let row = block.rows.start + line / queries;
            let end = block.segment.first_position + row + 1;
            let start = index * tokens;
            let clip = |token: usize| token.saturating_sub(start).min(tokens);
            clip(call.first_token(block.segment, row))..clip(end)
        };
        // SAFETY: the caller's promise.
        unsafe { lines.page::<S, INT8>(blocks(index), next, call.options.scale, &visible) };
    }
}

/// Leaves a part of every line for the merge.
fn leave(lines: &Lines<'_>, call: &Call<'_>, block: &Block<'_>, to: &PartTable<'_>, split: usize) {
    for line in 0..lines.count {
        let start = call.part_start(block, line, to.splits, split);
        // SAFETY: each part of each line of each block is one task's.
        let into = unsafe { to.numbers.part(start, call.part_len()) };
        let Part { values, weight, largest } = lines.sums(line);
        into[..values.len()].copy_from_slice(values);
        into[values.len()..].copy_from_slice(&[weight, largest]);
    }
}
