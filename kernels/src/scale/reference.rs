//! The definition of `scale`.

/// `out[i] *= factor`.
pub fn scale(out: &mut [f32], factor: f32) {
    for i in 0..out.len() {
        out[i] *= factor;
    }
}
