//! What `config.json` says about the packing of weights: MLX's `quantization`, and the
//! `quantization_config` of FP8 directories.
//!
//! Paths of modules are mapped to canonical names here; how codes are laid out is `mlx.rs` and
//! `fp8.rs`.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::config::ModelConfig;
use super::mlx::{Mode, Settings};
use super::names;
use crate::error::Error;

const MLX_KEY: &str = "quantization";
const HUGGING_FACE_KEY: &str = "quantization_config";

/// How the weights of a directory are packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Quantization {
    /// As they are.
    None,
    /// By MLX.
    Mlx(Modules),
    /// E4M3 numbers with a scale for each block.
    Fp8 {
        /// Rows and columns that share a scale; `None` where a whole matrix does.
        block: Option<[usize; 2]>,
    },
    /// By a method that is not read; the directory can only be described.
    Foreign(String),
}

/// MLX settings of all modules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Modules {
    default: Settings,
    /// By canonical path; `None` for those that are not quantized.
    overrides: HashMap<String, Option<Settings>>,
}

impl Modules {
    /// Settings of the module at the canonical path `module`; `None` if it is not quantized.
    pub(super) fn settings(&self, module: &str) -> Option<Settings> {
        self.overrides.get(module).copied().unwrap_or(Some(self.default))
    }
}

impl Quantization {
    /// Reads what `config` says.
    ///
    /// # Errors
    /// [`Error::Config`] for settings that no packing has.
    pub(super) fn read(config: &ModelConfig) -> Result<Quantization, Error> {
        // A converter copies its own settings into the other key, so the former wins.
        if let Some(value) = config.value(MLX_KEY) {
            return Ok(Quantization::Mlx(modules(config, MLX_KEY, value)?));
        }
        let Some(value) = config.value(HUGGING_FACE_KEY) else { return Ok(Quantization::None) };
        match value.get("quant_method") {
            None => Ok(Quantization::Mlx(modules(config, HUGGING_FACE_KEY, value)?)),
            Some(Value::String(method)) if method == "fp8" => fp8(config, value),
            Some(Value::String(method)) => Ok(Quantization::Foreign(method.clone())),
            Some(other) => Err(config.error("quantization_config.quant_method", "a string", other)),
        }
    }

    /// Refuses packings that are not read.
    ///
    /// # Errors
    /// [`Error::Config`] naming the method.
    pub(super) fn expect_known(&self, config: &ModelConfig) -> Result<(), Error> {
        match self {
            Quantization::Foreign(method) => {
                let key = "quantization_config.quant_method";
                Err(config.error(key, "fp8, or the quantization of MLX", method))
            }
            _ => Ok(()),
        }
    }
}

fn fp8(config: &ModelConfig, value: &Value) -> Result<Quantization, Error> {
    let block = match value.get("weight_block_size") {
        None | Some(Value::Null) => None,
        Some(block) => {
            let sizes = block.as_array().map(Vec::as_slice).unwrap_or_default();
            let size = |value: &Value| value.as_u64().and_then(|it| usize::try_from(it).ok());
            match sizes.iter().map(size).collect::<Vec<_>>()[..] {
                [Some(rows @ 1..), Some(cols @ 1..)] => Some([rows, cols]),
                _ => {
                    let key = "quantization_config.weight_block_size";
                    return Err(config.error(key, "two positive integers", block));
                }
            }
        }
    };
    Ok(Quantization::Fp8 { block })
}

fn modules(config: &ModelConfig, key: &str, value: &Value) -> Result<Modules, Error> {
    let Value::Object(entries) = value else {
        return Err(config.error(key, "an object with bits and group_size", value));
    };
    for required in ["bits", "group_size"] {
        if !entries.contains_key(required) {
            let key = format!("{key}.{required}");
            return Err(config.error(&key, "a positive integer", "nothing"));
        }
    }
    let default = settings(config, key, entries)?;
    let mut overrides = HashMap::new();
    for (path, value) in entries {
        let place = format!("{key}.{path}");
        let module = match value {
            Value::Bool(quantized) => quantized.then_some(default),
            Value::Object(entries) => Some(settings(config, &place, entries)?),
            // Beside the settings there may be words about the conversion; a path has components.
            _ if !path.contains('.') => continue,
            other => return Err(config.error(&place, "true, false or an object", other)),
        };
        if overrides.insert(names::canonical(path), module).is_some() {
            return Err(config.error(
                &place,
                "each module once",
                "it under another prefix as well",
            ));
        }
    }
    Ok(Modules { default, overrides })
}

