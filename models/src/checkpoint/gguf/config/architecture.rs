//! What a single architecture says and means beyond the common keys.
//!
//! Much of it the file does not say at all: llama.cpp knows it by the architecture's name, or by
//! the number of layers. Facts: `src/models/*.cpp` and the converter of the llama.cpp project.

use serde_json::json;

use super::{Keys, Translation};
use crate::checkpoint::gguf::{MetadataArray, MetadataValue};
use crate::error::Error;

/// Keys of a mixture of experts with a softmax router.
const EXPERTS: Keys = &[
    ("num_experts", "expert_count"),
    ("moe_intermediate_size", "expert_feed_forward_length"),
    ("shared_expert_intermediate_size", "expert_shared_feed_forward_length"),
];

/// Keys of gated delta layers.
const DELTA: Keys = &[
    ("linear_conv_kernel_dim", "ssm.conv_kernel"),
    ("linear_key_head_dim", "ssm.state_size"),
    ("linear_num_key_heads", "ssm.group_count"),
    ("linear_num_value_heads", "ssm.time_step_rank"),
];

/// Keys of latent attention and its mixture of experts.
const LATENT: Keys = &[
    ("q_lora_rank", "attention.q_lora_rank"),
    ("kv_lora_rank", "attention.kv_lora_rank"),
    ("qk_rope_head_dim", "rope.dimension_count"),
    ("n_routed_experts", "expert_count"),
    ("n_shared_experts", "expert_shared_count"),
    ("moe_intermediate_size", "expert_feed_forward_length"),
    ("n_group", "expert_group_count"),
    ("topk_group", "expert_group_used_count"),
    ("num_nextn_predict_layers", "nextn_predict_layers"),
];

/// Architectures whose MLP gates with SiLU; metadata does not name the activation.
const SILU: &[&str] =
    &["llama", "qwen2", "qwen3", "qwen3moe", "qwen3next", "qwen35", "qwen35moe", "deepseek2"];

/// One layer of so many has full attention, where the file does not say.
const DELTA_INTERVAL: usize = 4;
const GEMMA3_INTERVAL: usize = 6;

/// Layers of the Gemma 3 whose softmax is scaled by the share of a head in the hidden size.
const GEMMA3_27B_LAYERS: usize = 62;

/// Values of `expert_gating_func`.
const SOFTMAX: usize = 1;
const SIGMOID: usize = 2;

const FULL: &str = "full_attention";
const SLIDING: &str = "sliding_attention";
const LINEAR: &str = "linear_attention";

