//! Matrix products on the CPU: panels and blocks of rows over all cores, tiles of rows inside. The
//! arithmetic is in `tile.rs`.

use super::tile::{Source, tile};
use super::{Matrix, Mode, PANEL, Packed, Quantized};
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

/// One matmul.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    /// `[rows, cols]`.
    pub(super) x: &'a [f32],
    pub(super) quantized: Option<Quantized<'a>>,
    pub(super) rows: usize,
    pub(super) weight: &'a Matrix,
    pub(super) mode: Mode,
}

/// `out`, `[rows, weight.rows()]`.
pub(super) fn matmul(out: &mut [f32], call: &Call<'_>) {
    if call.rows == 0 || call.weight.rows() == 0 {
        return;
    }
    let isa = Isa::current();
    let panels = call.weight.rows().div_ceil(PANEL);
    let blocks = call.rows.div_ceil(BLOCK_ROWS);
    let out = Parts::new(out);
    Pool::current(|pool| {
        let panel_bytes = call.weight.bytes() / panels;
        // Each row is worth as much as reading the panel again.
        let least = TASK_BYTES.div_ceil(panel_bytes.max(1) * call.rows.min(BLOCK_ROWS));
        let even = (panels * blocks).div_ceil(pool.threads() * TASKS_PER_THREAD);
        let chunk = least.max(even).clamp(1, panels);
        let chunks = panels.div_ceil(chunk);
        pool.run(chunks * blocks, |index| {
            let (block, first) = (index / chunks, index % chunks * chunk);
            dispatch(
                isa,
                Task {
                    call,
                    out: &out,
                    panels: first..panels.min(first + chunk),
                    rows: block * BLOCK_ROWS..call.rows.min((block + 1) * BLOCK_ROWS),
                },
            );
        });
    });
}

/// Some panels of some rows.
struct Task<'a> {
    call: &'a Call<'a>,
    out: &'a Parts<'a, f32>,
    panels: std::ops::Range<usize>,
    rows: std::ops::Range<usize>,
}

impl Kernel for Task<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for panel in self.panels.clone() {
            let mut row = self.rows.start;
            while row < self.rows.end {
                // SAFETY: the caller's promise; rows and panels lie inside the call's.
                row += unsafe { self.tile::<S>(panel, row) };
            }
        }
    }
}

impl Task<'_> {
    /// Computes as many rows from `row` on as a tile holds; returns how many.
    #[inline(always)]
    unsafe fn tile<S: Simd>(&self, panel: usize, row: usize) -> usize {
        let call = self.call;
        let left = self.rows.end - row;
        // SAFETY: the caller's promise.
        unsafe {
            match (&call.weight.packed, call.quantized) {
                (Packed::Affine(weight), Some(x)) => {
                    let planes = (left * x.planes).min(S::TILE_ROWS.max(x.planes));
                    let planes = 1 << planes.ilog2();
                    let mut out = [[0.0; PANEL]; 8];
                    tile::<S>(
                        Source::Quantized { x, weight },
                        panel,
                        row * x.planes,
                        planes,
                        &mut out,
                    );
                    if x.planes == 2 {
                        for index in 0..planes / 2 {
                            for lane in 0..PANEL {
                                out[index][lane] = out[2 * index][lane] + out[2 * index + 1][lane];
                            }
                        }
                    }
                    self.put(panel, row, &out[..planes / x.planes])
                }
                (packed, _) => {
                    let count = 1 << left.min(S::TILE_ROWS).ilog2();
                    let (x, cols) = (call.x, call.weight.cols());
                    let source = match packed {
                        Packed::Affine(weight) => Source::Affine { x, cols, weight },
                        Packed::Dense(weight) => Source::Dense { x, cols, weight },
                    };
                    let mut out = [[0.0; PANEL]; 8];
                    tile::<S>(source, panel, row, count, &mut out);
                    self.put(panel, row, &out[..count])
                }
            }
        }
    }

    /// Writes a tile's results; returns how many rows they are.
    #[inline(always)]
    fn put(&self, panel: usize, row: usize, tile: &[[f32; PANEL]]) -> usize {
        let outputs = self.call.weight.rows();
        let width = PANEL.min(outputs - panel * PANEL);
        for (index, values) in tile.iter().enumerate() {
            let start = (row + index) * outputs + panel * PANEL;
            // SAFETY: each panel of each row belongs to one task, which writes it once at a time.
            let out = unsafe { self.out.part(start, width) };
            match self.call.mode {
                Mode::Store => out.copy_from_slice(&values[..width]),
                Mode::Add => out.iter_mut().zip(values).for_each(|(out, value)| *out += value),
            }
        }
        tile.len()
    }
}
