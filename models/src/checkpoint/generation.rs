//! What a checkpoint says about generating with it: where to stop, how to sample by default.

use serde_json::Value;

use super::config::ModelConfig;
use crate::error::Error;

/// Stop ids and sampling defaults of a checkpoint. A sampling field is `None` where the checkpoint
/// is silent.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationConfig {
    /// Ids that end a generation; `generation_config.json` wins over `config.json`.
    pub eos_token_ids: Vec<u32>,
    /// Id that starts a sequence.
    pub bos_token_id: Option<u32>,
    /// Whether to sample at all; without it the most probable token is taken.
    pub do_sample: Option<bool>,
    /// Divisor of the logits.
    pub temperature: Option<f64>,
    /// Probability mass that is kept.
    pub top_p: Option<f64>,
    /// Number of tokens that are kept; 0 keeps all.
    pub top_k: Option<usize>,
    /// Fraction of the largest probability below which a token is dropped.
    pub min_p: Option<f64>,
    /// Penalty on tokens that occurred already.
    pub repetition_penalty: Option<f64>,
}

impl GenerationConfig {
    /// Reads `generation_config.json`, where there is one, over the ids in `config`.
    ///
    /// # Errors
    /// [`Error::Config`] if a key holds what it cannot.
    pub(crate) fn from_json(
        file: &str,
        json: Option<Value>,
        config: &ModelConfig,
    ) -> Result<GenerationConfig, Error> {
        let own = ModelConfig::from_json(
            file,
            json.unwrap_or_else(|| Value::Object([].into_iter().collect())),
        )?;
        let ids = |key: &str| match own.token_ids(key)? {
            ids if ids.is_empty() => config.token_ids(key),
            ids => Ok(ids),
        };
        Ok(GenerationConfig {
            eos_token_ids: ids("eos_token_id")?,
            bos_token_id: ids("bos_token_id")?.first().copied(),
            do_sample: own.flag("do_sample")?,
            temperature: own.number("temperature")?,
            top_p: own.number("top_p")?,
            top_k: own.count("top_k")?,
            min_p: own.number("min_p")?,
            repetition_penalty: own.number("repetition_penalty")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_generation_config_wins_over_the_config() {
        let config = json!({"eos_token_id": 2, "bos_token_id": 1});
        let config = ModelConfig::from_json("config.json", config).unwrap();
        let json = json!({"eos_token_id": [7, 8], "temperature": 0.6, "top_p": 0.9});
        let file = "generation_config.json";
        let generation = GenerationConfig::from_json(file, Some(json), &config).unwrap();
        assert_eq!(generation.eos_token_ids, [7, 8]);
        assert_eq!(generation.bos_token_id, Some(1));
        assert_eq!(generation.temperature, Some(0.6));

        let generation = GenerationConfig::from_json(file, None, &config).unwrap();
        assert_eq!(generation.eos_token_ids, [2]);
        assert_eq!(generation.temperature, None);
    }
}
