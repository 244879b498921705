//! Keys of configurations that describe mixtures of experts.

use sconce_kernels::{RouterOptions, Scoring};

use super::config::{COUNT_MAX, count, count_or, expect_string, positive, product};
use crate::checkpoint::ModelConfig;
use crate::error::Error;
use crate::layers::mlp::activation;
use crate::layers::moe::{MoeShape, SharedShape};

/// Names that the number of experts goes by.
const EXPERTS: [&str; 3] = ["num_experts", "num_local_experts", "n_routed_experts"];

/// Experts as Qwen's models have them: chosen by softmax, with weights that add up to one if
/// `renormalize`, beside a gated shared expert where `shared_expert_intermediate_size` has its width.
///
/// # Errors
/// [`Error::Config`] naming the key.
pub(crate) fn softmax_experts(config: &ModelConfig, renormalize: bool) -> Result<MoeShape, Error> {
    let router = RouterOptions {
        scoring: Scoring::Softmax,
        experts_per_token: count(config, "num_experts_per_tok")?,
        groups: 1,
        groups_per_token: 1,
        renormalize,
        scale: 1.0,
    };
    let key = "shared_expert_intermediate_size";
    let shared = match config.value(key) {
        None => None,
        Some(_) => Some(SharedShape { intermediate_size: count(config, key)?, gated: true }),
    };
    experts(config, router, shared)
}

/// Experts as DeepSeek-V3 and GLM have them: chosen by corrected sigmoid scores from the best of
/// `n_group` groups, beside `n_shared_experts` shared ones that are stored as one.
///
/// # Errors
/// [`Error::Config`] naming the key.
pub(crate) fn sigmoid_experts(config: &ModelConfig) -> Result<MoeShape, Error> {
    expect_string(config, "scoring_func", &["sigmoid"])?;
    expect_string(config, "topk_method", &["noaux_tc"])?;
    let router = RouterOptions {
        scoring: Scoring::Sigmoid,
        experts_per_token: count(config, "num_experts_per_tok")?,
        groups: count_or(config, "n_group", 1)?,
        groups_per_token: count_or(config, "topk_group", 1)?,
        renormalize: config.flag("norm_topk_prob")?.unwrap_or(true),
        scale: positive(config, "routed_scaling_factor", 1.0)? as f32,
    };
    let (width, number) =
        (count(config, "moe_intermediate_size")?, count_or(config, "n_shared_experts", 1)?);
    let intermediate_size = product(config, "n_shared_experts", number, width)?;
    experts(config, router, Some(SharedShape { intermediate_size, gated: false }))
}

fn experts(
    config: &ModelConfig,
    router: RouterOptions,
    shared: Option<SharedShape>,
) -> Result<MoeShape, Error> {
    let experts = expert_count(config)?;
    let RouterOptions { experts_per_token, groups, groups_per_token, .. } = router;
    if !experts.is_multiple_of(groups) {
        return Err(config.error("n_group", format!("a divisor of {experts} experts"), groups));
    }
    if groups_per_token > groups {
        return Err(config.error("topk_group", format!("at most {groups}"), groups_per_token));
    }
    let limit = experts / groups * groups_per_token;
    if experts_per_token > limit {
        let expected = format!("at most {limit}");
        return Err(config.error("num_experts_per_tok", expected, experts_per_token));
    }
    Ok(MoeShape {
        hidden_size: count(config, "hidden_size")?,
        experts,
        intermediate_size: count(config, "moe_intermediate_size")?,
        activation: activation(config, "hidden_act", sconce_kernels::Activation::Silu)?,
        router,
        correction: router.scoring == Scoring::Sigmoid,
        shared,
    })
}

fn expert_count(config: &ModelConfig) -> Result<usize, Error> {
    let mut known = EXPERTS.into_iter().filter(|key| config.value(key).is_some());
    let key = known.next().unwrap_or(EXPERTS[0]);
    let experts = count(config, key)?;
    for other in known {
        if count(config, other)? != experts {
            return Err(config.error(other, format!("{experts}, as {key}"), count(config, other)?));
        }
    }
    Ok(experts)
}

