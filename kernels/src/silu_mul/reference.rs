//! The definition of `silu_mul`.

/// `out[i] = gate[i] / (1 + exp(-gate[i])) * up[i]`.
pub fn silu_mul(out: &mut [f32], gate: &[f32], up: &[f32]) {
    for i in 0..out.len() {
        out[i] = gate[i] / (1.0 + (-gate[i]).exp()) * up[i];
    }
}
