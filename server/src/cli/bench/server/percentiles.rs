//! Percentiles of times, by the nearest rank: each is a time that was measured.

use serde_json::{Value, json};

/// Which are told.
const TOLD: [(&str, f64); 4] = [("p50", 0.50), ("p90", 0.90), ("p95", 0.95), ("p99", 0.99)];

/// What is told of many times, in seconds.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Percentiles {
    sorted: Vec<f64>,
}

impl Percentiles {
    /// Of `values`, in any order.
    pub(crate) fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self { sorted: values }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.sorted.len()
    }

    /// The smallest time that at least `share` of all do not exceed; `None` of nothing.
    pub(crate) fn at(&self, share: f64) -> Option<f64> {
        let rank = (share * self.sorted.len() as f64).ceil() as usize;
        self.sorted.get(rank.max(1) - 1).copied()
    }

    /// The median.
    pub(crate) fn median(&self) -> Option<f64> {
        self.at(0.5)
    }

    fn mean(&self) -> Option<f64> {
        let count = self.sorted.len();
        (count > 0).then(|| self.sorted.iter().sum::<f64>() / count as f64)
    }

    /// All that is told, `null` of nothing.
    pub(crate) fn to_json(&self) -> Value {
        let mut told = json!({
            "count": self.count(),
            "mean": self.mean(),
            "max": self.sorted.last(),
        });
        for (name, share) in TOLD {
            told[name] = json!(self.at(share));
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_value_of_the_nearest_rank() {
        let times = Percentiles::of((1..=200).rev().map(f64::from).collect());
        assert_eq!(times.at(0.5), Some(100.0));
        assert_eq!(times.at(0.99), Some(198.0));
        assert_eq!(times.at(1.0), Some(200.0));
        assert_eq!(times.at(0.0), Some(1.0));
        assert_eq!(times.to_json()["p95"], 190.0);
        assert_eq!(Percentiles::of(vec![3.0]).at(0.99), Some(3.0));
    }

    #[test]
    fn of_nothing_nothing_is_told() {
        let none = Percentiles::default();
        assert_eq!((none.at(0.5), none.count()), (None, 0));
        assert!(none.to_json()["p50"].is_null() && none.to_json()["mean"].is_null());
    }
}
