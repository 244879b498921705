//! Bytes a second that all threads together read from memory, in order.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::fastest;
use crate::isa::Isa;
use crate::memory::gather_huge_pages;
use crate::pool::Pool;
use crate::simd::{Kernel, LANES, Simd, dispatch};

/// Elements that a task reads: long runs, as weights are read, and enough tasks for every thread.
const BLOCK: usize = 256 * 1024;
/// Sums that are kept apart, so that no load waits for an addition.
const SUMS: usize = 8;

/// The rate of reading a buffer of about `bytes`.
pub(super) fn bytes_per_second(bytes: usize, time: Duration) -> f64 {
    let line = SUMS * LANES;
    let elements = bytes.div_ceil(size_of::<f32>()).next_multiple_of(line);
    let mut buffer = vec![0.0_f32; elements];
    // Written by the threads that read it, so that each finds its memory near.
    Pool::current(|pool| pool.run_chunks(&mut buffer, BLOCK, |_, block| block.fill(1.0)));
    // As weights are.
    gather_huge_pages(&buffer);
    let seconds = fastest(time, || {
        std::hint::black_box(sum(&buffer));
    });
    size_of_val(buffer.as_slice()) as f64 / seconds
}

/// The sum of a buffer of ones: exact, as no block's sum is beyond what f32 counts.
fn sum(buffer: &[f32]) -> u64 {
    let isa = Isa::current();
    let total = AtomicU64::new(0);
    let task = |index: usize| {
        let start = index * BLOCK;
        let block = &buffer[start..buffer.len().min(start + BLOCK)];
        total.fetch_add(dispatch(isa, Sum { block }) as u64, Ordering::Relaxed);
    };
    Pool::current(|pool| pool.run(buffer.len().div_ceil(BLOCK), task));
    total.into_inner()
}

struct Sum<'a> {
    block: &'a [f32],
}

impl Kernel for Sum<'_> {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        // SAFETY: the caller's promise; every load lies inside its chunk.
        unsafe {
            let mut sums = [S::splat(0.0); SUMS];
            let chunks = self.block.chunks_exact(SUMS * LANES);
            let rest: f32 = chunks.remainder().iter().sum();
            for chunk in chunks {
                for index in 0..SUMS {
                    let values = S::load(chunk.as_ptr().add(index * LANES));
                    sums[index] = S::add(sums[index], values);
                }
            }
            let mut sum = sums[0];
            for other in &sums[1..] {
                sum = S::add(sum, *other);
            }
            S::sum(sum) + rest
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_is_read_on_every_level() {
        for isa in Isa::available() {
            for elements in [0, 1, 127, 128, BLOCK, 2 * BLOCK + 384 + 5] {
                let found = isa.with(|| sum(&vec![1.0; elements]));
                assert_eq!(found, elements as u64, "{isa}");
            }
        }
    }
}
