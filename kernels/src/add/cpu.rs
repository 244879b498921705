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

pub(super) fn add_gated(out: &mut [f32], x: &[f32], gate: &[f32]) {
    if out.is_empty() {
        return;
    }
    let dim = out.len() / gate.len();
    for ((out, x), gate) in out.chunks_exact_mut(dim).zip(x.chunks_exact(dim)).zip(gate) {
        let weight = 1.0 / (1.0 + (-gate).exp());
        for (out, x) in out.iter_mut().zip(x) {
            *out += weight * x;
        }
    }
}
