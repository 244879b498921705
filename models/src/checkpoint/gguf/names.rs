//! Names of tensors: from the GGUF converter's to those of `transformers`, and what order the
//! converter left their rows in.
//!
//! An architecture adds what it has beyond the common table; a name in neither keeps the file's.

use crate::checkpoint::tensor::RowMap;

/// Tensors outside of the layers.
const MODEL: &[(&str, &str)] = &[
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
    ("output.bias", "lm_head.bias"),
];

/// Tensors of a layer: `blk.N.<left>` is `model.layers.N.<right>`, each with `.weight` or `.bias`.
const LAYER: &[(&str, &str)] = &[
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

/// Architectures whose q and k rows the converter interleaves.
const INTERLEAVED: &[&str] = &["llama"];

/// Canonical name and row order of the tensor `name` of a GGUF file of `architecture`, whose heads
/// have `head_dim` rows.
pub(crate) fn canonical(architecture: &str, name: &str, head_dim: usize) -> (String, RowMap) {
    if let Some((_, canonical)) = MODEL.iter().find(|(gguf, _)| *gguf == name) {
        return (canonical.to_string(), RowMap::Identity);
    }
    let Some((layer, module, parameter)) = split(name) else {
        return (name.to_string(), RowMap::Identity);
    };
    let Some((_, canonical)) = LAYER.iter().find(|(gguf, _)| *gguf == module) else {
        return (name.to_string(), RowMap::Identity);
    };
    let interleaved = INTERLEAVED.contains(&architecture) && matches!(module, "attn_q" | "attn_k");
    let row_map = match interleaved {
        true => RowMap::InterleavedHeads { head_dim },
        false => RowMap::Identity,
    };
    (format!("model.layers.{layer}.{canonical}.{parameter}"), row_map)
}

/// `blk.<layer>.<module>.<weight or bias>` in its parts.
fn split(name: &str) -> Option<(usize, &str, &str)> {
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let (module, parameter) = rest.rsplit_once('.')?;
    let number: usize = layer.parse().ok()?;
    // "+1" and "01" parse too, and would let two tensors share a name.
    (number.to_string() == layer && matches!(parameter, "weight" | "bias"))
        .then_some((number, module, parameter))
}

#[cfg(test)]
mod tests {
    use super::*;

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
            ("blk.1.attn_q.scale", "blk.1.attn_q.scale", RowMap::Identity),
        ] {
            assert_eq!(canonical("llama", gguf, 64), (name.to_string(), row_map));
        }
    }

    #[test]
    fn other_architectures_keep_the_order_of_rows() {
        let (_, row_map) = canonical("qwen3", "blk.0.attn_q.weight", 64);
        assert_eq!(row_map, RowMap::Identity);
    }
}
