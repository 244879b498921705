//! The definition of `add`, `add_bias` and `add_gated`.

/// `out[i] += x[i]`.
pub fn add(out: &mut [f32], x: &[f32]) {
    for i in 0..out.len() {
        out[i] += x[i];
    }
}

/// `out[r, i] += bias[i]`; `out` is `[rows, bias.len()]`.
pub fn add_bias(out: &mut [f32], bias: &[f32]) {
    for i in 0..out.len() {
        out[i] += bias[i % bias.len()];
    }
}

/// `out[r, i] += x[r, i] / (1 + exp(-gate[r]))`; `out` and `x` are `[gate.len(), dim]`.
pub fn add_gated(out: &mut [f32], x: &[f32], gate: &[f32]) {
    for i in 0..out.len() {
        let row = i / (out.len() / gate.len());
        let weight = 1.0 / (1.0 + (-gate[row]).exp());
        out[i] += weight * x[i];
    }
}
