//! The operators, each with its cases: what is allocated, what is called, what it costs at least.
//!
//! Weights, keys and values and recurrent state take turns in several copies, as the layers of a
//! model do; rows of activations stay where they are, as they do in a step.

mod attention;
mod experts;
mod matmul;
mod recurrent;
mod rows;

use std::str::FromStr;

use candle_core::{Device, Tensor};

use crate::error::Error;
use crate::formats::by_name;
use crate::runner::Runner;

/// An operator that can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operator {
    /// Rows times a weight of an MLP.
    Matmul,
    /// Rows times the head of a vocabulary.
    LmHead,
    /// The quantized form of rows.
    Quantize,
    /// Rows times a weight for each head.
    HeadMatmul,
    /// Rows times the experts they chose.
    ExpertMatmul,
    /// The choice of experts.
    Route,
    /// Attention with keys and values for groups of heads.
    Attention,
    /// Attention over latents.
    LatentAttention,
    /// The gated delta rule.
    GatedDelta,
    /// The short convolution.
    ShortConv,
    /// The norm of rows.
    RmsNorm,
    /// The norm of heads, gated.
    RmsNormGated,
    /// Rotary embedding.
    Rope,
    /// The gate of an MLP.
    GateMul,
    /// Rows of a table.
    Embedding,
}

impl Operator {
    /// All of them, in the order in which they are measured.
    pub const ALL: &[Self] = &[
        Self::Matmul,
        Self::LmHead,
        Self::Quantize,
        Self::HeadMatmul,
        Self::ExpertMatmul,
        Self::Route,
        Self::Attention,
        Self::LatentAttention,
        Self::GatedDelta,
        Self::ShortConv,
        Self::RmsNorm,
        Self::RmsNormGated,
        Self::Rope,
        Self::GateMul,
        Self::Embedding,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Matmul => "matmul",
            Self::LmHead => "lm_head",
            Self::Quantize => "quantize",
            Self::HeadMatmul => "head_matmul",
            Self::ExpertMatmul => "expert_matmul",
            Self::Route => "route",
            Self::Attention => "attention",
            Self::LatentAttention => "latent_attention",
            Self::GatedDelta => "gated_delta",
            Self::ShortConv => "short_conv",
            Self::RmsNorm => "rms_norm",
            Self::RmsNormGated => "rms_norm_gated",
            Self::Rope => "rope",
            Self::GateMul => "gate_mul",
            Self::Embedding => "embedding",
        }
    }

    /// Measures its cases, if they are wanted.
    pub(crate) fn measure(self, runner: &mut Runner<'_>) -> Result<(), Error> {
        let only = &runner.options().only;
        if !only.is_empty() && !only.contains(&self) {
            return Ok(());
        }
        match self {
            Self::Matmul => matmul::layers(runner),
            Self::LmHead => matmul::head(runner),
            Self::Quantize => matmul::quantize(runner),
            Self::HeadMatmul => matmul::heads(runner),
            Self::ExpertMatmul => experts::matmul(runner),
            Self::Route => experts::route(runner),
            Self::Attention => attention::grouped(runner),
            Self::LatentAttention => attention::latent(runner),
            Self::GatedDelta => recurrent::gated_delta(runner),
            Self::ShortConv => recurrent::short_conv(runner),
            Self::RmsNorm => rows::rms_norm(runner),
            Self::RmsNormGated => rows::rms_norm_gated(runner),
            Self::Rope => rows::rope(runner),
            Self::GateMul => rows::gate_mul(runner),
            Self::Embedding => rows::embedding(runner),
        }
    }
}

impl FromStr for Operator {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        by_name(Self::ALL, Self::name, text)
    }
}

/// Most elements of one tensor.
const ELEMENTS_MAX: u64 = 1 << 30;

fn expect_room(dims: &[usize]) -> Result<(), Error> {
    let found = dims.iter().fold(1, |product: u64, dim| product.saturating_mul(*dim as u64));
    if found > ELEMENTS_MAX {
        let (what, limit) = (format!("a tensor {dims:?}"), 4 * ELEMENTS_MAX);
        return Err(Error::TooLarge { what, limit, found: found.saturating_mul(4) });
    }
    Ok(())
}

/// Rows between -1 and 1.
fn random(rows: usize, dim: usize) -> Result<Tensor, Error> {
    expect_room(&[rows, dim])?;
    Ok(Tensor::rand(-1.0_f32, 1.0, (rows, dim), &Device::Cpu)?)
}

/// A vector of one value.
fn constant(value: f32, dim: usize) -> Result<Tensor, Error> {
    expect_room(&[dim])?;
    Ok(Tensor::full(value, dim, &Device::Cpu)?)
}

