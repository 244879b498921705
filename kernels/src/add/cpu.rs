//! Adding on the CPU: bound by memory, which plain loops saturate on one core for the sizes of a
//! step, so there is nothing to dispatch.

pub(super) fn add(out: &mut [f32], x: &[f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out += x;
    }
}

pub(super) fn add_bias(out: &mut [f32], bias: &[f32]) {
    if bias.is_empty() {
        return;
    }
    for row in out.chunks_exact_mut(bias.len()) {
        add(row, bias);
    }
}
