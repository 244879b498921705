//! Angles of the rotary embedding: frequencies with their scalings, and cosines and sines of a step.
//! How heads are turned by them is the operator's business, how a configuration spells them the
//! checkpoint's.

use std::f64::consts::TAU;

use candle_core::Tensor;
use sconce_kernels::write_rows;

use super::workspace::Allocator;
use crate::checkpoint::{ModelConfig, Rope, RopeScaling, Yarn};
use crate::error::Error;

/// How far each pair of a head turns per position, in radians, and what happens to the result.
///
/// Everything is computed in f64 and rounded once, when the cosines and sines are stored.
#[derive(Debug, Clone)]
pub(crate) struct Frequencies {
    /// One for each pair of the rotary part.
    inverse: Vec<f64>,
    /// Factor of cosine and sine: YaRN's attention factor, otherwise 1.
    amplitude: f64,
    /// Set where frequencies change with the position.
    dynamic: Option<Dynamic>,
}

/// Dynamic NTK scaling: past the trained context, the base grows with the length of the sequence.
///
/// A position uses the base of a sequence that ends there. That is what decoding one token at a
/// time computes, and it makes a key independent of how its prompt was cut into steps.
#[derive(Debug, Clone, Copy)]
struct Dynamic {
    theta: f64,
    factor: f64,
    context: usize,
}

impl Frequencies {
    /// Frequencies for heads of `head_dim` elements.
    ///
    /// # Errors
    /// [`Error::Config`] for a rotary part that has no pairs, or divisors for another number of
    /// pairs.
    pub(crate) fn new(config: &ModelConfig, rope: &Rope, head_dim: usize) -> Result<Self, Error> {
        let dim = rotary_dim(rope, head_dim);
        let dynamic = matches!(rope.scaling, RopeScaling::Dynamic { .. });
        if dim < 2 || !dim.is_multiple_of(2) || (dynamic && dim < 4) {
            let found = format!("a rotary part of {dim} of {head_dim} elements of a head");
            return Err(config.error("head_dim", "an even number of rotated elements", found));
        }
        let mut frequencies = Self::scaled(rope, dim);
        if let Some(divisors) = &rope.frequency_divisors {
            if divisors.len() != dim / 2 {
                let expected = format!("{} divisors", dim / 2);
                return Err(config.error("rope_frequency_divisors", expected, divisors.len()));
            }
            for (inverse, divisor) in frequencies.inverse.iter_mut().zip(divisors) {
                *inverse /= f64::from(*divisor);
            }
        }
        Ok(frequencies)
    }

    fn scaled(rope: &Rope, dim: usize) -> Self {
        let mut inverse = unscaled(rope.theta, dim);
        let (mut amplitude, mut dynamic) = (1.0, None);
        match &rope.scaling {
            RopeScaling::Default => {}
            RopeScaling::Linear { factor } => inverse.iter_mut().for_each(|f| *f /= factor),
            RopeScaling::Dynamic { factor, original_max_position_embeddings: context } => {
                dynamic = Some(Dynamic { theta: rope.theta, factor: *factor, context: *context });
            }
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings: context,
            } => {
                for frequency in &mut inverse {
                    let rotations = *context as f64 * *frequency / TAU;
                    let kept = (rotations - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    *frequency = blend(*frequency, *factor, kept.clamp(0.0, 1.0));
                }
            }
            RopeScaling::Yarn(yarn) => {
                amplitude = yarn_amplitude(yarn);
                let (low, high) = yarn_range(yarn, rope.theta, dim);
                for (pair, frequency) in inverse.iter_mut().enumerate() {
                    let scaled = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    *frequency = blend(*frequency, yarn.factor, 1.0 - scaled);
                }
            }
        }
        Self { inverse, amplitude, dynamic }
    }

    /// Number of pairs: half of the rotary part of a head.
    pub(crate) fn pairs(&self) -> usize {
        self.inverse.len()
    }

    /// Cosines and sines of one position, [`pairs`](Self::pairs) each.
    fn fill(&self, position: usize, cos: &mut [f32], sin: &mut [f32]) {
        let stretched;
        let inverse = match self.dynamic {
            Some(dynamic) if position >= dynamic.context => {
                stretched = dynamic.inverse(position + 1, 2 * self.pairs());
                &stretched
            }
            _ => &self.inverse,
        };
        for ((cos, sin), inverse) in cos.iter_mut().zip(sin).zip(inverse) {
            let (s, c) = (position as f64 * inverse).sin_cos();
            *cos = (c * self.amplitude) as f32;
            *sin = (s * self.amplitude) as f32;
        }
    }
}

