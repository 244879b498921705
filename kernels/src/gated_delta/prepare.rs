//! What both forms of the gated delta rule need of a token before its state: the query and the key
//! at their lengths, the decay, the strength of writing. No states here.

use std::ops::Range;

use super::{Inputs, L2_EPS, Shape};
use crate::simd::{LANES, Simd};

/// Tokens that are prepared together.
pub(super) const RUN: usize = 64;

/// Up to [`RUN`] consecutive tokens of one value head.
pub(super) struct Tokens {
    /// Normalized and scaled queries, `[RUN, key_dim]`.
    pub(super) q: Vec<f32>,
    /// Normalized keys, `[RUN, key_dim]`.
    pub(super) k: Vec<f32>,
    /// Product of query and key of each token.
    pub(super) qk: [f32; RUN],
    /// Logarithm of the decay, `g`.
    pub(super) log_decay: [f32; RUN],
    /// Strength of writing.
    pub(super) beta: [f32; RUN],
    /// Number of tokens.
    pub(super) len: usize,
}

impl Tokens {
    /// None yet.
    pub(super) const EMPTY: Self = Self {
        q: Vec::new(),
        k: Vec::new(),
        qk: [0.0; RUN],
        log_decay: [0.0; RUN],
        beta: [0.0; RUN],
        len: 0,
    };

    /// Takes the tokens of `rows`, at most [`RUN`].
    ///
    /// # Safety
    /// The processor has the instructions of `S`.
    #[inline(always)]
    pub(super) unsafe fn take<S: Simd>(
        &mut self,
        inputs: Inputs<'_>,
        shape: &Shape,
        head: usize,
        rows: Range<usize>,
    ) {
        let dim = shape.key_dim;
        self.len = rows.len();
        self.q.resize(RUN * dim, 0.0);
        self.k.resize(RUN * dim, 0.0);
        let query_scale = 1.0 / (dim as f32).sqrt();
        for (token, row) in rows.enumerate() {
            let q = &mut self.q[token * dim..][..dim];
            let k = &mut self.k[token * dim..][..dim];
            // SAFETY: the caller's promise.
            self.qk[token] = unsafe {
                normalize::<S>(q, &inputs.qkv[shape.query(row, head)..][..dim], query_scale);
                normalize::<S>(k, &inputs.qkv[shape.key(row, head)..][..dim], 1.0);
                dot::<S>(q, k)
            };
            let gate = row * shape.value_heads + head;
            let input = inputs.a[gate] + inputs.dt_bias[head];
            self.log_decay[token] = inputs.rate[head] * softplus(input);
            self.beta[token] = 1.0 / (1.0 + (-inputs.b[gate]).exp());
        }
    }
}

/// `out = x * factor / sqrt(sum of squares + L2_EPS)`.
///
/// # Safety
/// The processor has the instructions of `S`.
#[inline(always)]
unsafe fn normalize<S: Simd>(out: &mut [f32], x: &[f32], factor: f32) {
    // SAFETY: the caller's promise.
    let sum = unsafe { dot::<S>(x, x) };
    let scale = factor / (sum + L2_EPS).sqrt();
    for (out, x) in out.iter_mut().zip(x) {
        *out = x * scale;
    }
}

/// Sum of the products, in one order for each length.
///
/// # Safety
/// The processor has the instructions of `S`.
#[inline(always)]
unsafe fn dot<S: Simd>(a: &[f32], b: &[f32]) -> f32 {
    let len = a.len().min(b.len());
    let whole = len - len % LANES;
    // SAFETY: the caller's promise; `start + 16 <= whole <= len`.
    let sum = unsafe {
        let mut sums = S::splat(0.0);
        for start in (0..whole).step_by(LANES) {
            let a = S::load(a.as_ptr().add(start));
            sums = S::fma(a, S::load(b.as_ptr().add(start)), sums);
        }
        S::sum(sums)
    };
    let rest: f32 = a[whole..len].iter().zip(&b[whole..len]).map(|(a, b)| a * b).sum();
    sum + rest
}

/// `ln(1 + exp(x))`, written so that neither end overflows; NaN stays NaN.
fn softplus(x: f32) -> f32 {
    let linear = if x < 0.0 { 0.0 } else { x };
    linear + (-x.abs()).exp().ln_1p()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn softplus_is_accurate_at_both_ends_and_keeps_nan() {
        for x in [-200.0_f32, -90.0, -20.0, -1.0, -1e-3, 0.0, 0.5, 20.0, 90.0, 1e30] {
            let exact = f64::from(x).max(0.0) + (-f64::from(x).abs()).exp().ln_1p();
            let error = (f64::from(softplus(x)) - exact).abs();
            assert!(error <= exact * 2e-7 + 1e-38, "{x}: {} and {exact}", softplus(x));
        }
        assert!(softplus(f32::NAN).is_nan());
    }
}
