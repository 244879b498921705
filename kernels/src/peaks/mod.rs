//! What this machine can do at most, measured: bytes read from memory, multiply-adds in f32 and in
//! integers. Operators are held against these numbers; what they reach of them is not known here.

mod caches;
mod compute;
mod read;

use std::time::{Duration, Instant};

pub use self::caches::last_level_cache_bytes;
use crate::isa::Isa;
use crate::pool::Pool;

/// Passes that are measured at least, however long they take.
const PASSES_MIN: usize = 3;
/// Size of a last-level cache where the machine does not say: few have more for one core.
const CACHE_ASSUMED: usize = 32 << 20;
/// Times the last-level cache that is read, so that hardly anything of it is found there.
const CACHE_FACTOR: usize = 4;
/// Bounds of what is read: enough for a rate, and little beside a model.
const BUFFER_BYTES: [usize; 2] = [64 << 20, 1 << 30];

/// How peaks are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeakOptions {
    /// Bytes that are read in a pass, at least 1. If `None`: four times the last-level cache, from
    /// 64 MiB to 1 GiB.
    pub buffer_bytes: Option<usize>,
    /// How long each of the three is measured; the fastest pass counts.
    pub time: Duration,
}

impl Default for PeakOptions {
    fn default() -> Self {
        Self { buffer_bytes: None, time: Duration::from_millis(200) }
    }
}

/// The peaks of one level of instructions on one number of threads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Peaks {
    /// Instructions that were used.
    pub isa: Isa,
    /// Threads that worked together.
    pub threads: usize,
    /// Bytes a second read from memory, in order.
    pub read_bytes: f64,
    /// Multiply-adds a second of f32, on registers.
    pub float_macs: f64,
    /// Multiply-adds a second of 8-bit integers into 32 bits, activations from the first-level
    /// cache, as integer matmuls do them.
    pub integer_macs: f64,
}

impl Peaks {
    /// Measures with the level and the pool that operators called from this thread use.
    pub fn measure(options: &PeakOptions) -> Self {
        let bytes = options.buffer_bytes.unwrap_or_else(default_buffer);
        Self {
            isa: Isa::current(),
            threads: Pool::current(Pool::threads),
            read_bytes: read::bytes_per_second(bytes.max(1), options.time),
            float_macs: compute::float_macs_per_second(options.time),
            integer_macs: compute::integer_macs_per_second(options.time),
        }
    }
}

fn default_buffer() -> usize {
    let cache = last_level_cache_bytes().unwrap_or(CACHE_ASSUMED);
    cache.saturating_mul(CACHE_FACTOR).clamp(BUFFER_BYTES[0], BUFFER_BYTES[1])
}

/// Seconds of the fastest pass among as many as `time` has room for.
fn fastest(time: Duration, mut pass: impl FnMut()) -> f64 {
    let begin = Instant::now();
    let mut best = f64::INFINITY;
    let mut passes = 0;
    while passes < PASSES_MIN || begin.elapsed() < time {
        let start = Instant::now();
        pass();
        best = best.min(start.elapsed().as_secs_f64());
        passes += 1;
    }
    // A clock that does not tick during a pass must not make a rate infinite.
    best.max(1e-9)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn every_level_and_number_of_threads_has_finite_peaks() {
        let options = PeakOptions { buffer_bytes: Some(1 << 20), time: Duration::from_millis(1) };
        for threads in [1, 2] {
            let pool = Arc::new(Pool::new(threads).unwrap());
            for isa in Isa::available() {
                let peaks = Pool::with(&pool, || isa.with(|| Peaks::measure(&options)));
                assert_eq!((peaks.isa, peaks.threads), (isa, threads));
                for rate in [peaks.read_bytes, peaks.float_macs, peaks.integer_macs] {
                    assert!(rate.is_finite() && rate > 0.0, "{peaks:?}");
                }
            }
        }
    }

    #[test]
    fn the_fastest_of_at_least_a_few_passes_counts() {
        let mut passes = 0;
        let seconds = fastest(Duration::ZERO, || passes += 1);
        assert_eq!(passes, PASSES_MIN);
        assert!(seconds > 0.0 && seconds.is_finite());
    }

    #[test]
    fn what_is_read_is_larger_than_the_last_level_cache() {
        let bytes = default_buffer();
        assert!((BUFFER_BYTES[0]..=BUFFER_BYTES[1]).contains(&bytes));
        let cache = last_level_cache_bytes().unwrap_or(0);
        assert!(bytes > cache || bytes == BUFFER_BYTES[1]);
    }
}
