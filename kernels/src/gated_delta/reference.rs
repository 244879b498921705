//! The definition of `gated_delta`: token by token, head by head.

use super::{Inputs, L2_EPS, Shape};
use crate::recurrence::Recurrence;

/// Advances the states of every segment; `out` is `[capacity, value_heads, value_dim]`, `state` is
/// `[slots, value_heads, key_dim, value_dim]`.
pub fn gated_delta(
    out: &mut [f32],
    state: &mut [f32],
    inputs: Inputs<'_>,
    recurrence: Recurrence<'_>,
    shape: &Shape,
) {
    let slot_len = shape.value_heads * shape.key_dim * shape.value_dim;
    for (index, segment) in recurrence.segments.iter().enumerate() {
        let own = segment.slot as usize;
        for token in 0..segment.len {
            for head in 0..shape.value_heads {
                step(out, state, inputs, shape, (segment.first_row + token, head, own));
            }
            for slot in recurrence.emitted_at(index, token + 1) {
                let own = own * slot_len;
                state.copy_within(own..own + slot_len, slot * slot_len);
            }
        }
    }
}

/// One value head of one row.
fn step(
    out: &mut [f32],
    state: &mut [f32],
    inputs: Inputs<'_>,
    shape: &Shape,
    (row, head, slot): (usize, usize, usize),
) {
    let q = normalized(&inputs.qkv[shape.query(row, head)..][..shape.key_dim]);
    let k = normalized(&inputs.qkv[shape.key(row, head)..][..shape.key_dim]);
    let v = &inputs.qkv[shape.value(row, head)..][..shape.value_dim];
    let query_scale = 1.0 / (shape.key_dim as f32).sqrt();
    let gate = row * shape.value_heads + head;
    let decay = (inputs.rate[head] * softplus(inputs.a[gate] + inputs.dt_bias[head])).exp();
    let beta = 1.0 / (1.0 + (-inputs.b[gate]).exp());
    for j in 0..shape.value_dim {
        let mut held = 0.0;
        for i in 0..shape.key_dim {
            let s = &mut state[shape.state(slot, head, i) + j];
            *s *= decay;
            held += *s * k[i];
        }
        let u = beta * (v[j] - held);
        let mut read = 0.0;
        for i in 0..shape.key_dim {
            let s = &mut state[shape.state(slot, head, i) + j];
            *s += k[i] * u;
            read += *s * q[i] * query_scale;
        }
        out[shape.output(row, head) + j] = read;
    }
}

/// `x / sqrt(sum of squares + L2_EPS)`.
fn normalized(x: &[f32]) -> Vec<f32> {
    let mut sum = 0.0;
    for i in 0..x.len() {
        sum += x[i] * x[i];
    }
    let scale = 1.0 / (sum + L2_EPS).sqrt();
    x.iter().map(|x| x * scale).collect()
}

/// `ln(1 + exp(x))`, written so that neither end overflows.
fn softplus(x: f32) -> f32 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}
