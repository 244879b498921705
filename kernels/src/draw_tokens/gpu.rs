//! `draw_tokens` on GPUs: a warp a row.

use super::{DrawnTokens, Rows, TopLogits};
use crate::error::Result;
use crate::gpu::{Call, Gpu, Grid};

/// Threads of a block, each with two of a row's logits: the sources say the same.
const THREADS: u32 = 32;

pub(super) fn draw(gpu: Gpu, drawn: &DrawnTokens, top: &TopLogits, rows: Rows<'_>) -> Result<()> {
    let count = rows.draws.len();
    let draws: Vec<u32> = (0..count).flat_map(|row| words(rows, row)).collect();
    let mut call = Call::new("draw_tokens", gpu);
    call.write::<u32>("words", &drawn.words)?.read::<f32>("values", &top.values)?;
    call.read::<u32>("ids", &top.ids)?.read::<f32>("sums", &top.sums)?;
    call.list(&draws)?.size("vocab", rows.vocab)?.size("held", rows.held)?;
    // SAFETY: the parameters of the kernel; a row has `held` logits, of which no count is beyond.
    unsafe { call.launch("draw_tokens", Grid::row(count, THREADS)) }
}

/// What the kernel reads of a row; its first word is zero where nothing is drawn.
fn words(rows: Rows<'_>, row: usize) -> [u32; 6] {
    let Some((draw, count)) = rows.get(row) else { return [0; 6] };
    let reals = [draw.temperature, draw.top_p, draw.min_p, draw.uniform as f32];
    let [temperature, top_p, min_p, uniform] = reals.map(f32::to_bits);
    [count as u32, temperature, draw.top_k.min(rows.vocab) as u32, top_p, min_p, uniform]
}
