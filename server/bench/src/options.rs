//! What is measured, and how.

use crate::error::Error;
use crate::formats::{Activations, WeightFormat};
use crate::operators::Operator;
use crate::sizes::Sizes;

/// Most rows of a step, and most tokens before them.
const TOKENS_MAX: usize = 1 << 20;
/// Most repetitions.
const REPETITIONS_MAX: usize = 1000;

/// What is measured, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The sizes of operators.
    pub sizes: Sizes,
    /// Operators; all if empty.
    pub only: Vec<Operator>,
    /// Formats of weights; all if empty.
    pub formats: Vec<WeightFormat>,
    /// Forms in which weights of integers read activations; all if empty.
    pub activations: Vec<Activations>,
    /// Rows of a step.
    pub rows: Vec<usize>,
    /// Tokens before those of a step, for attention.
    pub depths: Vec<usize>,
    /// How often each call, or each run of short calls, is timed.
    pub repetitions: usize,
    /// Whether weights and state come from memory, not from caches: several copies take turns.
    pub cold: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            sizes: Sizes::SMOLLM2_135M,
            only: Vec::new(),
            formats: Vec::new(),
            activations: Vec::new(),
            rows: vec![1, 2, 4, 8, 64, 512],
            depths: vec![0, 2048],
            repetitions: 10,
            cold: true,
        }
    }
}

impl Options {
    /// The formats to measure.
    pub(crate) fn formats(&self) -> &[WeightFormat] {
        if self.formats.is_empty() { WeightFormat::ALL } else { &self.formats }
    }

    /// The forms of activations to measure with weights of `format`.
    pub(crate) fn activations(&self, format: WeightFormat) -> Vec<Activations> {
        let wanted = if self.activations.is_empty() { Activations::ALL } else { &self.activations };
        let reads = |form: &&Activations| **form == Activations::F32 || format.has_integer_codes();
        wanted.iter().filter(reads).copied().collect()
    }

    /// Refuses what cannot be measured.
    ///
    /// # Errors
    /// [`Error::Option`] naming the option.
    pub fn check(&self) -> Result<(), Error> {
        self.sizes.check()?;
        if !(1..=REPETITIONS_MAX).contains(&self.repetitions) {
            let expected = format!("1 to {REPETITIONS_MAX}");
            return Err(Error::option("repetitions", expected, self.repetitions));
        }
        for (option, values, least) in [("rows", &self.rows, 1), ("depths", &self.depths, 0)] {
            if values.is_empty() {
                return Err(Error::option(option, "at least one", "none"));
            }
            if let Some(odd) = values.iter().find(|value| !(least..=TOKENS_MAX).contains(value)) {
                return Err(Error::option(option, format!("{least} to {TOKENS_MAX}"), odd));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_out_of_range_are_refused_by_name() {
        let good = Options::default();
        good.check().unwrap();
        for (options, name) in [
            (Options { repetitions: 0, ..good.clone() }, "repetitions"),
            (Options { rows: vec![1, 0], ..good.clone() }, "rows"),
            (Options { rows: vec![], ..good.clone() }, "rows"),
            (Options { depths: vec![TOKENS_MAX + 1], ..good.clone() }, "depths"),
            (Options { sizes: Sizes { heads: 0, ..good.sizes }, ..good.clone() }, "heads"),
        ] {
            let error = options.check().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{name}: expected")), "{error}");
        }
    }

    #[test]
    fn weights_that_are_no_integers_read_activations_as_they_are() {
        let options = Options::default();
        assert_eq!(options.activations(WeightFormat::Bf16), [Activations::F32]);
        assert_eq!(options.activations(WeightFormat::Q4_0), Activations::ALL);
        let int8 = Options { activations: vec![Activations::Int8], ..options };
        assert!(int8.activations(WeightFormat::Mxfp8).is_empty());
    }
}
