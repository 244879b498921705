//! The definition of `gate_mul`.

use super::Activation;

/// `out[i] = activation(gate[i]) * x[i]`.
pub fn gate_mul(out: &mut [f32], gate: &[f32], x: &[f32], activation: Activation) {
    for i in 0..out.len() {
        out[i] = activate(gate[i], activation) * x[i];
    }
}

/// The function itself.
pub fn activate(gate: f32, activation: Activation) -> f32 {
    match activation {
        Activation::Silu => gate / (1.0 + (-gate).exp()),
        Activation::GeluTanh => {
            let sqrt_2_over_pi = std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::FRAC_1_SQRT_2;
            let inner = sqrt_2_over_pi * (gate + 0.044_715 * gate * gate * gate);
            0.5 * gate * (1.0 + inner.tanh())
        }
        Activation::Sigmoid => 1.0 / (1.0 + (-gate).exp()),
    }
}
