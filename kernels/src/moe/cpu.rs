//! Experts on the CPU: blocks of pairs of one expert times runs of its panels, all in one fork; the
//! arithmetic is that of `matmul`.

use std::cell::RefCell;
use std::ops::Range;

use super::gather::Gathered;
use super::lists::{Block, HostLists};
use super::{BLOCK_PAIRS, PairInput};
use crate::isa::Isa;
use crate::matmul::{Matrix, Mode, PANEL, Quantized, Source, Task};
use crate::pool::{Parts, Pool};
use crate::simd::{Kernel, LANES, Simd, dispatch};

/// Bytes of weights that a task of one pair reads at least: a fork costs about as long as reading
/// them.
const TASK_BYTES: usize = 24 * 1024;
/// Panels that a task of several pairs takes at least, so that the products are worth the gathering.
const GATHER_PANELS: usize = 8;
/// Tasks per thread with many pairs: enough that the last one to finish is not waited for long.
const TASKS_PER_THREAD: usize = 8;
/// Elements that a task of `combine` adds up at least.
const COMBINE_MIN: usize = 16 * 1024;

thread_local! {
    /// What this thread gathered for the task it is at.
    static GATHERED: RefCell<Gathered> = const { RefCell::new(Gathered::EMPTY) };
}

/// Activations, and what their rows belong to.
#[derive(Clone, Copy)]
pub(super) struct Input<'a> {
    pub(super) x: &'a [f32],
    pub(super) quantized: Option<Quantized<'a>>,
    pub(super) input: PairInput,
}

/// Where the results with a stack of experts go, `[pairs, outputs]`, and the stacks before it.
pub(super) struct Output<'a> {
    pub(super) out: Parts<'a, f32>,
    pub(super) experts: &'a [Matrix],
    pub(super) before: Option<&'a Output<'a>>,
}

impl<'a> Output<'a> {
    /// This one and those before it.
    fn all(&'a self) -> impl Iterator<Item = &'a Self> {
        std::iter::successors(Some(self), |output| output.before)
    }
}

/// The products of all pairs with the stacks up to `last`.
pub(super) fn expert_matmuls(x: Input<'_>, lists: &HostLists, last: &Output<'_>) {
    let blocks = lists.blocks();
    let Some(first) = blocks.first() else { return };
    let largest = |output: &Output<'_>| {
        let expert = &output.experts[first.expert as usize];
        (expert.rows().div_ceil(PANEL), expert.bytes())
    };
    let panels = last.all().map(|output| largest(output).0).max().unwrap_or(0);
    if panels == 0 {
        return;
    }
    let isa = Isa::current();
    Pool::current(|pool| {
        let pairs = lists.len().div_ceil(blocks.len());
        let bytes = last.all().map(|output| largest(output).1).sum::<usize>() / panels;
        let least = TASK_BYTES.div_ceil(bytes.max(1) * pairs);
        let least = if pairs > 1 { least.max(GATHER_PANELS) } else { least };
        let even = (panels * blocks.len()).div_ceil(pool.threads() * TASKS_PER_THREAD);
        let chunk = least.max(even).clamp(1, panels);
        let chunks = panels.div_ceil(chunk);
        pool.run(chunks * blocks.len(), |index| {
            let (block, first) = (&blocks[index / chunks], index % chunks * chunk);
            Work { last, block, panels: first..first + chunk, lists }.run(isa, x);
        });
    });
}

/// Some panels of an expert of each stack for a block of its pairs.
struct Work<'a> {
    last: &'a Output<'a>,
    block: &'a Block,
    /// May end behind an expert's.
    panels: Range<usize>,
    lists: &'a HostLists,
}

