//! Names of tensors: from the GGUF converter's to those of `transformers`, and what order the
//! converter left their rows in.
//!
//! An architecture adds what it has beyond the common table; a name in neither keeps the file's.

use crate::checkpoint::tensor::RowMap;

/// The architecture that GLM-4.7-Flash goes by.
const GLM: &str = "deepseek2";

/// Names in a file and in `transformers`.
type Table = &'static [(&'static str, &'static str)];

/// Tensors outside of the layers.
const MODEL: Table = &[
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
    ("output.bias", "lm_head.bias"),
];

/// Tensors of a layer: `blk.N.<left>` is `model.layers.N.<right>`, each with `.weight` or `.bias`.
const LAYER: Table = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// Norms on both sides of attention and MLP.
const GEMMA3: Table = &[
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

/// The router and the stacks of the experts, `[experts, rows, cols]`.
const EXPERTS: Table = &[
    ("ffn_gate_inp", "mlp.gate"),
    ("ffn_gate_exps", "mlp.switch_mlp.gate_proj"),
    ("ffn_up_exps", "mlp.switch_mlp.up_proj"),
    ("ffn_down_exps", "mlp.switch_mlp.down_proj"),
];

/// The stacks in a file that keeps gate and up in one, as `transformers` does; parameters without
/// a module of their own.
const FUSED_EXPERTS: Table = &[
    ("ffn_gate_up_exps.weight", "mlp.experts.gate_up_proj"),
    ("ffn_down_exps.weight", "mlp.experts.down_proj"),
];

/// The expert that every token goes to, with a gate of its own.
const SHARED_EXPERT: Table = &[
    ("ffn_gate_inp_shexp", "mlp.shared_expert_gate"),
    ("ffn_gate_shexp", "mlp.shared_expert.gate_proj"),
    ("ffn_up_shexp", "mlp.shared_expert.up_proj"),
    ("ffn_down_shexp", "mlp.shared_expert.down_proj"),
];

/// Gated delta layers, and the second norm of the layers between them.
const DELTA: Table = &[
    ("post_attention_norm", "post_attention_layernorm"),
    ("attn_qkv", "linear_attn.in_proj_qkv"),
    ("attn_gate", "linear_attn.in_proj_z"),
    ("ssm_alpha", "linear_attn.in_proj_a"),
    ("ssm_beta", "linear_attn.in_proj_b"),
    ("ssm_ba", "linear_attn.in_proj_ba"),
    // Files of the first converter keep the four projections together.
    ("ssm_in", "linear_attn.in_proj_qkvz"),
    ("ssm_conv1d", "linear_attn.conv1d"),
    ("ssm_norm", "linear_attn.norm"),
    ("ssm_out", "linear_attn.out_proj"),
];

/// Parameters of gated delta layers without a module of their own. The decay rate is
/// `-exp(A_log)`, which is no tensor of `transformers`.
const DELTA_PARAMETERS: Table =
    &[("ssm_a", "linear_attn.decay_rate"), ("ssm_dt.bias", "linear_attn.dt_bias")];

/// Latent attention, and the experts that every token goes to, in one MLP.
const LATENT: Table = &[
    ("attn_q_a", "self_attn.q_a_proj"),
    ("attn_q_a_norm", "self_attn.q_a_layernorm"),
    ("attn_q_b", "self_attn.q_b_proj"),
    ("attn_kv_a_mqa", "self_attn.kv_a_proj_with_mqa"),
    ("attn_kv_a_norm", "self_attn.kv_a_layernorm"),
    ("attn_kv_b", "self_attn.kv_b_proj"),
    // The two halves of kv_b, head by head, under the names that MLX has for them.
    ("attn_k_b", "self_attn.embed_q"),
    ("attn_v_b", "self_attn.unembed_out"),
    ("ffn_gate_shexp", "mlp.shared_experts.gate_proj"),
    ("ffn_up_shexp", "mlp.shared_experts.up_proj"),
    ("ffn_down_shexp", "mlp.shared_experts.down_proj"),
];

/// What predicts further tokens, in a layer behind the last.
const PREDICTION: Table = &[
    ("nextn.eh_proj", "eh_proj"),
    ("nextn.embed_tokens", "embed_tokens"),
    ("nextn.enorm", "enorm"),
    ("nextn.hnorm", "hnorm"),
    ("nextn.shared_head_head", "shared_head.head"),
    ("nextn.shared_head_norm", "shared_head.norm"),
];

/// The correction of the router's scores; early files have it without a suffix.
const ROUTER_CORRECTION: Table = &[
    ("exp_probs_b.bias", "mlp.gate.e_score_correction_bias"),
    ("exp_probs_b", "mlp.gate.e_score_correction_bias"),
];

/// Architectures whose q and k rows the converter interleaves.
const INTERLEAVED: &[&str] = &["llama"];

/// What the names of a file depend on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Naming<'a> {
    /// `general.architecture`.
    pub(crate) architecture: &'a str,
    /// Rows of a head of the q and k projections.
    pub(crate) head_dim: usize,
    /// Layers of the model; those beyond predict further tokens.
    pub(crate) layers: usize,
    /// Whether gate and up of the experts are in one tensor.
    pub(crate) fused_experts: bool,
}

