//! The sizes that operators are measured at: those of a model, or any others.

use crate::error::Error;

/// Largest value of any size: operators count elements with machine words.
const SIZE_MAX: usize = 1 << 20;
/// Columns of a weight are a multiple of this: the largest group of a format.
const GROUP_MAX: usize = 64;

/// Sizes of the parts of a model. Parts that a preset's model lacks have the sizes of one that has
/// them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of an MLP.
    pub intermediate: usize,
    /// Rows of the head and of the table of embeddings.
    pub vocab: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Experts of a layer.
    pub experts: usize,
    /// Experts that a token chooses.
    pub experts_per_token: usize,
    /// Width of an expert.
    pub expert_width: usize,
    /// Key heads of a gated delta layer.
    pub key_heads: usize,
    /// Value heads of a gated delta layer.
    pub value_heads: usize,
    /// Elements of a key head of a gated delta layer.
    pub key_dim: usize,
    /// Elements of a value head of a gated delta layer.
    pub value_dim: usize,
    /// Inputs that the short convolution sees.
    pub conv_kernel: usize,
    /// Heads of latent attention.
    pub latent_heads: usize,
    /// Elements of a latent.
    pub latent_dim: usize,
    /// Elements of a rope key beside a latent.
    pub rope_dim: usize,
}

impl Sizes {
    /// SmolLM2-135M; experts and gated delta of [`HYBRID`](Self::HYBRID), latents of GLM-4.7-Flash.
    pub const SMOLLM2_135M: Self = Self {
        hidden: 576,
        intermediate: 1536,
        vocab: 49_152,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        experts: 32,
        experts_per_token: 4,
        expert_width: 256,
        key_heads: 4,
        value_heads: 8,
        key_dim: 128,
        value_dim: 128,
        conv_kernel: 4,
        latent_heads: 20,
        latent_dim: 512,
        rope_dim: 64,
    };

    /// A dense model of a billion parameters, as Llama-3.2-1B; experts of GLM-4.7-Flash, gated
    /// delta of Qwen3-Next.
    pub const DENSE_1B: Self = Self {
        hidden: 2048,
        intermediate: 8192,
        vocab: 128_256,
        heads: 32,
        kv_heads: 8,
        head_dim: 64,
        experts: 64,
        experts_per_token: 4,
        expert_width: 1536,
        key_heads: 16,
        value_heads: 32,
        ..Self::SMOLLM2_135M
    };

    /// A small Qwen3.5-MoE: three layers of gated delta to one of attention, 32 experts.
    pub const HYBRID: Self = Self {
        hidden: 512,
        intermediate: 1536,
        heads: 4,
        kv_heads: 2,
        head_dim: 256,
        ..Self::SMOLLM2_135M
    };

    /// Every size with its name.
    pub fn named(&self) -> [(&'static str, usize); 17] {
        [
            ("hidden", self.hidden),
            ("intermediate", self.intermediate),
            ("vocab", self.vocab),
            ("heads", self.heads),
            ("kv-heads", self.kv_heads),
            ("head-dim", self.head_dim),
            ("experts", self.experts),
            ("experts-per-token", self.experts_per_token),
            ("expert-width", self.expert_width),
            ("key-heads", self.key_heads),
            ("value-heads", self.value_heads),
            ("key-dim", self.key_dim),
            ("value-dim", self.value_dim),
            ("conv-kernel", self.conv_kernel),
            ("latent-heads", self.latent_heads),
            ("latent-dim", self.latent_dim),
            ("rope-dim", self.rope_dim),
        ]
    }

    /// Channels of the short convolution: queries, keys and values of a gated delta layer.
    pub(crate) fn conv_channels(&self) -> usize {
        2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim
    }

    /// Refuses sizes that operators refuse.
    pub(crate) fn check(&self) -> Result<(), Error> {
        for (option, size) in self.named() {
            if !(1..=SIZE_MAX).contains(&size) {
                return Err(Error::option(option, format!("1 to {SIZE_MAX}"), size));
            }
        }
        let grouped = [
            ("hidden", self.hidden),
            ("intermediate", self.intermediate),
            ("expert-width", self.expert_width),
            ("latent-dim", self.latent_dim),
        ];
        let multiples = [
            ("heads", self.heads, self.kv_heads),
            ("value-heads", self.value_heads, self.key_heads),
            ("head-dim", self.head_dim, 2),
            ("rope-dim", self.rope_dim, 2),
        ];
        let grouped = grouped.map(|(option, size)| (option, size, GROUP_MAX));
        for (option, size, factor) in grouped.into_iter().chain(multiples) {
            if !size.is_multiple_of(factor) {
                return Err(Error::option(option, format!("a multiple of {factor}"), size));
            }
        }
        if self.experts_per_token > self.experts {
            let expected = format!("at most {}, the experts there are", self.experts);
            return Err(Error::option("experts-per-token", expected, self.experts_per_token));
        }
        if self.conv_kernel < 2 {
            return Err(Error::option("conv-kernel", "at least 2", self.conv_kernel));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_accepted() {
        for sizes in [Sizes::SMOLLM2_135M, Sizes::DENSE_1B, Sizes::HYBRID] {
            sizes.check().unwrap();
        }
    }

    #[test]
    fn sizes_that_do_not_go_together_are_refused_by_name() {
        let good = Sizes::SMOLLM2_135M;
        for (sizes, option) in [
            (Sizes { hidden: 100, ..good }, "hidden"),
            (Sizes { hidden: 0, ..good }, "hidden"),
            (Sizes { vocab: usize::MAX, ..good }, "vocab"),
            (Sizes { heads: 10, ..good }, "heads"),
            (Sizes { head_dim: 63, ..good }, "head-dim"),
            (Sizes { value_heads: 9, ..good }, "value-heads"),
            (Sizes { experts_per_token: 33, ..good }, "experts-per-token"),
            (Sizes { conv_kernel: 1, ..good }, "conv-kernel"),
        ] {
            let error = sizes.check().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{option}: expected")), "{error}");
        }
    }
}