impl Work<'_> {
    fn run(&self, isa: Isa, x: Input<'_>) {
        let pairs = self.pairs();
        let rows = &self.lists.pair_rows()[pairs.clone()];
        let in_place = match x.input {
            PairInput::Pairs => Some(pairs),
            PairInput::Rows => consecutive(rows),
        };
        if let Some(rows) = in_place {
            return self.multiply(isa, x.x, x.quantized, rows);
        }
        GATHERED.with_borrow_mut(|gathered| {
            let experts = || self.last.all().map(|output| &output.experts[self.expert()]);
            let cols = experts().map(Matrix::cols).next().unwrap_or(0);
            let integers = |expert: &Matrix| x.quantized.is_some() && expert.integers().is_some();
            let quantized = x.quantized.filter(|_| experts().any(integers));
            let exact = !experts().all(integers);
            let (exact, quantized) = gathered.rows(exact.then_some((x.x, cols)), quantized, rows);
            self.multiply(isa, exact, quantized, 0..rows.len());
        });
    }

    /// Multiplies `rows` of `x`, which are those of the block's pairs.
    fn multiply(&self, isa: Isa, x: &[f32], quantized: Option<Quantized<'_>>, rows: Range<usize>) {
        for output in self.last.all() {
            let weight = &output.experts[self.expert()];
            let end = self.panels.end.min(weight.rows().div_ceil(PANEL));
            let task = Task {
                source: Source::new(weight, x, quantized),
                rows: rows.clone(),
                panels: self.panels.start.min(end)..end,
                out: &output.out,
                out_row: self.block.first as usize,
                outputs: weight.rows(),
                mode: Mode::Store,
            };
            // SAFETY: the rows exist and are as many as the block's pairs, whose panels no other
            // task writes.
            unsafe { task.run(isa) };
        }
    }

    fn expert(&self) -> usize {
        self.block.expert as usize
    }

    fn pairs(&self) -> Range<usize> {
        self.block.first as usize..(self.block.first + self.block.len) as usize
    }
}

/// The range that rows are, if they follow each other.
fn consecutive(rows: &[u32]) -> Option<Range<usize>> {
    debug_assert!((1..=BLOCK_PAIRS).contains(&rows.len()), "blocks are neither empty nor longer");
    let first = rows[0] as usize;
    let follow = rows.iter().zip(first..).all(|(row, expected)| *row as usize == expected);
    follow.then(|| first..first + rows.len())
}

/// Adds the weighted results of each row's experts to `out`, `[rows, dim]`.
pub(super) fn combine(out: &mut [f32], y: &[f32], lists: &HostLists) {
    let dim = out.len() / lists.rows().max(1);
    if dim == 0 {
        return;
    }
    let isa = Isa::current();
    let per_task = COMBINE_MIN.div_ceil(dim);
    Pool::current(|pool| {
        pool.run_chunks(out, per_task * dim, |index, out| {
            for (offset, out) in out.chunks_exact_mut(dim).enumerate() {
                let row = index * per_task + offset;
                let (pairs, weights) = lists.weighted_pairs(row);
                dispatch(isa, Combine { out, y, pairs, weights });
            }
        });
    });
}

/// One row, its pairs and their weights.
struct Combine<'a> {
    out: &'a mut [f32],
    y: &'a [f32],
    pairs: &'a [u32],
    weights: &'a [f32],
}

impl Kernel for Combine<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let dim = self.out.len();
        let whole = dim - dim % LANES;
        let choices = || self.pairs.iter().map(|pair| *pair as usize * dim).zip(self.weights);
        // SAFETY: the caller's promise; `start + 16 <= whole <= dim`, and `y` has a row of `dim`
        // elements for each pair.
        unsafe {
            for start in (0..whole).step_by(LANES) {
                let mut sum = S::splat(0.0);
                for (pair, weight) in choices() {
                    let y = S::load(self.y[pair..][..dim].as_ptr().add(start));
                    sum = S::add(sum, S::mul(S::splat(*weight), y));
                }
                let out = self.out.as_mut_ptr().add(start);
                S::store(out, S::add(S::load(out), sum));
            }
        }
        for i in whole..dim {
            let mut sum = 0.0;
            for (pair, weight) in choices() {
                sum += weight * self.y[pair + i];
            }
            self.out[i] += sum;
        }
    }
}
