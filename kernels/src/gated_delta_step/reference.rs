//! The definition of `gated_delta_step`: one operator after another.

use super::Inputs;
use crate::gated_delta::Shape;
use crate::recurrence::Recurrence;
use crate::{gated_delta, rms_norm_gated, short_conv};

/// Advances the states of every segment; `out` is `[capacity, value_heads, value_dim]`, the states are
/// `[slots, kernel - 1, channels]` and `[slots, value_heads, key_dim, value_dim]`.
pub fn gated_delta_step(
    out: &mut [f32],
    [conv, delta]: [&mut [f32]; 2],
    inputs: Inputs<'_>,
    recurrence: Recurrence<'_>,
    shape: &Shape,
) {
    let mut convolved = vec![0.0; inputs.conv.x.len()];
    short_conv::reference::short_conv(&mut convolved, conv, inputs.conv, recurrence);
    let rule = gated_delta::Inputs { qkv: &convolved, ..inputs.rule };
    let mut read = vec![0.0; out.len()];
    gated_delta::reference::gated_delta(&mut read, delta, rule, recurrence, shape);
    let width = shape.value_heads * shape.value_dim;
    for segment in recurrence.segments.iter().filter(|segment| segment.len > 0) {
        let range = segment.first_row * width..(segment.first_row + 1) * width;
        let norm = inputs.row(&read[range.clone()], segment.first_row);
        rms_norm_gated::reference::rms_norm_gated(&mut out[range], norm);
    }
}
