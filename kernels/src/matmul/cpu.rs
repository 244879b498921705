//! Matrix products on the CPU: panels and blocks of rows over all cores, tiles of rows inside. The
//! arithmetic is in `tile.rs`.

use std::ops::Range;

use super::tile::{Source, tile};
use super::{Matrix, Mode, PANEL, PRODUCTS_MAX, Quantized};
use crate::isa::Isa;
use crate::pool::{Parts, Pool};
use crate::simd::{Kernel, Simd, dispatch};

/// Rows that a task takes at most: their activations stay in the second-level cache while the
/// panels pass by.
const BLOCK_ROWS: usize = 128;
/// Bytes of weights that a task of few rows reads at least: a fork costs about as long as reading
/// them.
const TASK_BYTES: usize = 24 * 1024;
/// Tasks per thread with many rows: enough that the last one to finish is not waited for long.
const TASKS_PER_THREAD: usize = 8;

/// What all products of a call share.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    /// `[rows, cols]`.
    pub(super) x: &'a [f32],
    pub(super) quantized: Option<Quantized<'a>>,
    pub(super) rows: usize,
    pub(super) mode: Mode,
}

/// Where a product goes, `[rows, weight.rows()]`, and the products before it.
pub(super) struct Output<'a> {
    pub(super) out: Parts<'a, f32>,
    pub(super) weight: &'a Matrix,
    pub(super) before: Option<&'a Output<'a>>,
}

/// A product cut into tasks: blocks of rows times chunks of panels.
#[derive(Clone, Copy)]
struct Cut<'a> {
    output: &'a Output<'a>,
    source: Source<'a>,
    panels: usize,
    chunk: usize,
    blocks: usize,
}

/// All products up to `last`.
pub(super) fn matmuls(call: &Call<'_>, last: Option<&Output<'_>>) {
    let outputs = || std::iter::successors(last, |output| output.before);
    let panels_of = |output: &Output<'_>| output.weight.rows().div_ceil(PANEL);
    let panels: usize = outputs().map(panels_of).sum();
    if call.rows == 0 || panels == 0 {
        return;
    }
    let isa = Isa::current();
    Pool::current(|pool| {
        let blocks = call.rows.div_ceil(BLOCK_ROWS);
        let even = (panels * blocks).div_ceil(pool.threads() * TASKS_PER_THREAD);
        let mut cuts = [None; PRODUCTS_MAX];
        for (cut, output) in cuts.iter_mut().zip(outputs().filter(|output| panels_of(output) > 0)) {
            *cut = Some(Cut::new(call, output, even));
        }
        let tasks = cuts.iter().flatten().map(Cut::tasks).sum();
        pool.run(tasks, |mut index| {
            for cut in cuts.iter().flatten() {
                if index < cut.tasks() {
                    return cut.run(call, index, isa);
                }
                index -= cut.tasks();
            }
        });
    });
}

impl<'a> Cut<'a> {
    /// Tasks of `even` panels, or as many as are worth a fork.
    fn new(call: &Call<'a>, output: &'a Output<'a>, even: usize) -> Self {
        let panels = output.weight.rows().div_ceil(PANEL);
        let panel_bytes = output.weight.bytes() / panels;
        // Each row is worth as much as reading the panel again.
        let least = TASK_BYTES.div_ceil(panel_bytes.max(1) * call.rows.min(BLOCK_ROWS));
        Self {
            output,
            source: Source::new(output.weight, call.x, call.quantized),
            panels,
            chunk: least.max(even).clamp(1, panels),
            blocks: call.rows.div_ceil(BLOCK_ROWS),
        }
    }

    fn tasks(&self) -> usize {
        self.panels.div_ceil(self.chunk) * self.blocks
    }

    fn run(&self, call: &Call<'_>, index: usize, isa: Isa) {
        let chunks = self.panels.div_ceil(self.chunk);
        let (block, first) = (index / chunks, index % chunks * self.chunk);
        let first_row = block * BLOCK_ROWS;
        let task = Task {
            source: self.source,
            rows: first_row..call.rows.min(first_row + BLOCK_ROWS),
            panels: first..self.panels.min(first + self.chunk),
            out: &self.output.out,
            out_row: first_row,
            outputs: self.output.weight.rows(),
            mode: call.mode,
        };
        // SAFETY: tasks have panels or rows of their own, inside the call's.
        unsafe { task.run(isa) };
    }
}

