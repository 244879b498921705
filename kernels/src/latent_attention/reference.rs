//! The definition of `latent_attention`: scores of a row, softmax, weighted sum of latents.

use super::{Inputs, Shape};
use crate::attention::{PageTable, Segment};

/// Attention of every row of every segment; `out` is `[capacity, heads, latent_dim]`.
pub fn latent_attention(
    out: &mut [f32],
    inputs: Inputs<'_>,
    table: PageTable<'_>,
    shape: &Shape,
    scale: f32,
) {
    for segment in table.segments {
        for index in 0..segment.len {
            for head in 0..shape.heads {
                row(out, inputs, table, shape, scale, (segment, index, head));
            }
        }
    }
}

/// One head of one row of a segment.
fn row(
    out: &mut [f32],
    inputs: Inputs<'_>,
    table: PageTable<'_>,
    shape: &Shape,
    scale: f32,
    (segment, index, head): (&Segment, usize, usize),
) {
    let Shape { heads, page_tokens, rope_dim, latent_dim } = *shape;
    let line = (segment.first_row + index) * heads + head;
    let q_latent = &inputs.q_latent[line * latent_dim..][..latent_dim];
    let q_rope = &inputs.q_rope[line * rope_dim..][..rope_dim];
    let locate = |token: usize| {
        let page = table.pages[segment.first_page + token / page_tokens] as usize;
        (page, token % page_tokens)
    };
    let latent_at = |token: usize| {
        let (page, offset) = locate(token);
        &inputs.latents[(page * page_tokens + offset) * latent_dim..][..latent_dim]
    };
    let tokens = 0..segment.first_position + index + 1;
    let mut scores = Vec::new();
    for token in tokens.clone() {
        let (page, offset) = locate(token);
        let mut score = 0.0;
        for dim in 0..rope_dim {
            score += q_rope[dim] * inputs.keys[(page * rope_dim + dim) * page_tokens + offset];
        }
        for (query, latent) in q_latent.iter().zip(latent_at(token)) {
            score += query * latent;
        }
        scores.push(score * scale);
    }
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f32> = scores.iter().map(|score| (score - max).exp()).collect();
    let sum: f32 = weights.iter().sum();
    for dim in 0..latent_dim {
        let mut value = 0.0;
        for (weight, token) in weights.iter().zip(tokens.clone()) {
            value += weight * latent_at(token)[dim];
        }
        out[line * latent_dim + dim] = value / sum;
    }
}
