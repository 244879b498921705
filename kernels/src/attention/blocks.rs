//! How the lines of a step are spread over the blocks of a GPU, and a long context over several of
//! them. A line is a query head of a row, as on the CPU.

use super::{PageTable, Segment};
use crate::error::Result;
use crate::gpu::{Call, Grid, Language};

/// Tokens of a split, from multiples of as many on: what a row has summed up starts anew there, and
/// its parts are merged in order. The same in every call, so that a row's bits are too.
pub(crate) const SPLIT_TOKENS: usize = 256;
/// Elements of a head that a block has in shared memory at a time, in f32.
pub(crate) const CHUNK: usize = 64;
/// Blocks that keep a GPU busy: with fewer, splits are blocks of their own.
const BLOCKS_ENOUGH: usize = 512;
/// Most numbers of scratch of a call, 128 MiB; blocks beyond are another call.
const SCRATCH_MAX: usize = 32 << 20;
/// Threads of a block that merges the parts of a line.
const MERGE_THREADS: u32 = 128;

/// A size of blocks, and the kernels for it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Form {
    /// Lines of a block, at most. A page is read once for all of them.
    pub(crate) lines: usize,
    /// Threads of a block.
    pub(crate) threads: u32,
    /// Bytes of dynamic shared memory of a block.
    pub(crate) shared: usize,
    /// The kernel of attention.
    pub(crate) attention: &'static str,
    /// The kernel that merges parts.
    pub(crate) merge: &'static str,
}

