//! The definition of `short_conv`: token after token, the state shifted by one input each.

use super::Inputs;
use crate::recurrence::Recurrence;

/// Convolves every row of every segment; `out` is `[capacity, channels]`, `state` is
/// `[slots, kernel - 1, channels]`.
pub fn short_conv(
    out: &mut [f32],
    state: &mut [f32],
    inputs: Inputs<'_>,
    recurrence: Recurrence<'_>,
) {
    let Inputs { x, weight, channels } = inputs;
    let kernel = inputs.kernel();
    let slot_len = (kernel - 1) * channels;
    for (index, segment) in recurrence.segments.iter().enumerate() {
        let own = segment.slot as usize * slot_len;
        for token in 0..segment.len {
            let row = (segment.first_row + token) * channels;
            for channel in 0..channels {
                let mut sum = 0.0;
                for k in 0..kernel - 1 {
                    let before = state[own + k * channels + channel];
                    sum += weight[k * channels + channel] * before;
                }
                sum += weight[slot_len + channel] * x[row + channel];
                out[row + channel] = sum / (1.0 + (-sum).exp());
            }
            state.copy_within(own + channels..own + slot_len, own);
            let newest = own + slot_len - channels;
            state[newest..][..channels].copy_from_slice(&x[row..][..channels]);
            for slot in recurrence.emitted_at(index, token + 1) {
                state.copy_within(own..own + slot_len, slot * slot_len);
            }
        }
    }
}
