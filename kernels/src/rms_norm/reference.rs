//! The definition of `rms_norm`.

/// Normalizes each run of `weight.len()` elements of `x` into `out`.
pub fn rms_norm(out: &mut [f32], x: &[f32], weight: &[f32], eps: f32) {
    let dim = weight.len();
    for start in (0..x.len()).step_by(dim) {
        let mut sum = 0.0;
        for i in 0..dim {
            sum += x[start + i] * x[start + i];
        }
        let scale = 1.0 / (sum / dim as f32 + eps).sqrt();
        for i in 0..dim {
            out[start + i] = x[start + i] * scale * weight[i];
        }
    }
}