/// Panels `panels` of a weight times rows in f32, `[rows, weight.cols()]`, on the calling thread;
/// writes their columns of `out`, `[rows, weight.rows()]`.
pub(crate) fn exact_panels(
    isa: Isa,
    out: &mut [f32],
    x: &[f32],
    weight: &Matrix,
    panels: Range<usize>,
) {
    let outputs = weight.rows();
    let rows = out.len() / outputs.max(1);
    assert!(x.len() >= rows * weight.cols() && panels.end <= outputs.div_ceil(PANEL));
    let task = Task {
        source: Source::new(weight, x, None),
        rows: 0..rows,
        panels,
        out: &Parts::new(out),
        out_row: 0,
        outputs,
        mode: Mode::Store,
    };
    // SAFETY: rows and panels exist, as was just checked, and `out` is this call's alone.
    unsafe { task.run(isa) };
}

/// Some panels of some rows.
pub(crate) struct Task<'a> {
    pub(crate) source: Source<'a>,
    /// Rows of the source.
    pub(crate) rows: Range<usize>,
    pub(crate) panels: Range<usize>,
    /// `[.., outputs]`.
    pub(crate) out: &'a Parts<'a, f32>,
    /// Row of `out` that the first of `rows` goes to; the others follow it.
    pub(crate) out_row: usize,
    /// Rows of the weight.
    pub(crate) outputs: usize,
    pub(crate) mode: Mode,
}

impl Task<'_> {
    /// Computes them.
    ///
    /// # Safety
    /// The source has the rows and the panels, `out` has the rows, and no other thread reads or
    /// writes these panels of these rows of `out` meanwhile.
    pub(crate) unsafe fn run(self, isa: Isa) {
        if self.source.is_quantized() {
            dispatch(isa, Job::<true>(self));
        } else {
            dispatch(isa, Job::<false>(self));
        }
    }
}

/// A task whose promises were made; `QUANTIZED` as its source is.
struct Job<'a, const QUANTIZED: bool>(Task<'a>);

impl<const QUANTIZED: bool> Kernel for Job<'_, QUANTIZED> {
    type Output = ();

    const PRODUCTS: bool = QUANTIZED;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for panel in self.0.panels.clone() {
            let mut row = self.0.rows.start;
            while row < self.0.rows.end {
                // SAFETY: the promises of the level's and of the task's caller.
                row += unsafe { self.0.tile::<S, QUANTIZED>(panel, row) };
            }
        }
    }
}

impl Task<'_> {
    /// Computes as many rows from `row` on as a tile holds; returns how many.
    #[inline(always)]
    unsafe fn tile<S: Simd, const QUANTIZED: bool>(&self, panel: usize, row: usize) -> usize {
        let left = self.rows.end - row;
        let planes = self.source.planes();
        let lines = (left * planes).min(S::TILE_ROWS.max(planes));
        let lines = 1 << lines.ilog2();
        let mut out = [[0.0; PANEL]; 8];
        // SAFETY: the caller's promise.
        unsafe { tile::<S, QUANTIZED>(self.source, panel, row * planes, lines, &mut out) };
        if planes == 2 {
            for index in 0..lines / 2 {
                for lane in 0..PANEL {
                    out[index][lane] = out[2 * index][lane] + out[2 * index + 1][lane];
                }
            }
        }
        self.put(panel, row, &out[..lines / planes])
    }

    /// Writes a tile's results; returns how many rows they are.
    #[inline(always)]
    fn put(&self, panel: usize, row: usize, tile: &[[f32; PANEL]]) -> usize {
        let width = PANEL.min(self.outputs - panel * PANEL);
        let first = self.out_row + row - self.rows.start;
        for (index, values) in tile.iter().enumerate() {
            let start = (first + index) * self.outputs + panel * PANEL;
            // SAFETY: the promise of the task's caller.
            let out = unsafe { self.out.part(start, width) };
            match self.mode {
                Mode::Store => out.copy_from_slice(&values[..width]),
                Mode::Add => out.iter_mut().zip(values).for_each(|(out, value)| *out += value),
            }
        }
        tile.len()
    }
}
