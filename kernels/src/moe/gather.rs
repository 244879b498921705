//! The rows that the pairs of a block read, side by side, in whichever form their expert reads.

use super::BLOCK_PAIRS;
use crate::matmul::{GROUP, Quantized};

/// Rows gathered by one thread: at most [`BLOCK_PAIRS`], in one of the two forms or, over time, in
/// both. Has room for as many of the widest rows this thread has seen as a block of the step may
/// have, so that what it holds does not hang on what rows choose.
#[derive(Debug)]
pub(super) struct Gathered {
    x: Vec<f32>,
    codes: Vec<i8>,
    scales: Vec<f32>,
    offsets: Vec<f32>,
    sums: Vec<i32>,
}

impl Gathered {
    pub(super) const EMPTY: Self = Self {
        x: Vec::new(),
        codes: Vec::new(),
        scales: Vec::new(),
        offsets: Vec::new(),
        sums: Vec::new(),
    };

    /// Rows `rows` of `x`, `[.., cols]`.
    pub(super) fn exact(&mut self, x: &[f32], cols: usize, rows: &[u32]) -> &[f32] {
        debug_assert!(rows.len() <= BLOCK_PAIRS, "a block is gathered at a time");
        pick(&mut self.x, x, cols, rows);
        &self.x
    }

    /// Rows `rows` of quantized activations.
    pub(super) fn quantized<'a>(&'a mut self, x: Quantized<'_>, rows: &[u32]) -> Quantized<'a> {
        debug_assert!(rows.len() <= BLOCK_PAIRS, "a block is gathered at a time");
        let numbers = x.groups * x.planes;
        pick(&mut self.codes, x.codes, numbers * GROUP, rows);
        pick(&mut self.scales, x.scales, numbers, rows);
        pick(&mut self.offsets, x.offsets, numbers, rows);
        pick(&mut self.sums, x.sums, numbers * 2, rows);
        Quantized {
            codes: &self.codes,
            scales: &self.scales,
            offsets: &self.offsets,
            sums: &self.sums,
            groups: x.groups,
            planes: x.planes,
        }
    }
}

/// Replaces `target` by runs of `width` elements of `source`.
fn pick<T: Copy>(target: &mut Vec<T>, source: &[T], width: usize, rows: &[u32]) {
    target.clear();
    target.reserve_exact(source.len().min(BLOCK_PAIRS * width));
    for row in rows {
        target.extend_from_slice(&source[*row as usize * width..][..width]);
    }
}
