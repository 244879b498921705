//! `write_kv` and `paged_attention` on GPUs: which lines a block has, and how a long context is split
//! over blocks. A line is a query head of a row, as on the CPU.

use candle_core::Tensor;

use super::{AttentionOptions, KvPages, KvSide, KvType, PageTable, Segment, Shape};
use crate::access::check;
use crate::error::Result;
use crate::gpu::{Call, Gpu, Grid, Language};

/// Lines of a block for rows that are few, as in decode, and for many: a page is read once for all
/// lines of a block.
pub(crate) const LINES: [usize; 2] = [8, 32];
/// Lines of a segment up to which they count as few.
const FEW_LINES_MAX: usize = 16;
/// Tokens of a split, from multiples of as many on: what a row has summed up starts anew there, and
/// its parts are merged in order. The same in every call, so that a row's bits are too.
pub(crate) const SPLIT_TOKENS: usize = 256;
/// Blocks that keep a GPU busy: with fewer, splits are blocks of their own.
const BLOCKS_ENOUGH: usize = 1024;
/// Most numbers of scratch of a call, 128 MiB; blocks beyond are another call.
const SCRATCH_MAX: usize = 32 << 20;
/// Elements of a head that a block has in shared memory at a time.
pub(crate) const CHUNK: usize = 64;
/// Threads of a block that writes keys and values, and of one that merges parts.
const THREADS: u32 = 128;
/// Heads that a block writes, one for each warp.
const HEADS_WRITTEN: usize = 4;

/// Writes rows of new keys and values into the pages.
pub(super) fn write_kv(
    gpu: Gpu,
    kv: KvPages<'_>,
    [k, v]: [&Tensor; 2],
    slots: &[u32],
    [keys, values]: [&Shape; 2],
) -> Result<()> {
    let mut call = Call::new("write_kv", gpu);
    match keys.kv_type {
        KvType::F32 => call.write::<f32>("keys", kv.keys)?.write::<f32>("values", kv.values)?,
        KvType::Int8 => call.write::<u32>("keys", kv.keys)?.write::<u32>("values", kv.values)?,
    };
    call.read::<f32>("k", k)?.read::<f32>("v", v)?.list(slots)?;
    call.size("slots", slots.len())?.size("keys", keys.kv_heads)?;
    call.size("keys", keys.page_tokens)?;
    call.size("keys", keys.head_dim)?.size("values", values.head_dim)?;
    let grid = Grid::row((2 * slots.len() * keys.kv_heads).div_ceil(HEADS_WRITTEN), THREADS);
    match keys.kv_type {
        // SAFETY: the parameters of the kernel; slots were checked against the pages, and each has a
        // row of `k` and `v`.
        KvType::F32 => unsafe { call.launch("write_kv_f32", grid) },
        KvType::Int8 => {
            call.size("keys", KvSide::Keys.group())?.size("values", KvSide::Values.group())?;
            // SAFETY: as above.
            unsafe { call.launch("write_kv_int8", grid) }
        }
    }
}

/// Attention of every row of every segment.
pub(super) fn paged_attention(
    gpu: Gpu,
    out: &Tensor,
    q: &Tensor,
    kv: KvPages<'_>,
    table: PageTable<'_>,
    (shape, options): (&Shape, AttentionOptions),
) -> Result<()> {
    const OP: &str = "paged_attention";
    check(OP, "keys", shape.head_dim <= 256, || {
        ("heads of at most 256".to_owned(), shape.head_dim.to_string())
    })?;
    let window = options.window.map_or(u32::MAX, |window| window.try_into().unwrap_or(u32::MAX));
    let plan = Plan {
        group: shape.heads / shape.kv_heads,
        kv_heads: shape.kv_heads,
        key_width: shape.head_dim.next_multiple_of(CHUNK),
        value_dim: shape.head_dim,
        chunks: shape.head_dim.div_ceil(CHUNK).next_power_of_two(),
        window,
        language: gpu.language(),
    };
    for run in plan.runs(table) {
        let mut call = Call::new(OP, gpu);
        call.write::<f32>("out", out)?.read::<f32>("q", q)?;
        match shape.kv_type {
            KvType::F32 => call.read::<f32>("keys", kv.keys)?.read::<f32>("values", kv.values)?,
            KvType::Int8 => call.read::<u32>("keys", kv.keys)?.read::<u32>("values", kv.values)?,
        };
        call.list(&run.items)?.list(table.pages)?.scratch(plan.scratch(&run));
        call.size("q", shape.heads)?.size("keys", shape.kv_heads)?;
        call.size("keys", shape.page_tokens)?.size("keys", shape.head_dim)?;
        call.real(options.scale).word(window);
        call.size("split", SPLIT_TOKENS)?.size("splits", run.splits)?;
        let few = run.lines == LINES[0];
        let merge =
            if few { "paged_attention_merge_8" } else { "paged_attention_merge_32" };
        // SAFETY: the parameters of the kernels; the table was checked against the tensors.
        unsafe { plan.launch(&call, &run, kernel(shape, few), merge)? };
    }
    Ok(())
}

