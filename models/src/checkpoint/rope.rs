//! The rotary embedding as a configuration describes it, in either style of the hub.
//!
//! Older files have `rope_theta` and `rope_scaling` side by side, newer ones a `rope_parameters`
//! with both, or one of those for each layer type. What the parameters do to the frequencies is the
//! business of the rope layer.

use serde_json::{Map, Value};

use super::config::{ModelConfig, excerpt};
use crate::error::Error;

/// Base of the rotary frequencies where a checkpoint names none: the value of the RoFormer paper.
const THETA_DEFAULT: f64 = 10_000.0;

/// A rotary embedding: base frequencies and what stretches them.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base: pair `i` of `d / 2` turns by `theta^(-2i / d)` a position.
    pub theta: f64,
    /// Fraction of the head that is rotated; 1 for all of it.
    pub partial_rotary_factor: f64,
    /// How the frequencies are stretched to a longer context.
    pub scaling: RopeScaling,
    /// Divisors of the frequencies, one for each pair, applied besides `scaling`. GGUF files store
    /// the `llama3` scaling this way, in the tensor `rope_freqs.weight`.
    pub frequency_divisors: Option<Vec<f32>>,
}

/// How rotary frequencies are stretched, by the names of `rope_type`.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// Positions are divided by `factor`.
    Linear {
        /// At least 1.
        factor: f64,
    },
    /// The base grows with the length of the sequence once that exceeds the trained context.
    Dynamic {
        /// At least 1.
        factor: f64,
        /// Context the model was trained for.
        original_max_position_embeddings: usize,
    },
    /// Low frequencies are divided by `factor`, high ones kept, those between blended.
    Llama3 {
        /// At least 1.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are scaled.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are kept; above `low_freq_factor`.
        high_freq_factor: f64,
        /// Context the model was trained for.
        original_max_position_embeddings: usize,
    },
    /// YaRN (arXiv 2309.00071): frequencies blended by number of rotations, attention rescaled.
    Yarn(Yarn),
}

/// Parameters of YaRN, as `transformers` names them.
#[derive(Debug, Clone, PartialEq)]
pub struct Yarn {
    /// How much longer the context became.
    pub factor: f64,
    /// Context the model was trained for.
    pub original_max_position_embeddings: usize,
    /// Factor of cos and sin; where absent it follows from `factor`, `mscale`, `mscale_all_dim`.
    pub attention_factor: Option<f64>,
    /// Rotations above which a frequency is kept, 32 by default.
    pub beta_fast: f64,
    /// Rotations below which a frequency is divided by `factor`, 1 by default.
    pub beta_slow: f64,
    /// Weight of the logarithm in the numerator of the attention factor.
    pub mscale: Option<f64>,
    /// Weight of the logarithm in its denominator.
    pub mscale_all_dim: Option<f64>,
    /// Whether the blended range is rounded outwards to whole pairs, true by default.
    pub truncate: bool,
}

impl Rope {
    /// All of a head turned, at plain frequencies.
    pub(crate) fn unscaled(theta: f64) -> Rope {
        let (scaling, frequency_divisors) = (RopeScaling::Default, None);
        Rope { theta, partial_rotary_factor: 1.0, scaling, frequency_divisors }
    }

    /// Reads the rotary embedding of the layers of `layer_type`, or of all where that is `None` or
    /// the checkpoint does not tell them apart.
    ///
    /// # Errors
    /// [`Error::Config`] for a scaling that is not known, or lacks a parameter.
    pub(crate) fn from_config(
        config: &ModelConfig,
        layer_type: Option<&str>,
        theta_default: Option<f64>,
    ) -> Result<Rope, Error> {
        let parameters = Parameters::find(config, layer_type)?;
        let default = theta_default.unwrap_or(THETA_DEFAULT);
        let theta = match parameters.number("rope_theta")? {
            Some(theta) => theta,
            None => config.number("rope_theta")?.unwrap_or(default),
        };
        if !(theta.is_finite() && theta > 0.0) {
            return Err(config.error("rope_theta", "a positive number", theta));
        }
        let partial = match parameters.number("partial_rotary_factor")? {
            Some(factor) => factor,
            None => config.number("partial_rotary_factor")?.unwrap_or(1.0),
        };
        if !(partial > 0.0 && partial <= 1.0) {
            return Err(config.error("partial_rotary_factor", "above 0 and at most 1", partial));
        }
        Ok(Rope {
            theta,
            partial_rotary_factor: partial,
            scaling: parameters.scaling()?,
            frequency_divisors: frequency_divisors(config)?,
        })
    }
}

