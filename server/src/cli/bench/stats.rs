//! What is told of several measurements of one thing.

use serde_json::{Value, json};

/// Several measurements, of which there is at least one.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Summary {
    /// The middle one, or the mean of the two in the middle.
    pub(super) median: f64,
    /// The smallest.
    pub(super) min: f64,
    /// The largest.
    pub(super) max: f64,
    /// The standard deviation of what they are a sample of; 0 for a single one.
    pub(super) stddev: f64,
}

impl Summary {
    /// Sums up `values`; zeros for none.
    pub(super) fn of(values: &[f64]) -> Self {
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count.max(1.0);
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        Self {
            median: median(values.to_vec()).unwrap_or(0.0),
            min: values.iter().copied().reduce(f64::min).unwrap_or(0.0),
            max: values.iter().copied().reduce(f64::max).unwrap_or(0.0),
            stddev: if count > 1.0 { (squares / (count - 1.0)).sqrt() } else { 0.0 },
        }
    }

    /// Its fields, each as `<name>_median` and so on.
    pub(super) fn fields(&self, name: &str) -> [(String, Value); 4] {
        [
            (format!("{name}_median"), json!(self.median)),
            (format!("{name}_min"), json!(self.min)),
            (format!("{name}_max"), json!(self.max)),
            (format!("{name}_stddev"), json!(self.stddev)),
        ]
    }
}

/// The value in the middle, or the mean of the two that are; `None` of nothing.
pub(super) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.len().checked_sub(1)? / 2, values.len() / 2);
    Some((values[low] + values[high]) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_that_of_the_textbook() {
        let found = Summary::of(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]);
        assert_eq!((found.median, found.min, found.max), (4.5, 2.0, 9.0));
        assert!((found.stddev - (32.0_f64 / 7.0).sqrt()).abs() < 1e-12);
    }

    #[test]
    fn one_value_does_not_deviate_and_none_is_zero() {
        let one = Summary::of(&[3.0]);
        assert_eq!((one.median, one.min, one.max, one.stddev), (3.0, 3.0, 3.0, 0.0));
        assert_eq!(Summary::of(&[]).median, 0.0);
        assert_eq!(median(vec![]), None);
    }
}