/// The kernel for pages of these and blocks of few or many lines.
fn kernel(shape: &Shape, few: bool) -> &'static str {
    match (shape.kv_type, few, shape.head_dim.div_ceil(CHUNK)) {
        (KvType::F32, true, 1) => "paged_attention_f32_8_64",
        (KvType::F32, true, 2) => "paged_attention_f32_8_128",
        (KvType::F32, true, _) => "paged_attention_f32_8_256",
        (KvType::F32, false, 1) => "paged_attention_f32_32_64",
        (KvType::F32, false, 2) => "paged_attention_f32_32_128",
        (KvType::F32, false, _) => "paged_attention_f32_32_256",
        (KvType::Int8, true, 1) => "paged_attention_int8_8_64",
        (KvType::Int8, true, 2) => "paged_attention_int8_8_128",
        (KvType::Int8, true, _) => "paged_attention_int8_8_256",
        (KvType::Int8, false, 1) => "paged_attention_int8_32_64",
        (KvType::Int8, false, 2) => "paged_attention_int8_32_128",
        (KvType::Int8, false, _) => "paged_attention_int8_32_256",
    }
}

/// How lines are spread over blocks.
pub(crate) struct Plan {
    /// Query heads of a key head.
    pub(crate) group: usize,
    /// Heads of the keys.
    pub(crate) kv_heads: usize,
    /// Elements of a query in shared memory, whole chunks.
    pub(crate) key_width: usize,
    /// Elements of a value.
    pub(crate) value_dim: usize,
    /// Chunks of a value that the kernel is made for.
    pub(crate) chunks: usize,
    /// Tokens that one sees.
    pub(crate) window: u32,
    /// What the kernels are written in.
    pub(crate) language: Language,
}

/// Blocks of one size.
pub(crate) struct Run {
    /// Lines of a block, at most.
    pub(crate) lines: usize,
    /// For each block its segment's first row, first position and first page, its first line, and
    /// the number of its lines.
    pub(crate) items: Vec<u32>,
    /// Blocks over the splits of an item; one goes over all of them.
    pub(crate) splits: usize,
}

impl Plan {
    /// The runs of a step: first of segments with few lines, then of the others.
    pub(crate) fn runs(&self, table: PageTable<'_>) -> Vec<Run> {
        let [few, many] = [LINES[0], self.lines_max()];
        let mut blocks: [Vec<Block>; 2] = Default::default();
        for segment in table.segments {
            let total = segment.len * self.group;
            let which = usize::from(total > FEW_LINES_MAX && many > few);
            let lines = [few, many][which];
            let block = |first: usize| self.block(segment, first, lines.min(total - first));
            blocks[which].extend((0..total).step_by(lines).map(block));
        }
        // Those with the most tokens first, as far as one segment goes.
        blocks.iter_mut().for_each(|blocks| blocks.reverse());
        let [small, large] = blocks;
        let mut runs = self.split(&small, few);
        runs.extend(self.split(&large, many));
        runs
    }

    /// Numbers of scratch of a run.
    pub(crate) fn scratch(&self, run: &Run) -> usize {
        let blocks = run.items.len() / Block::WORDS;
        if run.splits == 1 { 0 } else { blocks * self.parts(run.lines, run.splits) }
    }

    /// Starts the kernels of a run.
    ///
    /// # Safety
    /// As for [`Call::launch`]; both kernels take the arguments of `call`.
    pub(crate) unsafe fn launch(
        &self,
        call: &Call<'_>,
        run: &Run,
        attention: &'static str,
        merge: &'static str,
    ) -> Result<()> {
        let items = run.items.len() / Block::WORDS;
        let threads = if run.lines == LINES[0] { 64 } else { 128 } << u32::from(self.chunks > 2);
        let grid = Grid::of([items, self.kv_heads, run.splits], threads);
        let queries = run.lines * self.key_width * size_of::<f32>();
        // SAFETY: the caller's promise.
        unsafe { call.launch(attention, grid.with_shared(queries))? };
        if run.splits == 1 {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe { call.launch(merge, Grid::of([items, self.kv_heads, run.lines], THREADS)) }
    }

    /// Most lines of a block: Metal has 32 KiB for their queries and a tile.
    fn lines_max(&self) -> usize {
        let fits = self.language == Language::Cuda || self.key_width <= 2 * CHUNK;
        if fits { LINES[1] } else { LINES[0] }
    }

    /// Numbers that an item leaves in scratch.
    fn parts(&self, lines: usize, splits: usize) -> usize {
        self.kv_heads * lines * splits * (self.value_dim + 2)
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

    /// Runs of blocks that leave no more in scratch than it holds.
    fn split(&self, blocks: &[Block], lines: usize) -> Vec<Run> {
        // A power of two: the grid stays the same for many steps.
        let splits = blocks.iter().map(|block| block.splits).max().unwrap_or(1).next_power_of_two();
        let few = blocks.len() * self.kv_heads < BLOCKS_ENOUGH;
        let splits = if few { splits } else { 1 };
        let per_run = match splits {
            1 => blocks.len(),
            _ => SCRATCH_MAX / self.parts(lines, splits),
        };
        let run = |blocks: &[Block]| Run {
            lines,
            items: blocks.iter().flat_map(|block| block.words).collect(),
            splits,
        };
        blocks.chunks(per_run.max(1)).map(run).collect()
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
