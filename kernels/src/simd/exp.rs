//! The exponential function in 16 lanes, and what is made of it.

use super::Simd;

/// Below it the result would leave the normal numbers and is 0 instead.
const LOWEST: f32 = -87.336_54;
/// Above it the result would overflow; it stays at the largest power instead.
const HIGHEST: f32 = 88.0;
const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// `ln 2` in two parts, the first with so few bits that its multiples are exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;
/// Minimax coefficients of `(exp(r) - 1 - r) / r^2` on `|r| <= ln 2 / 2`, highest power first.
const POLYNOMIAL: [f32; 6] =
    [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

/// `exp(x)`, within 2 units in the last place; 0 below the normal numbers; NaN stays NaN.
///
/// # Safety
/// The processor has the instructions of `S`.
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::F) -> S::F {
    // SAFETY: the caller's promise.
    unsafe {
        // The bound comes first: of two unordered operands the second is taken, and NaN must stay.
        let clamped = S::min(S::splat(HIGHEST), S::max(S::splat(LOWEST), x));
        let power = S::round(S::mul(clamped, S::splat(LOG2_E)));
        let n = S::int_to_float(power);
        let r = S::fma(n, S::splat(-LN2_HIGH), clamped);
        let r = S::fma(n, S::splat(-LN2_LOW), r);
        let mut p = S::splat(POLYNOMIAL[0]);
        for coefficient in &POLYNOMIAL[1..] {
            p = S::fma(p, r, S::splat(*coefficient));
        }
        let p = S::add(S::fma(p, S::mul(r, r), r), S::splat(1.0));
        S::zero_below(x, S::splat(LOWEST), S::mul(p, S::pow2(power)))
    }
}

/// `x / (1 + exp(-x))`.
///
/// # Safety
/// The processor has the instructions of `S`.
#[inline(always)]
pub(crate) unsafe fn silu<S: Simd>(x: S::F) -> S::F {
    // SAFETY: the caller's promise.
    unsafe {
        let denominator = S::add(S::splat(1.0), exp::<S>(S::sub(S::splat(0.0), x)));
        S::div(x, denominator)
    }
}