impl Dynamic {
    /// Frequencies of a sequence of `len` tokens, more than the trained context.
    fn inverse(&self, len: usize, dim: usize) -> Vec<f64> {
        let growth = self.factor * len as f64 / self.context as f64 - (self.factor - 1.0);
        let exponent = dim as f64 / (dim as f64 - 2.0);
        unscaled(self.theta * growth.powf(exponent), dim)
    }
}

/// Elements of a head that are turned.
fn rotary_dim(rope: &Rope, head_dim: usize) -> usize {
    (head_dim as f64 * rope.partial_rotary_factor) as usize
}

/// Pair `i` turns by `theta^(-2i / dim)`.
fn unscaled(theta: f64, dim: usize) -> Vec<f64> {
    (0..dim / 2).map(|pair| theta.powf(-2.0 * pair as f64 / dim as f64)).collect()
}

/// A frequency of which the share `kept` stays as it is and the rest is divided by `factor`.
fn blend(frequency: f64, factor: f64, kept: f64) -> f64 {
    frequency * kept + frequency / factor * (1.0 - kept)
}

/// YaRN, section 3.4: what attention is rescaled by, as a factor of cosine and sine.
fn yarn_amplitude(yarn: &Yarn) -> f64 {
    let amplitude = |weight: f64| match yarn.factor > 1.0 {
        true => 0.1 * weight * yarn.factor.ln() + 1.0,
        false => 1.0,
    };
    match (yarn.attention_factor, yarn.mscale, yarn.mscale_all_dim) {
        (Some(given), _, _) => given,
        (None, Some(above), Some(below)) if above != 0.0 && below != 0.0 => {
            amplitude(above) / amplitude(below)
        }
        _ => amplitude(1.0),
    }
}

/// YaRN, section 3.2: the pairs between which frequencies go from kept to divided.
fn yarn_range(yarn: &Yarn, theta: f64, dim: usize) -> (f64, f64) {
    let context = yarn.original_max_position_embeddings as f64;
    let pair_with =
        |rotations: f64| dim as f64 * (context / (rotations * TAU)).ln() / (2.0 * theta.ln());
    let (mut low, mut high) = (pair_with(yarn.beta_fast), pair_with(yarn.beta_slow));
    if yarn.truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    let (low, high) = (low.max(0.0), high.min(dim as f64 - 1.0));
    // An empty range would divide by zero; the reference widens it by as much.
    (low, if low == high { high + 0.001 } else { high })
}

/// Cosines and sines of a step's rows, computed once and used by every layer.
#[derive(Debug)]
pub(crate) struct RopeTable {
    frequencies: Frequencies,
    /// `[capacity, pairs]`.
    pub(crate) cos: Tensor,
    /// `[capacity, pairs]`.
    pub(crate) sin: Tensor,
    host_cos: Vec<f32>,
    host_sin: Vec<f32>,
}

impl RopeTable {
    /// A table for the steps that `allocator` makes buffers for.
    ///
    /// # Errors
    /// The device cannot allocate.
    pub(crate) fn new(
        frequencies: Frequencies,
        allocator: &mut Allocator<'_>,
    ) -> Result<Self, Error> {
        let pairs = frequencies.pairs();
        let elements = allocator.rows() * pairs;
        Ok(Self {
            frequencies,
            cos: allocator.buffer(pairs)?,
            sin: allocator.buffer(pairs)?,
            host_cos: allocator.host(elements),
            host_sin: allocator.host(elements),
        })
    }

