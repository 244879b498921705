//! Multiply-adds a second that all threads together do on registers, through the operations that
//! the kernels are written in. How many chains of them hide their latency and still fit the registers
//! depends on the level, so several numbers are tried.

use std::hint::black_box;
use std::time::Duration;

use super::fastest;
use crate::isa::Isa;
use crate::pool::Pool;
use crate::simd::{Kernel, LANES, Simd, dispatch};

/// Independent chains that are tried.
const CHAINS: [usize; 5] = [2, 4, 6, 8, 12];
/// Steps of every chain in a pass, some tenths of a millisecond.
const STEPS: usize = 1 << 16;
/// Steps after which an integer chain reads the same activations again.
const PERIOD: usize = 64;
/// Multiply-adds of a lane in an integer step.
const PER_LANE: usize = 4;

/// Of f32: `x = a * x + b` in all lanes.
pub(super) fn float_macs_per_second(time: Duration) -> f64 {
    best(time, LANES, |isa, chains| {
        black_box(dispatch(isa, FloatChains { chains, steps: STEPS }));
    })
}

/// Of 8-bit integers: dot products of four into each lane.
pub(super) fn integer_macs_per_second(time: Duration) -> f64 {
    let activations = activations();
    best(time, LANES * PER_LANE, |isa, chains| {
        let work = IntegerChains { chains, steps: STEPS, activations: &activations };
        black_box(dispatch(isa, work));
    })
}

/// A row of ones for each chain.
fn activations() -> Vec<i8> {
    vec![black_box(1); CHAINS[CHAINS.len() - 1] * PERIOD * PER_LANE]
}

/// The best rate over the numbers of chains, where a step of a chain does `macs` multiply-adds.
fn best(time: Duration, macs: usize, work: impl Fn(Isa, usize) + Sync) -> f64 {
    let (isa, threads) = (Isa::current(), Pool::current(Pool::threads));
    let rate = |chains: usize| {
        let pass = || Pool::current(|pool| pool.run(threads, |_| work(isa, chains)));
        let seconds = fastest(time / CHAINS.len() as u32, pass);
        (threads * STEPS * chains * macs) as f64 / seconds
    };
    CHAINS.into_iter().map(rate).fold(0.0, f64::max)
}

/// `steps` multiply-adds in each of `chains` vectors; returns the sum of all lanes.
struct FloatChains {
    chains: usize,
    steps: usize,
}

impl Kernel for FloatChains {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        // SAFETY: the caller's promise.
        unsafe {
            match self.chains {
                2 => float_chains::<S, 2>(self.steps),
                4 => float_chains::<S, 4>(self.steps),
                6 => float_chains::<S, 6>(self.steps),
                8 => float_chains::<S, 8>(self.steps),
                _ => float_chains::<S, 12>(self.steps),
            }
        }
    }
}

/// # Safety
/// The processor has the instructions of `S`.
#[inline(always)]
unsafe fn float_chains<S: Simd, const N: usize>(steps: usize) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        // What the compiler cannot know it cannot compute beforehand.
        let (half, one) = (S::splat(black_box(0.5)), S::splat(black_box(1.0)));
        let mut chains = [one; N];
        for _ in 0..steps {
            for chain in &mut chains {
                *chain = S::fma(half, *chain, one);
            }
        }
        chains.into_iter().map(|chain| S::sum(chain)).sum()
    }
}

/// `steps` dot products in each of `chains` vectors, which read a row of `activations` each;
/// returns the sum of all lanes.
struct IntegerChains<'a> {
    chains: usize,
    steps: usize,
    activations: &'a [i8],
}

impl Kernel for IntegerChains<'_> {
    const PRODUCTS: bool = true;

    type Output = i32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> i32 {
        let (steps, x) = (self.steps, self.activations);
        assert!(x.len() >= self.chains * PERIOD * PER_LANE, "a row for each chain");
        // SAFETY: the caller's promise, and as many rows as there are chains.
        unsafe {
            match self.chains {
                2 => integer_chains::<S, 2>(steps, x),
                4 => integer_chains::<S, 4>(steps, x),
                6 => integer_chains::<S, 6>(steps, x),
                8 => integer_chains::<S, 8>(steps, x),
                _ => integer_chains::<S, 12>(steps, x),
            }
        }
    }
}

/// # Safety
/// The processor has the instructions of `S`; `x` has `N` rows of `PERIOD * PER_LANE`.
#[inline(always)]
unsafe fn integer_chains<S: Simd, const N: usize>(steps: usize, x: &[i8]) -> i32 {
    // SAFETY: the caller's promise; an offset is below `PERIOD * PER_LANE` in each row.
    unsafe {
        let codes = S::load_codes([black_box(1_u8); LANES * PER_LANE].as_ptr());
        let mut chains = [S::int_splat(0); N];
        for step in 0..steps {
            let x = x.as_ptr().add(step % PERIOD * PER_LANE);
            for (row, chain) in chains.iter_mut().enumerate() {
                *chain = S::dot::<false>(*chain, codes, x.add(row * PERIOD * PER_LANE));
            }
        }
        chains.into_iter().map(|chain| S::int_sum(chain)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_of_every_chain_is_done_on_every_level() {
        let activations = activations();
        for isa in Isa::available() {
            for chains in CHAINS {
                // 1, then 1.5, 1.75, ...
                let found = dispatch(isa, FloatChains { chains, steps: 2 });
                assert_eq!(found, 1.75 * (chains * LANES) as f32, "{isa}");
                let steps = PERIOD + 3;
                let work = IntegerChains { chains, steps, activations: &activations };
                assert_eq!(dispatch(isa, work), (steps * chains * 64) as i32, "{isa}");
            }
        }
    }

    #[test]
    fn a_whole_pass_stays_within_the_numbers() {
        let activations = activations();
        let chains = CHAINS[CHAINS.len() - 1];
        let work = IntegerChains { chains, steps: STEPS, activations: &activations };
        let macs = STEPS * chains * LANES * PER_LANE;
        assert_eq!(dispatch(Isa::Portable, work), i32::try_from(macs).unwrap());
    }
}