/// The form of blocks of 8 or 32 lines in f32, with queries of `key_width` elements, whole chunks,
/// for values of `chunks` chunks.
pub(crate) fn form(
    lines: usize,
    key_width: usize,
    chunks: usize,
    [attention, merge]: [&'static str; 2],
) -> Form {
    let threads = if lines == 8 { 64 } else { 128 } << u32::from(chunks > 2);
    Form { lines, threads, shared: lines * key_width * size_of::<f32>(), attention, merge }
}

impl Form {
    /// Whether queries and a tile fit what Metal has for them; CUDA has enough.
    pub(crate) fn fits(&self, language: Language) -> bool {
        language == Language::Cuda || self.shared <= 32 * 2 * CHUNK * size_of::<f32>()
    }
}

/// What is the same for all blocks of a step.
pub(crate) struct Plan {
    /// Query heads of a key head.
    pub(crate) group: usize,
    /// Heads of the keys.
    pub(crate) kv_heads: usize,
    /// Elements of a value.
    pub(crate) value_dim: usize,
    /// Tokens that one sees.
    pub(crate) window: u32,
    /// Blocks of segments with few lines, and with many.
    pub(crate) forms: [Form; 2],
}

/// Blocks of one form.
pub(crate) struct Run {
    form: Form,
    /// For each block its segment's first row, first position and first page, its first line, and
    /// the number of its lines.
    pub(crate) items: Vec<u32>,
    /// Blocks over the splits of an item; one goes over all of them.
    pub(crate) splits: usize,
}

impl Plan {
    /// The runs of a step: first of segments with few lines, then of the others.
    pub(crate) fn runs(&self, table: PageTable<'_>) -> Vec<Run> {
        let few_max = 2 * self.forms[0].lines;
        let mut blocks: [Vec<Block>; 2] = Default::default();
        for segment in table.segments {
            let total = segment.len * self.group;
            let which = usize::from(total > few_max);
            let lines = self.forms[which].lines;
            let block = |first: usize| self.block(segment, first, lines.min(total - first));
            blocks[which].extend((0..total).step_by(lines).map(block));
        }
        let mut runs = Vec::new();
        for (blocks, form) in blocks.iter_mut().zip(self.forms) {
            // Those with the most tokens first, as far as one segment goes.
            blocks.reverse();
            self.split(blocks, form, &mut runs);
        }
        runs
    }

    /// Numbers of scratch of a run.
    pub(crate) fn scratch(&self, run: &Run) -> usize {
        match run.splits {
            1 => 0,
            splits => run.items.len() / Block::WORDS * self.parts(&run.form, splits),
        }
    }

    /// Starts the kernels of a run.
    ///
    /// # Safety
    /// As for [`Call::launch`]; both kernels take the arguments of `call`.
    pub(crate) unsafe fn launch(&self, call: &Call<'_>, run: &Run) -> Result<()> {
        let Form { lines, threads, shared, attention, merge } = run.form;
        let items = run.items.len() / Block::WORDS;
        let grid = Grid::of([items, self.kv_heads, run.splits], threads);
        // SAFETY: the caller's promise.
        unsafe { call.launch(attention, grid.with_shared(shared))? };
        if run.splits == 1 {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe { call.launch(merge, Grid::of([items, self.kv_heads, lines], MERGE_THREADS)) }
    }

    /// Numbers that an item leaves in scratch: of each part the sums, the maximum and the sum of the
    /// weights.
    fn parts(&self, form: &Form, splits: usize) -> usize {
        self.kv_heads * form.lines * splits * (self.value_dim + 2)
    }

    fn block(&self, segment: &Segment, first_line: usize, lines: usize) -> Block {
        let position = |line: usize| segment.first_position + line / self.group;
        let seen = (position(first_line) + 1).saturating_sub(self.window as usize);
        let last = position(first_line + lines - 1);
        let numbers =
            [segment.first_row, segment.first_position, segment.first_page, first_line, lines];
        Block {
            // Rows, positions and table entries that exist, of tensors and lists that do.
            words: numbers.map(|number| number as u32),
            splits: last / SPLIT_TOKENS - seen / SPLIT_TOKENS + 1,
        }
    }

    /// Adds runs of blocks that leave no more in scratch than it holds.
    fn split(&self, blocks: &[Block], form: Form, runs: &mut Vec<Run>) {
        // A power of two: the grid stays the same for many steps.
        let most = blocks.iter().map(|block| block.splits).max().unwrap_or(1).next_power_of_two();
        let splits = if blocks.len() * self.kv_heads < BLOCKS_ENOUGH { most } else { 1 };
        let per_run = match splits {
            1 => blocks.len(),
            _ => SCRATCH_MAX / self.parts(&form, splits),
        };
        for blocks in blocks.chunks(per_run.max(1)) {
            let items = blocks.iter().flat_map(|block| block.words).collect();
            runs.push(Run { form, items, splits });
        }
    }
}

/// What one block works on.
struct Block {
    words: [u32; Block::WORDS],
    /// Splits in which there are tokens that its lines see.
    splits: usize,
}

impl Block {
    const WORDS: usize = 5;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(window: u32) -> Plan {
        let form = |lines| form(lines, CHUNK, 1, ["attention", "merge"]);
        Plan { group: 4, kv_heads: 2, value_dim: 64, window, forms: [form(8), form(32)] }
    }

    fn runs(plan: &Plan, segments: &[(usize, usize)]) -> Vec<(usize, usize, Vec<u32>)> {
        let mut first_row = 0;
        let segment = |(first_position, len): &(usize, usize)| {
            let segment = Segment {
                first_row,
                len: *len,
                first_position: *first_position,
                ..Segment::default()
            };
            first_row += len;
            segment
        };
        let segments: Vec<Segment> = segments.iter().map(segment).collect();
        let runs = plan.runs(PageTable { segments: &segments, pages: &[] });
        runs.into_iter().map(|run| (run.form.lines, run.splits, run.items)).collect()
    }

    #[test]
    fn each_line_has_one_block_of_the_form_for_its_segment() {
        let found = runs(&plan(u32::MAX), &[(10, 3), (0, 0), (0, 9)]);
        let few = vec![0, 10, 0, 8, 4, 0, 10, 0, 0, 8];
        let many = vec![3, 0, 0, 32, 4, 3, 0, 0, 0, 32];
        assert_eq!(found, [(8, 1, few), (32, 1, many)]);
    }

    #[test]
    fn splits_count_from_the_first_token_that_is_seen() {
        let splits = |window, position| runs(&plan(window), &[(position, 1)])[0].1;
        assert_eq!(splits(u32::MAX, SPLIT_TOKENS - 1), 1);
        assert_eq!(splits(u32::MAX, SPLIT_TOKENS), 2);
        assert_eq!(splits(u32::MAX, 5 * SPLIT_TOKENS), 8);
        assert_eq!(splits(2, 5 * SPLIT_TOKENS), 2);
        assert_eq!(splits(1, 5 * SPLIT_TOKENS), 1);
    }

    #[test]
    fn many_blocks_go_over_all_splits_and_few_leave_no_more_than_scratch_holds() {
        let all = runs(&plan(u32::MAX), &[(100_000, 4 * BLOCKS_ENOUGH)]);
        assert_eq!(all.iter().map(|run| run.1).collect::<Vec<_>>(), [1]);
        let plan = plan(u32::MAX);
        let table = [Segment { len: 80, first_position: 1_000_000, ..Segment::default() }];
        let runs = plan.runs(PageTable { segments: &table, pages: &[] });
        assert!(runs.len() > 1 && runs.iter().all(|run| plan.scratch(run) <= SCRATCH_MAX));
        let blocks: usize = runs.iter().map(|run| run.items.len() / Block::WORDS).sum();
        assert_eq!(blocks, 10);
    }
}
