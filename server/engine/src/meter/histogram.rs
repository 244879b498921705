//! Histograms with fixed bounds that any thread may read while another writes, without a lock and
//! without taking memory.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Parts of a second in which sums of times are kept.
const NANOS: f64 = 1e-9;

/// Counts of observations between bounds, and their sum.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One for each bound, and one for what lies above all.
    counts: Box<[AtomicU64]>,
    /// In `unit`s, so that it can be added to without a loop.
    sum: AtomicU64,
    unit: f64,
}

/// A histogram at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct HistogramReading {
    /// Upper bounds, ascending; each belongs to the bucket below it.
    pub bounds: &'static [f64],
    /// Observations up to each bound and above the one before; the last is above all.
    pub counts: Vec<u64>,
    /// Sum of what was observed, in seconds or pieces.
    pub sum: f64,
}

impl Histogram {
    /// Of times, with bounds in seconds, ascending.
    pub fn of_seconds(bounds: &'static [f64]) -> Self {
        Self::new(bounds, NANOS)
    }

    /// Of numbers of things.
    pub fn of_counts(bounds: &'static [f64]) -> Self {
        Self::new(bounds, 1.0)
    }

    fn new(bounds: &'static [f64], unit: f64) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, counts, sum: AtomicU64::new(0), unit }
    }

    /// Adds a time to a histogram of seconds.
    pub fn observe(&self, time: Duration) {
        self.add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), time.as_secs_f64());
    }

    /// Adds a number to a histogram of counts.
    pub fn observe_count(&self, count: usize) {
        self.add(count as u64, count as f64);
    }

    fn add(&self, units: u64, value: f64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        // No other memory hangs on these numbers.
        self.sum.fetch_add(units, Ordering::Relaxed);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
    }

    /// What was observed. What is being observed meanwhile may be in one part of it and not in the
    /// other.
    pub fn read(&self) -> HistogramReading {
        HistogramReading {
            bounds: self.bounds,
            counts: self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect(),
            sum: self.sum.load(Ordering::Relaxed) as f64 * self.unit,
        }
    }
}

impl HistogramReading {
    /// How many observations there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_the_bucket_below_it() {
        let histogram = Histogram::of_seconds(&[0.1, 1.0]);
        for millis in [0, 100, 101, 1000, 5000] {
            histogram.observe(Duration::from_millis(millis));
        }
        let reading = histogram.read();
        assert_eq!((reading.counts.as_slice(), reading.count()), (&[2, 2, 1][..], 5));
        assert!((reading.sum - 6.201).abs() < 1e-9, "{reading:?}");
    }

    #[test]
    fn numbers_are_summed_as_they_are() {
        let histogram = Histogram::of_counts(&[1.0, 8.0]);
        for count in [0, 1, 2, 8, 9] {
            histogram.observe_count(count);
        }
        assert_eq!(
            histogram.read(),
            HistogramReading { bounds: &[1.0, 8.0], counts: vec![2, 2, 1], sum: 20.0 }
        );
    }
}
