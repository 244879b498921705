//! The `config.json` of a quantized directory: that of the source, how each module is packed, and
//! the keys that MLX-LM wants spelled in the older way.

use serde_json::{Map, Value, json};

use super::{Packing, QuantizeFormat};

/// Keys of the source that say what the directory has not: weights of vision, a path.
const REMOVED: &[&str] = &["_name_or_path", "vision_config"];

/// The configuration to write. `packed` has each quantized module, by its path in the directory.
pub(super) fn quantized(
    source: &Map<String, Value>,
    tied: bool,
    format: QuantizeFormat,
    packed: &[(String, Packing)],
) -> Value {
    let mut config = source.clone();
    config.retain(|key, _| !REMOVED.contains(&key.as_str()));
    match config.get_mut("text_config") {
        Some(Value::Object(text)) => complete(text, tied),
        _ => complete(&mut config, tied),
    }
    // MLX-LM knows the text-only spelling of these under the name of the whole.
    if let Some(name) = config.get("model_type").and_then(Value::as_str)
        && let Some(name @ ("qwen3_5" | "qwen3_5_moe")) = name.strip_suffix("_text")
    {
        config.insert("model_type".into(), json!(name));
    }
    let mut quantization = parameters(format.packing());
    for (module, packing) in packed.iter().filter(|(_, packing)| *packing != format.packing()) {
        quantization.insert(module.clone(), parameters(*packing).into());
    }
    // Readers look under either name.
    config.insert("quantization".into(), quantization.clone().into());
    config.insert("quantization_config".into(), quantization.into());
    config.into()
}

fn parameters(packing: Packing) -> Map<String, Value> {
    let Packing { mode, bits, group_size } = packing;
    let mut map = Map::new();
    map.insert("group_size".into(), group_size.into());
    map.insert("bits".into(), bits.into());
    map.insert("mode".into(), mode.name().into());
    map
}

/// Adds the keys that MLX-LM needs and newer configurations spell otherwise; one that is there is
/// left alone.
fn complete(text: &mut Map<String, Value>, tied: bool) {
    let mut added = Map::new();
    added.insert("tie_word_embeddings".into(), tied.into());
    if let Some(Value::Object(rope)) = text.get("rope_parameters") {
        let of = |layer_type: &str| rope.get(layer_type).and_then(Value::as_object);
        let full = of("full_attention").unwrap_or(rope);
        let mut add = |key: &str, value: Option<&Value>| {
            if let Some(value) = value {
                added.insert(key.into(), value.clone());
            }
        };
        add("rope_theta", full.get("rope_theta"));
        add("partial_rotary_factor", full.get("partial_rotary_factor"));
        add(
            "rope_local_base_freq",
            of("sliding_attention").and_then(|sliding| sliding.get("rope_theta")),
        );
        let is_scaled = full.get("rope_type").is_some_and(|kind| kind != "default");
        add("rope_scaling", is_scaled.then(|| Value::Object(full.clone())).as_ref());
    }
    if let Some(Value::Array(types)) = text.get("layer_types") {
        let period = types.iter().position(|kind| kind == "full_attention").map(|index| index + 1);
        for (kind, key) in [
            ("sliding_attention", "sliding_window_pattern"),
            ("linear_attention", "full_attention_interval"),
        ] {
            if let Some(period) = period
                && types.iter().any(|other| other == kind)
            {
                added.insert(key.into(), period.into());
            }
        }
    }
    if let Some(Value::Array(types)) = text.get("mlp_layer_types") {
        let dense = types.iter().take_while(|kind| *kind == "dense").count();
        added.insert("first_k_dense_replace".into(), dense.into());
    }
    if let Some(experts) = text.get("num_local_experts") {
        added.insert("num_experts".into(), experts.clone());
    }
    for (key, value) in added {
        if text.get(&key).is_none_or(Value::is_null) {
            text.insert(key, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(map) => map,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn only_what_differs_from_the_default_is_listed_by_module() {
        let packed = [
            ("model.embed_tokens".to_string(), Packing::WIDE),
            ("model.layers.0.mlp.up_proj".to_string(), QuantizeFormat::Nvfp4.packing()),
        ];
        let source = object(json!({"model_type": "llama", "_name_or_path": "x"}));
        let config = quantized(&source, false, QuantizeFormat::Nvfp4, &packed);
        let expected = json!({
            "group_size": 16, "bits": 4, "mode": "nvfp4",
            "model.embed_tokens": {"group_size": 64, "bits": 8, "mode": "affine"},
        });
        assert_eq!(config["quantization"], expected);
        assert_eq!(config["quantization_config"], expected);
        assert_eq!(config["tie_word_embeddings"], json!(false));
        assert!(config.get("_name_or_path").is_none());
    }

    #[test]
    fn newer_keys_are_spelled_in_the_older_way_too() {
        let linear = json!({"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6});
        let source = object(json!({
            "model_type": "gemma3",
            "vision_config": {},
            "text_config": {
                "rope_parameters": {
                    "full_attention": linear,
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                },
                "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            },
        }));
        let config = quantized(&source, true, QuantizeFormat::Int4, &[]);
        let text = &config["text_config"];
        assert_eq!(text["rope_theta"], json!(1e6));
        assert_eq!(text["rope_local_base_freq"], json!(1e4));
        assert_eq!(text["rope_scaling"], linear);
        assert_eq!(text["sliding_window_pattern"], json!(3));
        assert_eq!(text["tie_word_embeddings"], json!(true));
        assert!(config.get("vision_config").is_none());
    }

    #[test]
    fn what_is_there_stays_and_text_models_get_the_name_that_mlx_lm_knows() {
        let source = object(json!({
            "model_type": "qwen3_5_moe_text",
            "rope_theta": 5.0,
            "rope_parameters": {"rope_theta": 7.0, "partial_rotary_factor": 0.25},
            "layer_types": ["linear_attention", "full_attention"],
        }));
        let config = quantized(&source, false, QuantizeFormat::Mxfp8, &[]);
        assert_eq!(config["model_type"], json!("qwen3_5_moe"));
        assert_eq!(config["rope_theta"], json!(5.0));
        assert_eq!(config["partial_rotary_factor"], json!(0.25));
        assert_eq!(config["full_attention_interval"], json!(2));
    }
}
