//! The definition of `write_kv` and `paged_attention`: scores of a row, softmax, weighted sum. Pages in
//! 8 bits are defined by what they stand for.

use super::{AttentionOptions, KvSide, PageTable, Segment, Shape};
use crate::matmul::reference::{INT8_MAX, ZERO};

/// What attention reads, in f32.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// `[capacity, heads * head_dim]`.
    pub q: &'a [f32],
    /// All pages of keys, in f32.
    pub keys: &'a [f32],
    /// All pages of values, in f32.
    pub values: &'a [f32],
}

/// Writes rows of new keys, `[slots, kv_heads, head_dim]`, into the pages.
pub fn write_keys(keys: &mut [f32], k: &[f32], slots: &[u32], shape: &Shape) {
    for (row, slot) in slots.iter().enumerate() {
        let (page, offset) = shape.locate(*slot as usize);
        for head in 0..shape.kv_heads {
            for dim in 0..shape.head_dim {
                keys[shape.block(KvSide::Keys, page, head) + shape.key_in_block(offset, dim)] =
                    k[(row * shape.kv_heads + head) * shape.head_dim + dim];
            }
        }
    }
}

/// Writes rows of new values, `[slots, kv_heads, head_dim]`, into the pages.
pub fn write_values(values: &mut [f32], v: &[f32], slots: &[u32], shape: &Shape) {
    for (row, slot) in slots.iter().enumerate() {
        let (page, offset) = shape.locate(*slot as usize);
        for head in 0..shape.kv_heads {
            for dim in 0..shape.head_dim {
                values
                    [shape.block(KvSide::Values, page, head) + shape.value_in_block(offset, dim)] =
                    v[(row * shape.kv_heads + head) * shape.head_dim + dim];
            }
        }
    }
}

/// What keys or values stand for once they were written in 8 bits: each group of each row of
/// `[rows, heads, head_dim]` is rounded to multiples of a scale.
pub fn rounded(side: KvSide, rows: &[f32], head_dim: usize) -> Vec<f32> {
    let mut values = Vec::new();
    for group in rows.chunks(head_dim).flat_map(|head| head.chunks(side.group())) {
        let largest = group.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
        if group.iter().any(|value| !value.is_finite()) {
            values.extend(group.iter().map(|_| f32::NAN));
        } else if largest < ZERO {
            values.extend(group.iter().map(|_| 0.0));
        } else {
            let (scale, inverse) = (largest / INT8_MAX, INT8_MAX / largest);
            values.extend(group.iter().map(|value| scale * (value * inverse).round_ties_even()));
        }
    }
    values
}

/// Attention of every row of every segment; `out` is `[capacity, heads, head_dim]`.
pub fn paged_attention(
    out: &mut [f32],
    inputs: Inputs<'_>,
    table: PageTable<'_>,
    shape: &Shape,
    options: AttentionOptions,
) {
    for segment in table.segments {
        for index in 0..segment.len {
            for head in 0..shape.heads {
                row(out, inputs, table, shape, options, (segment, index, head));
            }
        }
    }
}

/// One query head of one row of a segment.
fn row(
    out: &mut [f32],
    inputs: Inputs<'_>,
    table: PageTable<'_>,
    shape: &Shape,
    options: AttentionOptions,
    (segment, index, head): (&Segment, usize, usize),
) {
    let position = segment.first_position + index;
    let first = options.window.map_or(0, |window| (position + 1).saturating_sub(window));
    let kv_head = head / (shape.heads / shape.kv_heads);
    let start = ((segment.first_row + index) * shape.heads + head) * shape.head_dim;
    let query = &inputs.q[start..][..shape.head_dim];
    let place = |token: usize| {
        let page = table.pages[segment.first_page + token / shape.page_tokens] as usize;
        (page, token % shape.page_tokens)
    };
    let mut scores = Vec::new();
    for token in first..=position {
        let (page, offset) = place(token);
        let block = shape.block(KvSide::Keys, page, kv_head);
        let mut score = 0.0;
        for dim in 0..shape.head_dim {
            score += query[dim] * inputs.keys[block + shape.key_in_block(offset, dim)];
        }
        scores.push(score * options.scale);
    }
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f32> = scores.iter().map(|score| (score - max).exp()).collect();
    let sum: f32 = weights.iter().sum();
    for dim in 0..shape.head_dim {
        let mut value = 0.0;
        for (weight, token) in weights.iter().zip(first..) {
            let (page, offset) = place(token);
            let block = shape.block(KvSide::Values, page, kv_head);
            value += weight * inputs.values[block + shape.value_in_block(offset, dim)];
        }
        out[start + dim] = value / sum;
    }
}