impl Naming<'_> {
    /// Canonical name and row order of the tensor `name`. Layers that predict further tokens go on
    /// where those of the model end in GLM, and are named `mtp.layers.N` elsewhere.
    pub(crate) fn canonical(&self, name: &str) -> (String, RowMap) {
        if let Some((_, canonical)) = MODEL.iter().find(|(gguf, _)| *gguf == name) {
            return (canonical.to_string(), RowMap::Identity);
        }
        let Some((layer, place)) = split(name) else {
            return (name.to_string(), RowMap::Identity);
        };
        let predicting = layer >= self.layers && self.architecture != GLM;
        let Some(canonical) = self.in_layer(place).or(predicting.then(|| place.to_string())) else {
            return (name.to_string(), RowMap::Identity);
        };
        let name = match predicting {
            true => format!("mtp.layers.{}.{canonical}", layer - self.layers),
            false => format!("model.layers.{layer}.{canonical}"),
        };
        (name, self.row_map(place))
    }

    /// The part of a canonical name after the layer; `None` for a tensor that is not known.
    fn in_layer(&self, place: &str) -> Option<String> {
        let (modules, parameters) = tables(self.architecture);
        let fused = if self.fused_experts { FUSED_EXPERTS } else { &[] };
        let whole = parameters.iter().chain(fused).find(|(gguf, _)| *gguf == place);
        if let Some((_, canonical)) = whole {
            return Some(canonical.to_string());
        }
        let (module, parameter) = place.rsplit_once('.')?;
        if !matches!(parameter, "weight" | "bias") {
            return None;
        }
        let mut known = modules.iter().chain(&[LAYER]).flat_map(|table| table.iter());
        let (_, canonical) = known.find(|(gguf, _)| *gguf == module)?;
        Some(format!("{canonical}.{parameter}"))
    }

    fn row_map(&self, place: &str) -> RowMap {
        let rotated = place.starts_with("attn_q.") || place.starts_with("attn_k.");
        match rotated && INTERLEAVED.contains(&self.architecture) {
            true => RowMap::InterleavedHeads { head_dim: self.head_dim },
            false => RowMap::Identity,
        }
    }
}

/// Modules that an architecture has beside the common ones, or names otherwise; and parameters.
fn tables(architecture: &str) -> (&'static [Table], Table) {
    match architecture {
        "gemma3" => (&[GEMMA3], &[]),
        "qwen3moe" => (&[EXPERTS], &[]),
        "qwen35" => (&[DELTA], DELTA_PARAMETERS),
        "qwen3next" | "qwen35moe" => (&[DELTA, EXPERTS, SHARED_EXPERT], DELTA_PARAMETERS),
        GLM => (&[LATENT, EXPERTS, PREDICTION], ROUTER_CORRECTION),
        _ => (&[], &[]),
    }
}