impl Translation<'_> {
    /// Inserts what the file's architecture has beyond the common keys.
    ///
    /// # Errors
    /// [`Error::Config`] for a value of the wrong type, or one that makes another model of it.
    pub(super) fn architecture(&mut self) -> Result<(), Error> {
        if SILU.contains(&self.architecture) {
            self.insert("hidden_act", "general.architecture", "silu");
        }
        match self.architecture {
            "deepseek2" => return self.latent_attention(),
            "gemma3" => self.gemma3()?,
            "qwen3moe" => self.experts()?,
            "qwen35" => self.gated_delta()?,
            "qwen3next" | "qwen35moe" => {
                self.gated_delta()?;
                self.experts()?;
            }
            _ => self.rename(&[("num_local_experts", "expert_count")])?,
        }
        self.grouped_attention()
    }

    /// Attention with key heads that several query heads share.
    fn grouped_attention(&mut self) -> Result<(), Error> {
        const VALUE: &str = "attention.value_length";
        self.rename(&[("num_key_value_heads", "attention.head_count_kv")])?;
        if let Some(heads) = self.values.get("num_attention_heads").cloned() {
            self.values.entry("num_key_value_heads").or_insert(heads);
        }
        let key = self.key("attention.key_length");
        self.spelled.insert("head_dim".into(), key.clone());
        let Some(head_dim) = self.gguf.head_dim()?.filter(|head_dim| *head_dim > 0) else {
            return Ok(());
        };
        self.insert("head_dim", &key, head_dim);
        if let Some(other) = self.count(VALUE)?.filter(|length| *length != head_dim) {
            return Err(self.error(VALUE, &format!("{head_dim}, as the keys have"), other));
        }
        self.rotated_part(head_dim)
    }

    fn gemma3(&mut self) -> Result<(), Error> {
        self.insert("hidden_activation", "general.architecture", "gelu_pytorch_tanh");
        self.rename(&[("final_logit_softcapping", "final_logit_softcapping")])?;
        if self.values.get("final_logit_softcapping").is_some_and(|cap| *cap == json!(0.0)) {
            self.values.remove("final_logit_softcapping");
        }
        self.rope_by_layer_type()?;
        let layers = self.gguf.layers()?.unwrap_or(0);
        let windowed = self.count("attention.sliding_window")?.is_some_and(|window| window > 0);
        let types = match windowed {
            true => {
                const PATTERN: &str = "attention.sliding_window_pattern";
                self.layer_types(PATTERN, PATTERN, GEMMA3_INTERVAL, SLIDING)?
            }
            false => {
                self.values.remove("sliding_window");
                vec![FULL; layers]
            }
        };
        self.insert("layer_types", &self.key("attention.sliding_window_pattern"), types);
        let hidden = self.count("embedding_length")?;
        let heads = self.count("attention.head_count")?.filter(|heads| *heads > 0);
        let scale = match (layers, hidden, heads) {
            (GEMMA3_27B_LAYERS, Some(hidden), Some(heads)) => Some(hidden / heads),
            _ => self.gguf.head_dim()?,
        };
        if let Some(scale) = scale {
            self.insert("query_pre_attn_scalar", &self.key("attention.key_length"), scale);
        }
        Ok(())
    }

    /// A mixture of experts with a softmax router, which llama.cpp always renormalises.
    fn experts(&mut self) -> Result<(), Error> {
        self.rename(EXPERTS)?;
        self.insert("norm_topk_prob", "general.architecture", true);
        if let Some(other) = self.gating()?.filter(|gating| *gating != SOFTMAX) {
            return Err(self.error("expert_gating_func", "1, softmax", other));
        }
        const SCALE: &str = "expert_weights_scale";
        if let Some(other) = self.number(SCALE)?.filter(|scale| ![0.0, 1.0].contains(scale)) {
            return Err(self.error(SCALE, "1, or nothing", other));
        }
        // Files may leave the widths to the tensors.
        for (canonical, name) in [
            ("moe_intermediate_size", "ffn_down_exps.weight"),
            ("shared_expert_intermediate_size", "ffn_down_shexp.weight"),
        ] {
            let width = self.tensor(name).and_then(|tensor| tensor.shape.last().copied());
            if let Some(width) = width.filter(|_| !self.values.contains_key(canonical)) {
                self.insert(canonical, &format!("blk.N.{name}"), width);
            }
        }
        Ok(())
    }

    fn gated_delta(&mut self) -> Result<(), Error> {
        const INNER: &str = "ssm.inner_size";
        self.rename(DELTA)?;
        let value_heads = self.count("ssm.time_step_rank")?.filter(|heads| *heads > 0);
        if let Some((inner, heads)) = self.count(INNER)?.zip(value_heads) {
            if !inner.is_multiple_of(heads) {
                let expected = format!("a multiple of ssm.time_step_rank, {heads}");
                return Err(self.error(INNER, &expected, inner));
            }
            self.insert("linear_value_head_dim", &self.key(INNER), inner / heads);
        }
        self.spelled.insert("linear_value_head_dim".into(), self.key(INNER));
        let types = self.layer_types(
            "attention.recurrent_layers",
            "full_attention_interval",
            DELTA_INTERVAL,
            LINEAR,
        )?;
        self.insert("layer_types", &self.key("full_attention_interval"), types);
        Ok(())
    }

    /// The type of each layer: `other` where the list under `listed` says so, or else in all but
    /// every layer whose number is a multiple of `interval`, which the count under `counted`
    /// overrides.
    fn layer_types(
        &self,
        listed: &str,
        counted: &str,
        interval: usize,
        other: &'static str,
    ) -> Result<Vec<&'static str>, Error> {
        let layers = self.gguf.layers()?.unwrap_or(0);
        let name = |other_type: bool| if other_type { other } else { FULL };
        if let Some(MetadataValue::Array(list)) = self.gguf.value(&self.key(listed)) {
            let flags = match list {
                MetadataArray::Bool(list) => list.clone(),
                list => list.integers().unwrap_or_default().iter().map(|flag| *flag != 0).collect(),
            };
            if flags.len() < layers {
                let expected = format!("a flag for each of {layers} layers");
                return Err(self.error(listed, &expected, format!("{} flags", flags.len())));
            }
            return Ok(flags.into_iter().take(layers).map(name).collect());
        }
        let interval = self.count(counted)?.unwrap_or(interval);
        if interval == 0 {
            return Err(self.error(counted, "at least 1", interval));
        }
        Ok((1..=layers).map(|layer| name(!layer.is_multiple_of(interval))).collect())
    }

    /// Latent attention as GLM-4.7-Flash has it, which shares its architecture's name with models
    /// that route by softmax or stretch their rope.
    fn latent_attention(&mut self) -> Result<(), Error> {
        self.refuse_other_latent_models()?;
        self.rename(LATENT)?;
        if let Some(heads) = self.values.get("num_attention_heads").cloned() {
            self.insert("num_key_value_heads", &self.key("attention.head_count"), heads);
        }
        self.insert("rope_interleave", "general.architecture", true);
        self.latent_lengths()?;
        // A file without layers of experts may leave all of these out.
        let dense = self.count("leading_dense_block_count")?.unwrap_or(0);
        let key = self.key("leading_dense_block_count");
        self.insert("first_k_dense_replace", &key, dense);
        let renormalize = self.gguf.flag(&self.key("expert_weights_norm"))?.unwrap_or(false);
        self.insert("norm_topk_prob", &self.key("expert_weights_norm"), renormalize);
        let scale = self.number("expert_weights_scale")?.filter(|scale| *scale != 0.0);
        let key = self.key("expert_weights_scale");
        self.insert("routed_scaling_factor", &key, scale.unwrap_or(1.0));
        for key in ["n_group", "topk_group"] {
            self.values.entry(key).or_insert(1.into());
        }
        Ok(())
    }

    /// Lengths of a head: a file with `kv_b` in two halves has those of the latent head under the
    /// ordinary keys, an older one those of the expanded head.
    fn latent_lengths(&mut self) -> Result<(), Error> {
        let rotated = self.count("rope.dimension_count")?.unwrap_or(0);
        for (canonical, mla, ordinary, rotated) in [
            ("qk_nope_head_dim", "attention.key_length_mla", "attention.key_length", rotated),
            ("v_head_dim", "attention.value_length_mla", "attention.value_length", 0),
        ] {
            let halves = self.count(mla)?.is_some();
            let suffix = if halves { mla } else { ordinary };
            let key = self.key(suffix);
            self.spelled.insert(canonical.into(), key.clone());
            let Some(length) = self.count(suffix)? else { continue };
            let Some(rest) = length.checked_sub(rotated) else {
                let expected = format!("at least rope.dimension_count, {rotated}");
                return Err(self.error(suffix, &expected, length));
            };
            self.insert(canonical, &key, rest);
        }
        Ok(())
    }

    fn refuse_other_latent_models(&self) -> Result<(), Error> {
        let corrected = self.gguf.tensors.iter().any(|tensor| tensor.name.contains("exp_probs_b"));
        // Files of softmax models are older than the key, and have no corrected scores.
        let gating = self.gating()?.unwrap_or(if corrected { SIGMOID } else { SOFTMAX });
        let routed = self.count("expert_count")?.is_some_and(|experts| experts > 0);
        if routed && gating != SIGMOID {
            return Err(self.error("expert_gating_func", "2, sigmoid", gating));
        }
        if self.values.contains_key("rope_scaling") {
            let expected = "none: stretched rope with latent attention is not supported";
            return Err(self.error("rope.scaling.type", expected, "a scaling"));
        }
        const TEMPERATURE: &str = "attention.temperature_scale";
        if let Some(other) = self.number(TEMPERATURE)?.filter(|scale| *scale != 0.0) {
            return Err(self.error(TEMPERATURE, "0, or nothing", other));
        }
        Ok(())
    }

    /// `expert_gating_func`, where the file says one.
    fn gating(&self) -> Result<Option<usize>, Error> {
        Ok(self.count("expert_gating_func")?.filter(|gating| *gating != 0))
    }
}
