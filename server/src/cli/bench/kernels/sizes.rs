//! Sizes of operators on the command line: those of a model by name, and any of them changed.

use sconce_bench::Sizes;

/// Models whose sizes are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Preset {
    /// SmolLM2-135M
    #[value(name = "smollm2-135m")]
    SmolLm2,
    /// A dense model of a billion parameters, as Llama-3.2-1B
    #[value(name = "dense-1b")]
    Dense,
    /// A small hybrid with experts, as Qwen3.5-MoE
    #[value(name = "hybrid")]
    Hybrid,
}

/// Sizes of operators.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Sizes")]
pub(super) struct SizeArgs {
    /// Sizes of a model; those of other parts where it lacks some
    #[arg(long, value_enum, value_name = "MODEL", default_value = "smollm2-135m")]
    preset: Preset,
    /// Width of the residual stream
    #[arg(long, value_name = "N")]
    hidden: Option<usize>,
    /// Width of an MLP
    #[arg(long, value_name = "N")]
    intermediate: Option<usize>,
    /// Rows of the head and of the table of embeddings
    #[arg(long, value_name = "N")]
    vocab: Option<usize>,
    /// Query heads
    #[arg(long, value_name = "N")]
    heads: Option<usize>,
    /// Key and value heads
    #[arg(long, value_name = "N")]
    kv_heads: Option<usize>,
    /// Elements of a head
    #[arg(long, value_name = "N")]
    head_dim: Option<usize>,
    /// Experts of a layer
    #[arg(long, value_name = "N")]
    experts: Option<usize>,
    /// Experts that a token chooses
    #[arg(long, value_name = "N")]
    experts_per_token: Option<usize>,
    /// Width of an expert
    #[arg(long, value_name = "N")]
    expert_width: Option<usize>,
    /// Key heads of a gated delta layer
    #[arg(long, value_name = "N")]
    key_heads: Option<usize>,
    /// Value heads of a gated delta layer
    #[arg(long, value_name = "N")]
    value_heads: Option<usize>,
    /// Elements of a key head of a gated delta layer
    #[arg(long, value_name = "N")]
    key_dim: Option<usize>,
    /// Elements of a value head of a gated delta layer
    #[arg(long, value_name = "N")]
    value_dim: Option<usize>,
    /// Inputs that the short convolution sees
    #[arg(long, value_name = "N")]
    conv_kernel: Option<usize>,
    /// Heads of latent attention
    #[arg(long, value_name = "N")]
    latent_heads: Option<usize>,
    /// Elements of a latent
    #[arg(long, value_name = "N")]
    latent_dim: Option<usize>,
    /// Elements of a rope key beside a latent
    #[arg(long, value_name = "N")]
    rope_dim: Option<usize>,
}

impl SizeArgs {
    /// The preset's sizes with those that are given in their place.
    pub(super) fn sizes(&self) -> Sizes {
        let base = match self.preset {
            Preset::SmolLm2 => Sizes::SMOLLM2_135M,
            Preset::Dense => Sizes::DENSE_1B,
            Preset::Hybrid => Sizes::HYBRID,
        };
        Sizes {
            hidden: self.hidden.unwrap_or(base.hidden),
            intermediate: self.intermediate.unwrap_or(base.intermediate),
            vocab: self.vocab.unwrap_or(base.vocab),
            heads: self.heads.unwrap_or(base.heads),
            kv_heads: self.kv_heads.unwrap_or(base.kv_heads),
            head_dim: self.head_dim.unwrap_or(base.head_dim),
            experts: self.experts.unwrap_or(base.experts),
            experts_per_token: self.experts_per_token.unwrap_or(base.experts_per_token),
            expert_width: self.expert_width.unwrap_or(base.expert_width),
            key_heads: self.key_heads.unwrap_or(base.key_heads),
            value_heads: self.value_heads.unwrap_or(base.value_heads),
            key_dim: self.key_dim.unwrap_or(base.key_dim),
            value_dim: self.value_dim.unwrap_or(base.value_dim),
            conv_kernel: self.conv_kernel.unwrap_or(base.conv_kernel),
            latent_heads: self.latent_heads.unwrap_or(base.latent_heads),
            latent_dim: self.latent_dim.unwrap_or(base.latent_dim),
            rope_dim: self.rope_dim.unwrap_or(base.rope_dim),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        sizes: SizeArgs,
    }

    #[test]
    fn every_size_has_a_flag_of_its_name() {
        let command = Line::command();
        for (index, (name, _)) in Sizes::SMOLLM2_135M.named().into_iter().enumerate() {
            assert!(command.get_arguments().any(|arg| arg.get_long() == Some(name)), "--{name}");
            let value = (1000 + index).to_string();
            let line = Line::try_parse_from(["bench", &format!("--{name}"), &value]).unwrap();
            let found = line.sizes.sizes().named();
            let changed: Vec<_> = found
                .into_iter()
                .zip(Sizes::SMOLLM2_135M.named())
                .filter(|(now, before)| now != before)
                .collect();
            assert_eq!(changed.len(), 1, "--{name}");
            assert_eq!(changed[0].0, (name, 1000 + index));
        }
    }

    #[test]
    fn a_preset_has_the_sizes_of_its_model() {
        let sizes = |preset| Line::try_parse_from(["bench", "--preset", preset]).unwrap().sizes;
        assert_eq!(sizes("dense-1b").sizes(), Sizes::DENSE_1B);
        assert_eq!(sizes("hybrid").sizes(), Sizes::HYBRID);
    }
}