/// Layer and rest of `blk.<layer>.<rest>`.
fn split(name: &str) -> Option<(usize, &str)> {
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let number: usize = layer.parse().ok()?;
    // "+1" and "01" parse too, and would let two tensors share a name.
    (number.to_string() == layer).then_some((number, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naming(architecture: &str) -> Naming<'_> {
        Naming { architecture, head_dim: 64, layers: 20, fused_experts: false }
    }

    fn assert_names(architecture: &str, names: &[(&str, &str)]) {
        for (gguf, name) in names {
            assert_eq!(naming(architecture).canonical(gguf).0, *name, "{architecture}");
        }
    }

    #[test]
    fn llama_names_are_translated_and_its_heads_put_in_order() {
        let heads = RowMap::InterleavedHeads { head_dim: 64 };
        for (gguf, name, row_map) in [
            ("token_embd.weight", "model.embed_tokens.weight", RowMap::Identity),
            ("blk.3.attn_q.weight", "model.layers.3.self_attn.q_proj.weight", heads),
            ("blk.10.attn_k.bias", "model.layers.10.self_attn.k_proj.bias", heads),
            ("blk.0.attn_v.weight", "model.layers.0.self_attn.v_proj.weight", RowMap::Identity),
            ("rope_freqs.weight", "rope_freqs.weight", RowMap::Identity),
            ("blk.01.attn_q.weight", "blk.01.attn_q.weight", RowMap::Identity),
            ("blk.1.attn_v.scale", "blk.1.attn_v.scale", RowMap::Identity),
        ] {
            assert_eq!(naming("llama").canonical(gguf), (name.to_string(), row_map));
        }
    }

    #[test]
    fn other_architectures_keep_the_order_of_rows() {
        let (_, row_map) = naming("qwen3").canonical("blk.0.attn_q.weight");
        assert_eq!(row_map, RowMap::Identity);
    }

    #[test]
    fn one_name_means_different_norms_in_different_architectures() {
        let after = "model.layers.0.post_attention_layernorm.weight";
        assert_names("qwen3", &[("blk.0.ffn_norm.weight", after)]);
        assert_names("qwen35", &[("blk.0.post_attention_norm.weight", after)]);
        assert_names(
            "gemma3",
            &[
                ("blk.0.post_attention_norm.weight", after),
                ("blk.0.ffn_norm.weight", "model.layers.0.pre_feedforward_layernorm.weight"),
                ("blk.0.post_ffw_norm.weight", "model.layers.0.post_feedforward_layernorm.weight"),
            ],
        );
    }

    #[test]
    fn gated_delta_layers_have_modules_and_bare_parameters() {
        assert_names(
            "qwen3next",
            &[
                ("blk.2.ssm_a", "model.layers.2.linear_attn.decay_rate"),
                ("blk.2.ssm_dt.bias", "model.layers.2.linear_attn.dt_bias"),
                ("blk.2.ssm_conv1d.weight", "model.layers.2.linear_attn.conv1d.weight"),
                ("blk.2.ssm_ba.weight", "model.layers.2.linear_attn.in_proj_ba.weight"),
                ("blk.2.attn_gate.weight", "model.layers.2.linear_attn.in_proj_z.weight"),
                ("blk.2.ffn_gate_inp_shexp.weight", "model.layers.2.mlp.shared_expert_gate.weight"),
            ],
        );
    }

    #[test]
    fn latent_attention_shares_names_with_no_other() {
        assert_names(
            "deepseek2",
            &[
                (
                    "blk.1.attn_kv_a_mqa.weight",
                    "model.layers.1.self_attn.kv_a_proj_with_mqa.weight",
                ),
                ("blk.1.attn_k_b.weight", "model.layers.1.self_attn.embed_q.weight"),
                ("blk.1.exp_probs_b.bias", "model.layers.1.mlp.gate.e_score_correction_bias"),
                ("blk.1.ffn_up_shexp.weight", "model.layers.1.mlp.shared_experts.up_proj.weight"),
            ],
        );
        assert_names("qwen3", &[("blk.1.attn_k_b.weight", "blk.1.attn_k_b.weight")]);
    }

    #[test]
    fn fused_experts_are_parameters_as_in_transformers() {
        let stacks = |fused_experts| {
            let naming = Naming { fused_experts, ..naming("qwen3moe") };
            naming.canonical("blk.0.ffn_down_exps.weight").0
        };
        assert_eq!(stacks(true), "model.layers.0.mlp.experts.down_proj");
        assert_eq!(stacks(false), "model.layers.0.mlp.switch_mlp.down_proj.weight");
    }

    #[test]
    fn layers_beyond_the_model_predict_further_tokens() {
        assert_names(
            "qwen35",
            &[
                ("blk.20.attn_q.weight", "mtp.layers.0.self_attn.q_proj.weight"),
                ("blk.21.nextn.eh_proj.weight", "mtp.layers.1.nextn.eh_proj.weight"),
                ("blk.19.nextn.eh_proj.weight", "blk.19.nextn.eh_proj.weight"),
            ],
        );
        assert_names(
            "deepseek2",
            &[
                ("blk.20.attn_k_b.weight", "model.layers.20.self_attn.embed_q.weight"),
                ("blk.20.nextn.shared_head_norm.weight", "model.layers.20.shared_head.norm.weight"),
            ],
        );
    }
}