/// Settings of an object; what it lacks, its mode decides, and without a mode it is affine whatever
/// the rest of the model is.
fn settings(
    config: &ModelConfig,
    place: &str,
    entries: &Map<String, Value>,
) -> Result<Settings, Error> {
    let mode = match entries.get("mode") {
        None | Some(Value::Null) => Mode::Affine,
        Some(value) => {
            let found = value.as_str().and_then(Mode::from_name);
            found.ok_or_else(|| config.error(&format!("{place}.mode"), Mode::NAMES, value))?
        }
    };
    let (bits, group_size) = mode.default_sizes();
    let number = |key: &str, default: usize, allowed: &[usize]| match entries.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => {
            let found = value.as_u64().and_then(|value| usize::try_from(value).ok());
            found.filter(|found| allowed.contains(found)).ok_or_else(|| {
                let list: Vec<String> = allowed.iter().map(usize::to_string).collect();
                let expected = format!("{} for mode {mode}", list.join(", "));
                config.error(&format!("{place}.{key}"), expected, value)
            })
        }
    };
    Ok(Settings {
        mode,
        bits: number("bits", bits, mode.bits())?,
        group_size: number("group_size", group_size, mode.group_sizes())?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(json: Value) -> Result<Quantization, Error> {
        Quantization::read(&ModelConfig::from_json("config.json", json).unwrap())
    }

    fn mlx(json: Value) -> Modules {
        match read(json).unwrap() {
            Quantization::Mlx(modules) => modules,
            other => panic!("{other:?}"),
        }
    }

    fn refusal(json: Value) -> String {
        read(json).unwrap_err().to_string()
    }

    #[test]
    fn overrides_are_found_by_canonical_path_and_without_mode_are_affine() {
        let modules = mlx(json!({"quantization": {
            "group_size": 32, "bits": 4, "mode": "mxfp4",
            "language_model.model.layers.0.mlp.gate": {"group_size": 64, "bits": 8},
            "language_model.lm_head": false,
            "model.embed_tokens": true,
            "quantized_by": "somebody",
        }}));
        let default = Settings { mode: Mode::Mxfp4, bits: 4, group_size: 32 };
        let gate = Settings { mode: Mode::Affine, bits: 8, group_size: 64 };
        assert_eq!(modules.settings("model.layers.0.mlp.gate"), Some(gate));
        assert_eq!(modules.settings("lm_head"), None);
        assert_eq!(modules.settings("model.embed_tokens"), Some(default));
        assert_eq!(modules.settings("model.layers.1.mlp.gate"), Some(default));
    }

    #[test]
    fn the_methods_of_the_two_keys_are_told_apart() {
        assert_eq!(read(json!({})).unwrap(), Quantization::None);
        let settings = json!({"group_size": 64, "bits": 4});
        mlx(json!({"quantization_config": settings}));
        mlx(json!({"quantization": settings, "quantization_config": {"quant_method": "fp8"}}));
        let fp8 = |block: Value| {
            read(
                json!({"quantization_config": {"quant_method": "fp8", "weight_block_size": block}}),
            )
        };
        let block = Some([128, 64]);
        assert_eq!(fp8(json!([128, 64])).unwrap(), Quantization::Fp8 { block });
        assert_eq!(fp8(Value::Null).unwrap(), Quantization::Fp8 { block: None });
        for wrong in [json!([128]), json!([0, 128]), json!("128"), json!([128, 128, 1])] {
            assert!(fp8(wrong).unwrap_err().to_string().contains("weight_block_size"));
        }
        let foreign = json!({"quantization_config": {"quant_method": "gptq"}});
        let config = ModelConfig::from_json("config.json", foreign).unwrap();
        let error = Quantization::read(&config).unwrap().expect_known(&config).unwrap_err();
        assert!(error.to_string().ends_with("found gptq"), "{error}");
    }

    #[test]
    fn settings_that_no_packing_has_name_their_key() {
        let with = |settings: Value| refusal(json!({"quantization": settings}));
        let error = with(json!({"group_size": 64, "bits": 7}));
        assert!(error.contains("key quantization.bits: expected 2, 3, 4, 5, 6, 8"), "{error}");
        let error = with(json!({"group_size": 48, "bits": 4}));
        assert!(error.contains("key quantization.group_size: expected 32, 64, 128"), "{error}");
        let error = with(json!({"group_size": 32, "bits": 4, "mode": "int4"}));
        assert!(error.contains("key quantization.mode: expected affine"), "{error}");
        let error = with(json!({"group_size": 64, "bits": 4, "a.b": {"bits": -1}}));
        assert!(error.contains("key quantization.a.b.bits"), "{error}");
        let error = with(json!({"group_size": 64, "bits": 4, "a.b": 8}));
        assert!(error.contains("key quantization.a.b: expected true, false"), "{error}");
        assert!(with(json!({"bits": 4})).contains("quantization.group_size"));
        assert!(with(json!(4)).contains("key quantization: expected an object"));
        let twice = json!({"group_size": 64, "bits": 4, "lm_head": false,
            "language_model.lm_head": false});
        assert!(with(twice).contains("each module once"));
    }
}