/// Which of a model's layers have experts: those whose number, counted from one, is a multiple of
/// `decoder_sparse_step`, but for the indices in `mlp_only_layers`.
///
/// # Errors
/// [`Error::Config`] naming the key.
pub(crate) fn sparse_layers(config: &ModelConfig, layers: usize) -> Result<Vec<bool>, Error> {
    let step = count_or(config, "decoder_sparse_step", 1)?;
    let mut sparse: Vec<bool> = (1..=layers).map(|number| number.is_multiple_of(step)).collect();
    let key = "mlp_only_layers";
    let Some(value) = config.value(key).filter(|value| !value.is_null()) else {
        return Ok(sparse);
    };
    let expected = || format!("a list of indices below {layers}");
    let indices = value.as_array().ok_or_else(|| config.error(key, expected(), value))?;
    for index in indices {
        let layer = index.as_u64().filter(|index| *index < COUNT_MAX as u64);
        let layer = layer.and_then(|index| sparse.get_mut(index as usize));
        *layer.ok_or_else(|| config.error(key, expected(), index))? = false;
    }
    Ok(sparse)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn config(more: Value) -> ModelConfig {
        let mut json = json!({
            "hidden_size": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 4,
        });
        json.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        ModelConfig::from_json("config.json", json).unwrap()
    }

    #[test]
    fn the_number_of_experts_goes_by_several_names() {
        for key in EXPERTS {
            assert_eq!(softmax_experts(&config(json!({key: 6})), true).unwrap().experts, 6);
        }
        let both = config(json!({"num_experts": 6, "num_local_experts": 5}));
        let error = softmax_experts(&both, true).unwrap_err().to_string();
        assert!(
            error.contains("num_local_experts: expected 6, as num_experts, found 5"),
            "{error}"
        );
        let error = softmax_experts(&config(json!({})), true).unwrap_err().to_string();
        assert!(error.contains("num_experts"), "{error}");
    }

    #[test]
    fn a_shared_expert_is_there_where_its_width_is() {
        let shape = softmax_experts(&config(json!({"num_experts": 2})), true).unwrap();
        assert_eq!(shape.shared, None);
        let key = "shared_expert_intermediate_size";
        let shape = softmax_experts(&config(json!({"num_experts": 2, key: 12})), true).unwrap();
        assert_eq!(shape.shared, Some(SharedShape { intermediate_size: 12, gated: true }));
        let glm = config(json!({"n_routed_experts": 4, "n_shared_experts": 3}));
        let shape = sigmoid_experts(&glm).unwrap();
        assert_eq!(shape.shared, Some(SharedShape { intermediate_size: 12, gated: false }));
    }

    #[test]
    fn choices_that_no_token_can_make_are_refused_by_key() {
        let cases = [
            (json!({"n_routed_experts": 1}), "num_experts_per_tok: expected at most 1"),
            (json!({"n_routed_experts": 4, "n_group": 3}), "n_group: expected a divisor of 4"),
            (json!({"n_routed_experts": 4, "topk_group": 2}), "topk_group: expected at most 1"),
            (
                json!({"n_routed_experts": 4, "n_group": 4}),
                "num_experts_per_tok: expected at most 1",
            ),
            (json!({"n_routed_experts": 4, "scoring_func": "softmax"}), "scoring_func"),
            (json!({"n_routed_experts": 4, "routed_scaling_factor": -1}), "routed_scaling_factor"),
        ];
        for (more, expected) in cases {
            let error = sigmoid_experts(&config(more)).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn layers_are_sparse_by_step_but_for_those_listed() {
        let sparse = |more| sparse_layers(&config(more), 4);
        assert_eq!(sparse(json!({})).unwrap(), [true; 4]);
        assert_eq!(sparse(json!({"mlp_only_layers": null})).unwrap(), [true; 4]);
        let step = json!({"decoder_sparse_step": 2, "mlp_only_layers": [3]});
        assert_eq!(sparse(step).unwrap(), [false, true, false, false]);
        for wrong in [json!([4]), json!([-1]), json!("all"), json!({"0": 1})] {
            let error = sparse(json!({"mlp_only_layers": wrong})).unwrap_err().to_string();
            assert!(
                error.contains("mlp_only_layers: expected a list of indices below 4"),
                "{error}"
            );
        }
        assert!(sparse(json!({"decoder_sparse_step": 0})).is_err());
    }
}
