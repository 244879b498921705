//! `head_matmul` on the CPU: tasks of some rows, some panels and one head, whose rows are gathered for
//! the arithmetic of `matmul` and scattered again.

use std::cell::RefCell;

use crate::isa::Isa;
use crate::matmul::{Matrix, PANEL, exact_panels};
use crate::pool::{Parts, Pool};

/// Rows that a task takes at most: what is gathered stays in the second-level cache.
const BLOCK_ROWS: usize = 32;
/// Bytes of weights that a task of one row reads at least: a fork costs about as long as reading
/// them.
const TASK_BYTES: usize = 24 * 1024;

thread_local! {
    /// Rows of one head, and their results; grows to the largest block this thread has seen.
    static SCRATCH: RefCell<[Vec<f32>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

/// `out` is `[rows, heads, outputs]`, `x` is `[rows, heads, inputs]`.
pub(super) fn head_matmul(out: &mut [f32], x: &[f32], weights: &[Matrix], rows: usize) {
    let panels = weights[0].rows().div_ceil(PANEL);
    if out.is_empty() || x.is_empty() {
        return out.fill(0.0);
    }
    let isa = Isa::current();
    let blocks = rows.div_ceil(BLOCK_ROWS);
    let panel_bytes = (weights[0].bytes() / panels).max(1);
    let chunk = TASK_BYTES.div_ceil(panel_bytes * rows.min(BLOCK_ROWS)).min(panels);
    let chunks = panels.div_ceil(chunk);
    let out = Parts::new(out);
    let task = |index: usize| {
        let (block, rest) = (index / (chunks * weights.len()), index % (chunks * weights.len()));
        let first = rest % chunks * chunk;
        let call = Call {
            out: &out,
            x,
            weights,
            head: rest / chunks,
            panels: first..panels.min(first + chunk),
            rows: block * BLOCK_ROWS..rows.min((block + 1) * BLOCK_ROWS),
        };
        SCRATCH.with_borrow_mut(|scratch| call.run(isa, scratch));
    };
    Pool::current(|pool| pool.run(blocks * weights.len() * chunks, task));
}

/// Some panels of one head for some rows.
struct Call<'a> {
    out: &'a Parts<'a, f32>,
    x: &'a [f32],
    weights: &'a [Matrix],
    head: usize,
    panels: std::ops::Range<usize>,
    rows: std::ops::Range<usize>,
}

impl Call<'_> {
    fn run(&self, isa: Isa, [gathered, results]: &mut [Vec<f32>; 2]) {
        let (heads, weight) = (self.weights.len(), &self.weights[self.head]);
        let (inputs, outputs) = (weight.cols(), weight.rows());
        gathered.clear();
        for row in self.rows.clone() {
            gathered.extend_from_slice(&self.x[(row * heads + self.head) * inputs..][..inputs]);
        }
        let len = self.rows.len() * outputs;
        if results.len() < len {
            results.resize(len, 0.0);
        }
        exact_panels(isa, &mut results[..len], gathered, weight, self.panels.clone());
        let columns = self.panels.start * PANEL..outputs.min(self.panels.end * PANEL);
        for (row, results) in self.rows.clone().zip(results.chunks_exact(outputs)) {
            let start = (row * heads + self.head) * outputs + columns.start;
            // SAFETY: each panel of each head of each row belongs to one task.
            let out = unsafe { self.out.part(start, columns.len()) };
            out.copy_from_slice(&results[columns.clone()]);
        }
    }
}
