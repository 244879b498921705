//! One token of a head, as decoding has them: the state is worked on where it lies, as copying it to
//! and fro would cost more than the arithmetic. The same operations on each element as `cpu.rs` has
//! for several tokens, and so the same bits.

use super::prepare::Tokens;
use crate::pool::Parts;
use crate::simd::{LANES, Simd, prefetch};

/// Rows of a state that are asked for ahead of the one being read.
const AHEAD: usize = 8;

/// Whole vectors of one value head of a slot.
pub(super) struct Single<'a> {
    /// Holds the prepared token.
    pub(super) tokens: &'a Tokens,
    pub(super) key_dim: usize,
    /// All states.
    pub(super) state: &'a Parts<'a, f32>,
    /// Where the first element of the block lies in them.
    pub(super) start: usize,
    /// Distance of rows.
    pub(super) stride: usize,
    /// Elements of the token's value, a multiple of 16.
    pub(super) value: &'a [f32],
    /// What is read from the state, as many.
    pub(super) out: &'a mut [f32],
}

impl Single<'_> {
    /// Takes the token in.
    ///
    /// # Safety
    /// The processor has the instructions of `S`; the block lies inside the state, and nothing else
    /// borrows it.
    #[inline(always)]
    pub(super) unsafe fn advance<S: Simd>(mut self) {
        let mut lane = 0;
        while lane < self.value.len() {
            let left = (self.value.len() - lane) / LANES;
            // SAFETY: the caller's promise; `lane + 16 * vectors <= value.len()`.
            unsafe {
                // Whole rows of the usual size where registers allow it: memory is read in order.
                let vectors = match (left, S::STATE_VECTORS) {
                    (8.., 4..) => self.block::<S, 8>(lane),
                    (4.., _) => self.block::<S, 4>(lane),
                    (2.., _) => self.block::<S, 2>(lane),
                    _ => self.block::<S, 1>(lane),
                };
                lane += vectors * LANES;
            }
        }
    }

    /// The part of row `key` that starts at `lane`.
    #[inline(always)]
    unsafe fn row(&self, key: usize, lane: usize, vectors: usize) -> *mut f32 {
        let start = self.start + key * self.stride + lane;
        // SAFETY: the caller's promise.
        unsafe { self.state.part(start, vectors * LANES) }.as_mut_ptr()
    }

    /// Takes the token in with `V` vectors from `lane` on; returns how many these are.
    #[inline(always)]
    unsafe fn block<S: Simd, const V: usize>(&mut self, lane: usize) -> usize {
        let (k, q) = (&self.tokens.k[..self.key_dim], &self.tokens.q[..self.key_dim]);
        // SAFETY: the caller's promise.
        unsafe {
            let (mut key, mut query) = ([S::splat(0.0); V], [S::splat(0.0); V]);
            for (i, (k, q)) in k.iter().zip(q).enumerate() {
                let state = self.row(i, lane, V);
                for v in 0..V {
                    prefetch(state.wrapping_add(AHEAD * self.stride + v * LANES).cast());
                }
                let (k, q) = (S::splat(*k), S::splat(*q));
                for v in 0..V {
                    let s = S::load(state.add(v * LANES));
                    key[v] = S::fma(s, k, key[v]);
                    query[v] = S::fma(s, q, query[v]);
                }
            }
            let decay = S::splat(self.tokens.log_decay[0].exp());
            let beta = S::splat(self.tokens.beta[0]);
            let qk = S::splat(self.tokens.qk[0]);
            let (value, out) = (self.value.as_ptr().add(lane), self.out.as_mut_ptr().add(lane));
            let mut u = [S::splat(0.0); V];
            for v in 0..V {
                let held = S::mul(decay, key[v]);
                u[v] = S::mul(beta, S::sub(S::load(value.add(v * LANES)), held));
                let read = S::mul(decay, query[v]);
                S::store(out.add(v * LANES), S::fma(qk, u[v], read));
            }
            for (i, k) in k.iter().enumerate() {
                let state = self.row(i, lane, V);
                let k = S::splat(*k);
                for v in 0..V {
                    let s = S::mul(decay, S::load(state.add(v * LANES)));
                    S::store(state.add(v * LANES), S::fma(u[v], k, s));
                }
            }
        }
        V
    }
}
