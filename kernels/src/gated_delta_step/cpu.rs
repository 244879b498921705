//! `gated_delta_step` on the CPU, where a fork costs little beside a state: the three operators, with
//! what they pass each other in memory of the thread.

use std::cell::RefCell;

use super::Inputs;
use crate::gated_delta::Shape;
use crate::recurrence::Recurrence;
use crate::{gated_delta, rms_norm_gated, short_conv};

thread_local! {
    /// Rows after the convolution, and what was read from the states; they grow to the largest step
    /// that this thread has seen.
    static PASSED: RefCell<[Vec<f32>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

/// As the reference has it.
pub(super) fn gated_delta_step(
    out: &mut [f32],
    [conv, delta]: [&mut [f32]; 2],
    inputs: Inputs<'_>,
    recurrence: Recurrence<'_>,
    shape: &Shape,
) {
    let width = shape.value_heads * shape.value_dim;
    let segments = recurrence.segments.iter().filter(|segment| segment.len > 0);
    let rows = segments.clone().map(|segment| segment.first_row + 1).max().unwrap_or(0);
    PASSED.with_borrow_mut(|[convolved, read]| {
        convolved.resize(convolved.len().max(rows * inputs.conv.channels), 0.0);
        read.resize(read.len().max(rows * width), 0.0);
        short_conv::cpu::short_conv(convolved, conv, inputs.conv, recurrence);
        let rule = gated_delta::Inputs { qkv: convolved, ..inputs.rule };
        gated_delta::cpu::gated_delta(read, delta, rule, recurrence, shape);
        for row in segments.map(|segment| segment.first_row) {
            let range = row * width..(row + 1) * width;
            let norm = inputs.row(&read[range.clone()], row);
            rms_norm_gated::cpu::rms_norm_gated(&mut out[range], norm);
        }
    });
}