    /// Fills the leading rows with the angles of `positions`, at most `capacity`.
    ///
    /// # Errors
    /// The device cannot be written.
    pub(crate) fn fill(&mut self, positions: &[usize]) -> Result<(), Error> {
        let pairs = self.frequencies.pairs();
        let len = positions.len() * pairs;
        let rows = self.host_cos.chunks_exact_mut(pairs).zip(self.host_sin.chunks_exact_mut(pairs));
        for (&position, (cos, sin)) in positions.iter().zip(rows) {
            self.frequencies.fill(position, cos, sin);
        }
        write_rows(&self.cos, &self.host_cos[..len])?;
        write_rows(&self.sin, &self.host_sin[..len])?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Precision;
    use candle_core::Device;
    use serde_json::{Value, json};

    fn frequencies(json: Value, head_dim: usize) -> Result<Frequencies, Error> {
        let config = ModelConfig::from_json("config.json", json).unwrap();
        let rope = config.rope(None).unwrap();
        Frequencies::new(&config, &rope, head_dim)
    }

    fn assert_close(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() <= 1e-6 * expected.abs(), "{found} {expected}");
        }
    }

    #[test]
    fn plain_frequencies_fall_from_one_by_equal_factors() {
        let plain = frequencies(json!({"rope_theta": 10000.0}), 8).unwrap();
        assert_close(&plain.inverse, &[1.0, 0.1, 0.01, 0.001]);
        assert_eq!(plain.amplitude, 1.0);
    }

    #[test]
    fn a_partial_factor_turns_only_the_front_of_a_head() {
        let plain =
            frequencies(json!({"rope_theta": 10000.0, "partial_rotary_factor": 0.5}), 8).unwrap();
        assert_close(&plain.inverse, &[1.0, 0.01]);
    }

    #[test]
    fn linear_scaling_and_divisors_divide() {
        let config = json!({
            "rope_scaling": {"type": "linear", "factor": 4.0},
            "rope_frequency_divisors": [1.0, 2.0],
        });
        assert_close(&frequencies(config, 4).unwrap().inverse, &[0.25, 0.00125]);
    }

    #[test]
    fn llama3_keeps_high_frequencies_and_divides_low_ones() {
        let config = json!({"rope_theta": 10000.0, "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 1256,
        }});
        let found = frequencies(config, 8).unwrap().inverse;
        // 1256 tokens are 199.9, 19.99, 1.999 and 0.1999 rotations of the four pairs.
        let kept = (1256.0 * 0.01 / TAU - 1.0) / 3.0;
        let blended = 0.01 * kept + 0.01 / 8.0 * (1.0 - kept);
        assert_close(&found, &[1.0, 0.1, blended, 0.001 / 8.0]);
    }

    #[test]
    fn yarn_blends_by_rotations_and_rescales() {
        let config = json!({"rope_theta": 10000.0, "rope_scaling": {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64,
        }});
        let found = frequencies(config, 8).unwrap();
        // Pair index with 32 rotations is negative, with one rotation 1.008, rounded up to 2.
        assert_close(&found.inverse, &[1.0, 0.1 * 0.5 + 0.025 * 0.5, 0.0025, 0.00025]);
        assert!((found.amplitude - (0.1 * 4.0_f64.ln() + 1.0)).abs() < 1e-12);
    }

    #[test]
    fn the_attention_factor_is_taken_or_made_of_both_mscales() {
        let with = |extra: Value| {
            let mut scaling = json!({
                "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64,
            });
            scaling.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            frequencies(json!({"rope_scaling": scaling}), 8).unwrap().amplitude
        };
        assert_eq!(with(json!({"attention_factor": 0.5})), 0.5);
        assert_eq!(with(json!({"mscale": 1.0, "mscale_all_dim": 1.0})), 1.0);
        assert_eq!(with(json!({"mscale": 2.0})), with(json!({})));
    }

    #[test]
    fn dynamic_scaling_starts_where_the_trained_context_ends() {
        let config = json!({
            "rope_theta": 10000.0, "max_position_embeddings": 16,
            "rope_scaling": {"type": "dynamic", "factor": 2.0},
        });
        let dynamic = frequencies(config, 8).unwrap();
        let plain = frequencies(json!({"rope_theta": 10000.0}), 8).unwrap();
        let angles = |frequencies: &Frequencies, position| {
            let (mut cos, mut sin) = ([0.0; 4], [0.0; 4]);
            frequencies.fill(position, &mut cos, &mut sin);
            (cos, sin)
        };
        assert_eq!(angles(&dynamic, 15), angles(&plain, 15));
        assert_ne!(angles(&dynamic, 16), angles(&plain, 16));
        // At length 24, twice 24 / 16 less one: the base doubles, to the power 8 / 6.
        let theta = 10000.0 * 2.0_f64.powf(8.0 / 6.0);
        assert_close(&dynamic.dynamic.unwrap().inverse(24, 8), &unscaled(theta, 8));
    }

    #[test]
    fn heads_that_cannot_be_turned_are_refused() {
        assert!(frequencies(json!({}), 1).is_err());
        assert!(frequencies(json!({"partial_rotary_factor": 0.5}), 6).is_err());
        let error = frequencies(json!({"rope_frequency_divisors": [1.0]}), 4).unwrap_err();
        assert!(error.to_string().contains("expected 2 divisors, found 1"), "{error}");
    }

    #[test]
    fn a_table_row_holds_the_angles_of_its_position() {
        let plain = frequencies(json!({"rope_theta": 10000.0}), 4).unwrap();
        let mut allocator = Allocator::new(3, Precision::Exact, &Device::Cpu);
        let mut table = RopeTable::new(plain, &mut allocator).unwrap();
        assert_eq!(allocator.bytes(), 4 * 3 * 2 * 4);
        table.fill(&[7, 0]).unwrap();
        let cos = table.cos.to_vec2::<f32>().unwrap();
        let sin = table.sin.to_vec2::<f32>().unwrap();
        assert_eq!(cos[0], [7.0_f64.cos() as f32, 0.07_f64.cos() as f32]);
        assert_eq!(
            (cos[1].as_slice(), sin[1].as_slice()),
            ([1.0; 2].as_slice(), [0.0; 2].as_slice())
        );
    }
}
