//! The definition of `add` and `add_bias`.

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
