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

    /// Rows `rows` of `exact`, `[.., cols]` beside its columns, and of `quantized`: of those that are
    /// wanted.
    pub(super) fn rows<'a>(
        &'a mut self,
        exact: Option<(&[f32], usize)>,
        quantized: Option<Quantized<'_>>,
        rows: &[u32],
    ) -> (&'a [f32], Option<Quantized<'a>>) {
        debug_assert!(rows.len() <= BLOCK_PAIRS, "a block is gathered at a time");
        if let Some((x, cols)) = exact {
            pick(&mut self.x, x, cols, rows);
        }
        let Some(x) = quantized else { return (&self.x, None) };
        let numbers = x.groups * x.planes;
        pick(&mut self.codes, x.codes, numbers * GROUP, rows);
        pick(&mut self.scales, x.scales, numbers, rows);
        pick(&mut self.offsets, x.offsets, numbers, rows);
        pick(&mut self.sums, x.sums, numbers * 2, rows);
        let gathered = Quantized {
            codes: &self.codes,
            scales: &self.scales,
            offsets: &self.offsets,
            sums: &self.sums,
            groups: x.groups,
            planes: x.planes,
        };
        (&self.x, Some(gathered))
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