/// State after something was seen. Not zeros: their memory would be mapped while time is taken.
fn state(dims: &[usize]) -> Result<Tensor, Error> {
    expect_room(dims)?;
    Ok(Tensor::full(0.01_f32, dims, &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use sconce_kernels::{Isa, PeakOptions, Peaks};

    use super::*;
    use crate::{Bound, Measurement, Options, Sizes, measure};

    /// Sizes that take no time.
    fn tiny() -> Options {
        Options {
            sizes: Sizes {
                hidden: 64,
                intermediate: 128,
                vocab: 80,
                heads: 4,
                kv_heads: 2,
                head_dim: 16,
                experts: 4,
                experts_per_token: 2,
                expert_width: 64,
                key_heads: 2,
                value_heads: 4,
                key_dim: 16,
                value_dim: 16,
                conv_kernel: 4,
                latent_heads: 2,
                latent_dim: 64,
                rope_dim: 8,
            },
            rows: vec![1, 3],
            depths: vec![0, 70],
            repetitions: 1,
            cold: false,
            ..Options::default()
        }
    }

    fn all(options: &Options) -> Vec<Measurement> {
        let mut found = Vec::new();
        let mut heard = |measurement| {
            found.push(measurement);
            ControlFlow::Continue(())
        };
        measure(options, &mut heard).unwrap();
        found
    }

    fn refusal(options: &Options) -> String {
        measure(options, &mut |_| ControlFlow::Continue(())).unwrap_err().to_string()
    }

    #[test]
    fn every_operator_is_measured_and_does_some_work() {
        let found = all(&tiny());
        for &operator in Operator::ALL {
            assert_eq!(operator.name().parse(), Ok(operator));
            let cases = found.iter().filter(|measurement| measurement.operator == operator);
            assert!(cases.count() > 0, "{}", operator.name());
        }
        for Measurement { operator, labels, work, seconds } in &found {
            assert!(work.bytes > 0.0, "{}: {labels:?}", operator.name());
            assert!(work.integer_macs >= 0.0 && work.float_macs >= 0.0);
            assert_eq!(seconds.len(), 1);
        }
        let mut cases: Vec<String> = found
            .iter()
            .map(|measurement| format!("{:?} {:?}", measurement.operator, measurement.labels))
            .collect();
        let count = cases.len();
        cases.sort();
        cases.dedup();
        assert_eq!(cases.len(), count, "no two cases have the same labels");
    }

    #[test]
    fn what_is_not_asked_for_is_not_measured() {
        let only = vec![Operator::Rope, Operator::Matmul];
        let formats = vec![crate::WeightFormat::Q4_0];
        let found = all(&Options { only: only.clone(), formats, ..tiny() });
        assert!(found.iter().all(|measurement| only.contains(&measurement.operator)));
        let formats: Vec<_> = found.iter().filter_map(|found| found.labels.format).collect();
        assert!(!formats.is_empty() && formats.iter().all(|format| *format == "q4_0"));
    }

    #[test]
    fn a_product_of_one_row_is_bound_by_reading_and_one_of_many_by_computing() {
        let time = std::time::Duration::from_millis(1);
        let peaks = PeakOptions { buffer_bytes: Some(1 << 20), time };
        let measured = Peaks::measure(&peaks);
        // As on most machines, whatever this one is like under the load of other tests.
        let peaks = Peaks { read_bytes: 10e9, float_macs: 50e9, integer_macs: 200e9, ..measured };
        assert_eq!(peaks.isa, Isa::current());
        let (only, formats) = (vec![Operator::Matmul], vec![crate::WeightFormat::Q4_0]);
        let options = Options { only, formats, rows: vec![1, 512], ..tiny() };
        for found in all(&options) {
            let (seconds, bound) = found.work.least_seconds(&peaks);
            assert!(seconds > 0.0);
            let expected = if found.labels.rows == 1 { Bound::Read } else { Bound::Compute };
            assert_eq!(bound, expected, "{:?}", found.labels);
        }
    }

    #[test]
    fn tensors_that_fill_the_memory_are_refused() {
        let options = Options {
            only: vec![Operator::Attention],
            rows: vec![1 << 20],
            sizes: Sizes { heads: 1 << 10, kv_heads: 1, head_dim: 256, ..tiny().sizes },
            ..tiny()
        };
        assert!(refusal(&options).contains("expected at most"), "{}", refusal(&options));
    }

    #[test]
    fn more_experts_or_heads_than_there_is_memory_for_are_refused() {
        let many = 1 << 20;
        for (operator, sizes) in [
            (Operator::ExpertMatmul, Sizes { experts: many, ..Sizes::SMOLLM2_135M }),
            (Operator::HeadMatmul, Sizes { latent_heads: many, ..Sizes::SMOLLM2_135M }),
        ] {
            let error = refusal(&Options { only: vec![operator], sizes, ..tiny() });
            assert!(error.starts_with("1048576 weights"), "{error}");
        }
    }

    #[test]
    fn options_that_leave_no_case_are_refused() {
        let head = Options { only: vec![Operator::LmHead], rows: vec![64], ..tiny() };
        let reads = Options {
            only: vec![Operator::Matmul],
            formats: vec![crate::WeightFormat::Bf16],
            activations: vec![crate::Activations::Int8],
            ..tiny()
        };
        for options in [head, reads] {
            assert!(refusal(&options).starts_with("nothing to measure"), "{}", refusal(&options));
        }
    }
}
