//! Which tensor of a model is quantized how: one pure function of its name and shape.
//!
//! The choices are those common to converters of MLX and GGUF models: embeddings and head in 8
//! bits, and the projections where errors hurt most in half of the layers. No weight is read.

use super::{Packing, QuantizeFormat};

/// Modules whose weight is quantized, by the last part of their path. Everything else keeps its
/// precision: norms, convolutions, decays, biases, the gates of routers and shared experts, and the
/// projections to the decay and the step of a gated delta layer (`in_proj_a`, `_b`, `_ba`), all of
/// them small, or steering much with few numbers.
const PLAIN: &[&str] = &[
    "q_proj",
    "o_proj",
    "q_a_proj",
    "q_b_proj",
    "gate_proj",
    "up_proj",
    "gate_up_proj",
    "in_proj_qkv",
    "in_proj_qkvz",
    "in_proj_z",
    "out_proj",
];

/// Those that are wider in the layers of [`is_sensitive_layer`]: what makes keys and values, and
/// what writes the wide inner activations back. `kv_b_proj` is packed as `embed_q` and
/// `unembed_out`, so columns are to be given of these.
const SENSITIVE: &[&str] =
    &["k_proj", "v_proj", "down_proj", "kv_a_proj_with_mqa", "kv_b_proj", "embed_q", "unembed_out"];

/// Those that are wider in all models: they meet the vocabulary.
const VOCABULARY: &[&str] = &["embed_tokens", "lm_head"];

/// How the weight `name` of `shape`, `[.., columns]`, is packed in a model of `layers` layers that
/// is quantized to `format`; `None` if it keeps its precision.
///
/// `name` is canonical: `model.layers.0.mlp.down_proj.weight`, or a stack of experts without the
/// last part. A weight whose columns are no multiple of the group is kept; a wider packing then
/// tries groups of 32, and the format itself.
pub fn packing_of(
    name: &str,
    shape: &[usize],
    layers: usize,
    format: QuantizeFormat,
) -> Option<Packing> {
    let [.., _, cols] = *shape else { return None };
    let module = name.strip_suffix(".weight").unwrap_or(name);
    let (path, leaf) = module.rsplit_once('.').unwrap_or(("", module));
    let layer = layer_of(path);
    let fits = |packing: &Packing| cols > 0 && cols.is_multiple_of(packing.group_size);
    let plain = Some(format.packing()).filter(fits);
    let wide = [Packing::WIDE, Packing { group_size: 32, ..Packing::WIDE }];
    let wider = match format.packing().bits {
        4 => wide.into_iter().find(fits).or(plain),
        _ => plain,
    };
    match (path, layer) {
        ("" | "model", None) if VOCABULARY.contains(&leaf) => wider,
        (_, Some(layer)) if SENSITIVE.contains(&leaf) => {
            if is_sensitive_layer(layer, layers) {
                wider
            } else {
                plain
            }
        }
        (_, Some(_)) if PLAIN.contains(&leaf) => plain,
        _ => None,
    }
}

/// The layer that a module belongs to: `N` of `model.layers.N.`.
fn layer_of(path: &str) -> Option<usize> {
    path.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()
}

/// The first and the last eighth of the layers, and every third between them.
fn is_sensitive_layer(layer: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use QuantizeFormat::{Int4, Int8, Mxfp4, Mxfp8, Nvfp4};

    const WIDE_32: Packing = Packing { group_size: 32, ..Packing::WIDE };

    fn packing(name: &str, cols: usize, format: QuantizeFormat) -> Option<Packing> {
        packing_of(name, &[128, cols], 32, format)
    }

    #[test]
    fn embeddings_and_head_get_eight_bits() {
        for name in ["model.embed_tokens.weight", "lm_head.weight"] {
            for format in [Int4, Mxfp4, Nvfp4] {
                assert_eq!(packing(name, 256, format), Some(Packing::WIDE));
                assert_eq!(packing(name, 96, format), Some(WIDE_32));
            }
            for format in [Int8, Mxfp8] {
                assert_eq!(packing(name, 256, format), Some(format.packing()));
            }
            assert_eq!(packing(name, 48, Nvfp4), Some(Nvfp4.packing()));
            assert_eq!(packing(name, 48, Int4), None);
        }
    }

    #[test]
    fn sensitive_projections_are_wider_at_both_ends_and_in_every_third_layer() {
        let wide = |layer: usize, module: &str| {
            let name = format!("model.layers.{layer}.{module}.weight");
            match packing(&name, 256, Int4) {
                Some(Packing { bits: 8, .. }) => true,
                other => {
                    assert_eq!(other, Some(Int4.packing()));
                    false
                }
            }
        };
        let modules = ["self_attn.v_proj", "self_attn.k_proj", "mlp.down_proj"];
        for module in modules.into_iter().chain(["mlp.switch_mlp.down_proj"]) {
            let layers: Vec<usize> = (0..32).filter(|layer| wide(*layer, module)).collect();
            let expected = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31];
            assert_eq!(layers, expected, "{module}");
        }
        assert!(!wide(0, "self_attn.q_proj") && !wide(0, "mlp.gate_proj"));
    }

    #[test]
    fn all_layouts_of_experts_are_treated_alike() {
        let formats = [Int4, Mxfp8];
        let of = |name: &str, shape: &[usize], format| {
            let name = format!("model.layers.5.mlp.{name}");
            packing_of(&name, shape, 32, format)
        };
        for format in formats {
            let gate = Some(format.packing());
            assert_eq!(of("experts.3.gate_proj.weight", &[64, 128], format), gate);
            assert_eq!(of("experts.gate_up_proj", &[8, 128, 128], format), gate);
            assert_eq!(of("switch_mlp.up_proj.weight", &[8, 64, 128], format), gate);
            let down = of("switch_mlp.down_proj.weight", &[8, 128, 64], format);
            assert_eq!(of("experts.down_proj", &[8, 128, 64], format), down);
            assert_eq!(of("experts.0.down_proj.weight", &[128, 64], format), down);
        }
    }

    #[test]
    fn the_expansion_of_latents_is_treated_as_its_two_halves() {
        for layer in [0, 4, 6] {
            let of = |leaf: &str| {
                let name = format!("model.layers.{layer}.self_attn.{leaf}.weight");
                packing_of(&name, &[20, 512, 192], 32, Int4)
            };
            assert_eq!(of("kv_b_proj"), of("embed_q"));
            assert_eq!(of("kv_b_proj"), of("unembed_out"));
        }
    }

    #[test]
    fn what_steers_and_what_is_small_keeps_its_precision() {
        for name in [
            "mlp.gate.weight",
            "mlp.shared_expert_gate.weight",
            "mlp.gate.e_score_correction_bias",
            "input_layernorm.weight",
            "linear_attn.in_proj_a.weight",
            "linear_attn.in_proj_b.weight",
            "linear_attn.in_proj_ba.weight",
            "linear_attn.conv1d.weight",
            "linear_attn.A_log",
            "linear_attn.dt_bias",
            "self_attn.q_proj.bias",
        ] {
            let name = format!("model.layers.0.{name}");
            assert_eq!(packing_of(&name, &[64, 64], 32, Int8), None, "{name}");
        }
        assert_eq!(packing("vision.blocks.0.attn.q_proj.weight", 64, Int8), None);
        assert_eq!(packing("mtp.layers.0.self_attn.q_proj.weight", 64, Int8), None);
        assert_eq!(packing("model.layers.0.self_attn.q_proj.weight", 80, Int8), None);
        assert_eq!(packing_of("model.layers.0.self_attn.q_proj", &[64], 32, Int8), None);
    }
}
