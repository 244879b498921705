//! Keys that the configurations of all architectures have in common, and checks they share.

use crate::checkpoint::ModelConfig;
use crate::error::Error;
use crate::layers::attention::AttentionShape;

/// Epsilon of the norms where a configuration is silent, as in `transformers`.
const RMS_NORM_EPS: f64 = 1e-6;

/// Largest value of each count, and of heads times their size: far above any model, and low enough
/// that the bytes of a step's buffers fit 64 bits.
pub(crate) const COUNT_MAX: usize = 1 << 24;

/// What every decoder has.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Common {
    /// `model_type`, which may be a namesake's.
    pub(crate) model_type: String,
    /// Rows of embedding and head.
    pub(crate) vocab_size: usize,
    /// Width of the residual stream.
    pub(crate) hidden_size: usize,
    /// `num_hidden_layers`.
    pub(crate) layers: usize,
    /// Added to the mean square of the norms.
    pub(crate) rms_norm_eps: f32,
    /// Context the model was made for.
    pub(crate) max_position_embeddings: usize,
    /// Whether the embedding serves as the head.
    pub(crate) tied: bool,
}

impl Common {
    /// Reads them; `tied` is the architecture's answer where the configuration has none.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key.
    pub(crate) fn read(config: &ModelConfig, tied: bool) -> Result<Self, Error> {
        Ok(Self {
            model_type: config.model_type()?.to_string(),
            vocab_size: count(config, "vocab_size")?,
            hidden_size: count(config, "hidden_size")?,
            layers: count(config, "num_hidden_layers")?,
            rms_norm_eps: rms_norm_eps(config)?,
            max_position_embeddings: count(config, "max_position_embeddings")?,
            tied: config.flag("tie_word_embeddings")?.unwrap_or(tied),
        })
    }
}

/// Sizes of the attention layers: `num_attention_heads`, `num_key_value_heads`, `head_dim`.
///
/// # Errors
/// [`Error::Config`] naming the key.
pub(crate) fn attention_shape(config: &ModelConfig) -> Result<AttentionShape, Error> {
    let hidden_size = count(config, "hidden_size")?;
    let heads = count(config, "num_attention_heads")?;
    let kv_heads = match config.count("num_key_value_heads")? {
        None => heads,
        Some(_) => count(config, "num_key_value_heads")?,
    };
    if !heads.is_multiple_of(kv_heads) {
        let expected = format!("a divisor of num_attention_heads, {heads}");
        return Err(config.error("num_key_value_heads", expected, kv_heads));
    }
    let head_dim = match config.count("head_dim")? {
        Some(_) => count(config, "head_dim")?,
        None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => {
            let expected = format!("a multiple of num_attention_heads, {heads}");
            return Err(config.error("hidden_size", expected, hidden_size));
        }
    };
    product(config, "head_dim", heads, head_dim)?;
    Ok(AttentionShape { hidden_size, heads, kv_heads, head_dim })
}

/// A count of at least one that arithmetic can rely on.
///
/// # Errors
/// [`Error::Config`] if it is absent, zero or above [`COUNT_MAX`].
pub(crate) fn count(config: &ModelConfig, key: &str) -> Result<usize, Error> {
    match config.required_count(key)? {
        count if count <= COUNT_MAX => Ok(count),
        count => Err(config.error(key, format!("at most {COUNT_MAX}"), count)),
    }
}

/// As [`count`], with an answer for an absent key.
///
/// # Errors
/// As for [`count`], but for absence.
pub(crate) fn count_or(config: &ModelConfig, key: &str, default: usize) -> Result<usize, Error> {
    match config.value(key) {
        None => Ok(default),
        Some(_) => count(config, key),
    }
}

/// The product of two counts, if it is not too large either; `key` is the one to blame.
///
/// # Errors
/// [`Error::Config`].
pub(crate) fn product(
    config: &ModelConfig,
    key: &str,
    heads: usize,
    dim: usize,
) -> Result<usize, Error> {
    match heads.checked_mul(dim) {
        Some(product) if product <= COUNT_MAX => Ok(product),
        _ => {
            let expected = format!("at most {COUNT_MAX} elements of all heads");
            Err(config.error(key, expected, format!("{heads} of {dim}")))
        }
    }
}

/// Refuses a string key that holds none of `known`; absent is known.
///
/// # Errors
/// [`Error::Config`].
pub(crate) fn expect_string(config: &ModelConfig, key: &str, known: &[&str]) -> Result<(), Error> {
    match config.string(key)? {
        Some(found) if !known.contains(&found) => Err(config.error(key, known.join(" or "), found)),
        _ => Ok(()),
    }
}

/// Refuses a flag that is set: what it asks for is not built.
///
/// # Errors
/// [`Error::Config`].
pub(crate) fn expect_unset(config: &ModelConfig, key: &str) -> Result<(), Error> {
    match config.flag(key)? {
        Some(true) => Err(config.error(key, "false", true)),
        _ => Ok(()),
    }
}

/// A finite number above zero.
///
/// # Errors
/// [`Error::Config`].
pub(crate) fn positive(config: &ModelConfig, key: &str, default: f64) -> Result<f64, Error> {
    match config.number(key)?.unwrap_or(default) {
        number if number.is_finite() && number > 0.0 => Ok(number),
        number => Err(config.error(key, "a positive number", number)),
    }
}

fn rms_norm_eps(config: &ModelConfig) -> Result<f32, Error> {
    Ok(positive(config, "rms_norm_eps", RMS_NORM_EPS)? as f32)
}

/// One entry of `layer_types` for each layer, each of them one of `known`; `None` if absent.
///
/// # Errors
/// [`Error::Config`] for another number of entries, or an unknown one.
pub(crate) fn layer_types<'a>(
    config: &'a ModelConfig,
    key: &str,
    layers: usize,
    known: &[&str],
) -> Result<Option<Vec<&'a str>>, Error> {
    let Some(types) = config.strings(key)? else { return Ok(None) };
    if types.len() != layers {
        let expected = format!("one for each of {layers} layers");
        return Err(config.error(key, expected, types.len()));
    }
    match types.iter().find(|found| !known.contains(found)) {
        Some(found) => Err(config.error(key, known.join(" or "), found)),
        None => Ok(Some(types)),
    }
}
