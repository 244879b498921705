//! The definition of `rms_norm_gated`.

use super::Inputs;

/// Normalizes each run of `weight.len()` elements of `x` into `out` and gates it.
pub fn rms_norm_gated(out: &mut [f32], inputs: Inputs<'_>) {
    let Inputs { x, gate, weight, eps } = inputs;
    let dim = weight.len();
    for start in (0..x.len()).step_by(dim) {
        let mut sum = 0.0;
        for i in 0..dim {
            sum += x[start + i] * x[start + i];
        }
        let scale = 1.0 / (sum / dim as f32 + eps).sqrt();
        for i in 0..dim {
            let gate = gate[start + i];
            let silu = gate / (1.0 + (-gate).exp());
            out[start + i] = x[start + i] * scale * weight[i] * silu;
        }
    }
}
