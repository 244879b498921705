//! The rotary embedding of a GGUF file, in the two styles of `config.json`.

use serde_json::{Value, json};

use super::Translation;
use crate::checkpoint::rope::FREQUENCY_DIVISORS;
use crate::error::Error;

/// Base of the frequencies where the file names none, as llama.cpp has it.
const THETA_DEFAULT: f64 = 10_000.0;

impl Translation<'_> {
    /// Inserts base, rotated part and scaling.
    ///
    /// # Errors
    /// [`Error::Config`] for a value of the wrong type, or one that no configuration can say.
    pub(super) fn rope(&mut self, divisors: Option<Vec<f32>>) -> Result<(), Error> {
        if let Some(divisors) = divisors {
            self.insert(FREQUENCY_DIVISORS, "rope_freqs.weight", divisors);
        }
        self.insert("rope_theta", &self.key("rope.freq_base"), self.rope_theta()?);
        if let Some(scaling) = self.rope_scaling()? {
            let type_key = self.key("rope.scaling.type");
            self.spelled.insert("rope_scaling.rope_type".into(), type_key);
            self.insert("rope_scaling", &self.key("rope.scaling"), scaling);
        }
        Ok(())
    }

    /// Inserts the part of a head that is rotated, all of it where the file does not say.
    ///
    /// # Errors
    /// [`Error::Config`] if it is no part of a head.
    pub(super) fn rotated_part(&mut self, head_dim: usize) -> Result<(), Error> {
        const SUFFIX: &str = "rope.dimension_count";
        let rotated = self.count(SUFFIX)?.filter(|rotated| *rotated > 0).unwrap_or(head_dim);
        if rotated > head_dim {
            return Err(self.error(SUFFIX, &format!("at most {head_dim}, a head"), rotated));
        }
        let key = self.key(SUFFIX);
        self.insert("partial_rotary_factor", &key, rotated as f64 / head_dim as f64);
        Ok(())
    }

    /// Replaces base and scaling by parameters for each type of layer: layers with a sliding window
    /// have a base of their own, and are not scaled.
    ///
    /// # Errors
    /// [`Error::Config`] for a value of the wrong type.
    pub(super) fn rope_by_layer_type(&mut self) -> Result<(), Error> {
        let mut full = match self.values.remove("rope_scaling") {
            Some(Value::Object(scaling)) => scaling,
            _ => serde_json::Map::from_iter([("rope_type".into(), "default".into())]),
        };
        if let Some(theta) = self.values.remove("rope_theta") {
            full.insert("rope_theta".into(), theta);
        }
        let sliding = self.number("rope.freq_base_swa")?.unwrap_or(THETA_DEFAULT);
        let parameters = json!({
            "full_attention": full,
            "sliding_attention": {"rope_type": "default", "rope_theta": sliding},
        });
        self.insert("rope_parameters", &self.key("rope"), parameters);
        Ok(())
    }

    fn rope_theta(&self) -> Result<f64, Error> {
        Ok(self.number("rope.freq_base")?.unwrap_or(THETA_DEFAULT))
    }

    fn rope_scaling(&self) -> Result<Option<Value>, Error> {
        let name = match self.gguf.string(&self.key("rope.scaling.type"))? {
            Some(name) => name,
            // Before scalings had types there was one.
            None if self.number("rope.scale_linear")?.is_some_and(|factor| factor > 1.0) => {
                "linear"
            }
            None => "none",
        };
        let factor = match self.number("rope.scaling.factor")? {
            Some(factor) => Some(factor),
            None => self.number("rope.scale_linear")?,
        }
        .filter(|factor| *factor != 0.0);
        Ok(match (name, factor) {
            ("none", _) | ("linear", None) => None,
            ("yarn", factor) => Some(self.yarn(factor)?),
            (name, factor) => Some(json!({"rope_type": name, "factor": factor})),
        })
    }

    fn yarn(&self, factor: Option<f64>) -> Result<Value, Error> {
        // It scales the attention's logits too, which no architecture here does.
        const MULTIPLIER: &str = "rope.scaling.yarn_log_multiplier";
        if let Some(other) = self.number(MULTIPLIER)?.filter(|multiplier| *multiplier != 0.0) {
            return Err(self.error(MULTIPLIER, "0, or nothing", other));
        }
        let original = self.number("rope.scaling.original_context_length")?;
        // GGUF's factor is one more on top of the logarithmic one, `transformers`' is the product.
        let attention_factor = self
            .number("rope.scaling.attn_factor")?
            .zip(factor)
            .map(|(attention, factor)| attention * (0.1 * factor.ln() + 1.0));
        Ok(json!({
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original.map(|value| value as u64),
            "attention_factor": attention_factor,
            "beta_fast": self.number("rope.scaling.yarn_beta_fast")?,
            "beta_slow": self.number("rope.scaling.yarn_beta_slow")?,
        }))
    }
}
