//! `draw_tokens` on the CPU: a few numbers a row, so its definition is fast enough.

use super::reference::{Top, draw as draw_row};
use super::{Drawn, MARGIN, Rows};

/// Writes a word for each row; of these `values` and `ids` are `[rows, held]`, `sums` `[rows, 2]`.
pub(super) fn draw(words: &mut [u32], values: &[f32], ids: &[u32], sums: &[f32], rows: Rows<'_>) {
    for row in 0..rows.draws.len() {
        words[row] = match rows.get(row) {
            None => Drawn::Undrawn,
            Some((draw, count)) => {
                let top = Top {
                    values: &values[row * rows.held..][..count],
                    ids: &ids[row * rows.held..][..count],
                    sums: [sums[2 * row], sums[2 * row + 1]],
                    vocab: rows.vocab,
                };
                let (drawn, nearest) = draw_row(top, &draw);
                if nearest <= f64::from(MARGIN) { Drawn::Undrawn } else { drawn }
            }
        }
        .word();
    }
}