/// Key under which a GGUF's `rope_freqs.weight` joins the configuration.
pub(crate) const FREQUENCY_DIVISORS: &str = "rope_frequency_divisors";

fn frequency_divisors(config: &ModelConfig) -> Result<Option<Vec<f32>>, Error> {
    let Some(value) = config.value(FREQUENCY_DIVISORS) else { return Ok(None) };
    let divisors: Option<Vec<f32>> = value.as_array().and_then(|list| {
        list.iter().map(|divisor| divisor.as_f64().map(|divisor| divisor as f32)).collect()
    });
    match divisors {
        Some(list) if list.iter().all(|divisor| divisor.is_finite() && *divisor > 0.0) => {
            Ok(Some(list))
        }
        _ => Err(config.error(FREQUENCY_DIVISORS, "positive numbers", excerpt(value))),
    }
}

/// The object that holds the scaling, and its name for messages.
struct Parameters<'a> {
    config: &'a ModelConfig,
    key: String,
    values: Option<&'a Map<String, Value>>,
}

impl<'a> Parameters<'a> {
    fn find(config: &'a ModelConfig, layer_type: Option<&str>) -> Result<Parameters<'a>, Error> {
        for key in ["rope_parameters", "rope_scaling"] {
            let Some(value) = config.value(key) else { continue };
            let Value::Object(values) = value else {
                return Err(config.error(key, "an object", excerpt(value)));
            };
            if values.is_empty() {
                continue;
            }
            let nested = layer_type.and_then(|layer_type| values.get_key_value(layer_type));
            return Ok(match nested {
                Some((layer_type, Value::Object(values))) => {
                    let key = format!("{key}.{layer_type}");
                    Parameters { config, key, values: Some(values) }
                }
                _ => Parameters { config, key: key.to_string(), values: Some(values) },
            });
        }
        Ok(Parameters { config, key: "rope_parameters".into(), values: None })
    }

    fn scaling(&self) -> Result<RopeScaling, Error> {
        let key = if self.get("rope_type").is_some() { "rope_type" } else { "type" };
        let name = match self.get(key) {
            None => return Ok(RopeScaling::Default),
            Some(Value::String(name)) => name.as_str(),
            Some(other) => return Err(self.error(key, "a string", excerpt(other))),
        };
        Ok(match name {
            // M-RoPE with equal position streams, as for text alone, is ordinary rope.
            "default" | "none" | "mrope" => RopeScaling::Default,
            "linear" => RopeScaling::Linear { factor: self.factor()? },
            "dynamic" => RopeScaling::Dynamic {
                factor: self.factor()?,
                original_max_position_embeddings: self
                    .config
                    .required_count("max_position_embeddings")?,
            },
            "llama3" => self.llama3()?,
            "yarn" => RopeScaling::Yarn(self.yarn()?),
            other => {
                let known = "default, linear, dynamic, llama3 or yarn";
                return Err(self.error(key, known, other));
            }
        })
    }

    fn llama3(&self) -> Result<RopeScaling, Error> {
        let low_freq_factor = self.positive("low_freq_factor")?;
        let high_freq_factor = self.positive("high_freq_factor")?;
        if high_freq_factor <= low_freq_factor {
            let expected = format!("more than low_freq_factor, {low_freq_factor}");
            return Err(self.error("high_freq_factor", &expected, high_freq_factor));
        }
        Ok(RopeScaling::Llama3 {
            factor: self.factor()?,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings: self.original_max_position_embeddings()?,
        })
    }

    fn yarn(&self) -> Result<Yarn, Error> {
        let original = self.original_max_position_embeddings()?;
        let factor = match self.number("factor")? {
            Some(_) => self.factor()?,
            // Some checkpoints give the two contexts and leave the ratio to the reader.
            None => self.config.required_count("max_position_embeddings")? as f64 / original as f64,
        };
        let or = |value: Option<f64>, default: f64| value.filter(|v| *v != 0.0).unwrap_or(default);
        let truncate = match self.get("truncate") {
            None => true,
            Some(Value::Bool(truncate)) => *truncate,
            Some(other) => return Err(self.error("truncate", "true or false", excerpt(other))),
        };
        Ok(Yarn {
            factor,
            original_max_position_embeddings: original,
            attention_factor: self.number("attention_factor")?,
            beta_fast: or(self.number("beta_fast")?, 32.0),
            beta_slow: or(self.number("beta_slow")?, 1.0),
            mscale: self.number("mscale")?,
            mscale_all_dim: self.number("mscale_all_dim")?,
            truncate,
        })
    }

    /// The trained context: beside the parameters, among them, or else the whole context.
    fn original_max_position_embeddings(&self) -> Result<usize, Error> {
        const KEY: &str = "original_max_position_embeddings";
        if self.config.value(KEY).is_some() {
            return self.config.required_count(KEY);
        }
        match self.get(KEY) {
            None => self.config.required_count("max_position_embeddings"),
            Some(value) => value
                .as_u64()
                .and_then(|value| usize::try_from(value).ok())
                .filter(|value| *value > 0)
                .ok_or_else(|| self.error(KEY, "a positive integer", excerpt(value))),
        }
    }

    fn factor(&self) -> Result<f64, Error> {
        match self.positive("factor")? {
            factor if factor >= 1.0 => Ok(factor),
            factor => Err(self.error("factor", "at least 1", factor)),
        }
    }

    fn positive(&self, key: &str) -> Result<f64, Error> {
        match self.number(key)? {
            Some(value) if value > 0.0 => Ok(value),
            Some(value) => Err(self.error(key, "a positive number", value)),
            None => Err(self.error(key, "a positive number", "nothing")),
        }
    }

    fn number(&self, key: &str) -> Result<Option<f64>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => {
                value.as_f64().map(Some).ok_or_else(|| self.error(key, "a number", excerpt(value)))
            }
        }
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.values?.get(key).filter(|value| !value.is_null())
    }

    fn error(&self, key: &str, expected: &str, found: impl ToString) -> Error {
        self.config.error(&format!("{}.{key}", self.key), expected, found.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rope(json: Value, layer_type: Option<&str>) -> Result<Rope, Error> {
        ModelConfig::from_json("config.json", json).unwrap().rope(layer_type)
    }

    #[test]
    fn both_styles_say_the_same() {
        let scaling = json!({
            "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3",
        });
        let hub = rope(json!({"rope_theta": 5e5, "rope_scaling": scaling}), None).unwrap();
        let mut parameters = scaling;
        parameters["rope_theta"] = json!(5e5);
        let five = rope(json!({"rope_parameters": parameters}), None).unwrap();
        assert_eq!(hub, five);
        assert_eq!(hub.theta, 5e5);
        assert!(matches!(
            hub.scaling,
            RopeScaling::Llama3 { original_max_position_embeddings: 8192, .. }
        ));
    }

    #[test]
    fn layer_types_have_their_own_parameters() {
        let config = json!({"rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        }});
        let full = rope(config.clone(), Some("full_attention")).unwrap();
        assert_eq!((full.theta, full.scaling), (1e6, RopeScaling::Linear { factor: 8.0 }));
        let sliding = rope(config, Some("sliding_attention")).unwrap();
        assert_eq!((sliding.theta, sliding.scaling), (1e4, RopeScaling::Default));
    }

    #[test]
    fn yarn_without_a_factor_takes_the_ratio_of_the_contexts() {
        let config = json!({"max_position_embeddings": 131072, "rope_scaling": {
            "type": "yarn", "original_max_position_embeddings": 32768,
        }});
        let RopeScaling::Yarn(yarn) = rope(config, None).unwrap().scaling else { panic!("yarn") };
        assert_eq!((yarn.factor, yarn.beta_fast, yarn.beta_slow), (4.0, 32.0, 1.0));
        assert!(yarn.truncate && yarn.attention_factor.is_none());
    }

    #[test]
    fn an_unknown_scaling_and_a_missing_factor_name_their_key() {
        let error = rope(json!({"rope_scaling": {"type": "su"}}), None).unwrap_err().to_string();
        assert!(error.contains("rope_scaling.type") && error.ends_with("found su"), "{error}");
        let error = rope(json!({"rope_scaling": {"type": "linear"}}), None).unwrap_err();
        assert!(error.to_string().contains("rope_scaling.factor"), "{error}");
    }

    #[test]
    fn nothing_configured_is_plain_rope() {
        let rope = rope(json!({"rope_scaling": null}), None).unwrap();
        assert_eq!((rope.theta, rope.scaling), (THETA_DEFAULT, RopeScaling::Default));
        assert_eq!((rope.partial_rotary_factor, rope.frequency_divisors), (1.0, None));
    }
}
