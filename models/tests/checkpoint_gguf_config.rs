//! Metadata of GGUF architectures in the words of `config.json`, and what is refused because it is
//! another model than its architecture's name says.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/gguf.rs"]
mod gguf;

use gguf::GgufFile;
use sconce_models::checkpoint::{Checkpoint, ModelConfig, RopeScaling};

fn open(file: &GgufFile) -> Result<Checkpoint, String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    std::fs::write(&path, file.bytes()).unwrap();
    Checkpoint::open(&path).map_err(|error| error.to_string())
}

fn config(file: &GgufFile) -> ModelConfig {
    open(file).unwrap().config().clone()
}

/// Metadata that every architecture has: 8 layers, 4 heads of 16, hidden size 64.
fn common(architecture: &str) -> GgufFile {
    let key = |suffix: &str| format!("{architecture}.{suffix}");
    GgufFile::new()
        .string("general.architecture", architecture)
        .u32(&key("block_count"), 8)
        .u32(&key("context_length"), 512)
        .u32(&key("embedding_length"), 64)
        .u32(&key("attention.head_count"), 4)
        .f32(&key("attention.layer_norm_rms_epsilon"), 1e-6)
}

fn counts(config: &ModelConfig, expected: &[(&str, usize)]) {
    for (key, value) in expected {
        assert_eq!(config.count(key).unwrap(), Some(*value), "{key}");
    }
}

fn full_layers(config: &ModelConfig) -> Vec<usize> {
    let types = config.strings("layer_types").unwrap().unwrap();
    assert_eq!(types.len(), config.count("num_hidden_layers").unwrap().unwrap());
    let full = types.iter().enumerate().filter(|(_, kind)| **kind == "full_attention");
    full.map(|(layer, _)| layer).collect()
}

#[test]
fn what_a_file_leaves_out_is_what_llama_cpp_takes_for_it() {
    let config = config(&common("qwen3"));
    counts(&config, &[("num_key_value_heads", 4), ("head_dim", 16)]);
    let rope = config.rope(None).unwrap();
    assert_eq!((rope.theta, rope.partial_rotary_factor), (10_000.0, 1.0));
}

fn qwen3next() -> GgufFile {
    common("qwen3next")
        .u32("qwen3next.attention.key_length", 16)
        .u32("qwen3next.attention.value_length", 16)
        .u32("qwen3next.rope.dimension_count", 4)
        .u32("qwen3next.expert_count", 8)
        .u32("qwen3next.expert_used_count", 2)
        .u32("qwen3next.expert_feed_forward_length", 32)
        .u32("qwen3next.ssm.conv_kernel", 4)
        .u32("qwen3next.ssm.state_size", 16)
        .u32("qwen3next.ssm.group_count", 2)
        .u32("qwen3next.ssm.time_step_rank", 4)
        .u32("qwen3next.ssm.inner_size", 96)
}

#[test]
fn gated_delta_layers_and_their_experts_are_described() {
    let shared = [0; 64 * 48 * 4];
    let file = qwen3next().tensor("blk.0.ffn_down_shexp.weight", &[64, 48], 0, &shared);
    let config = config(&file);
    assert_eq!(config.model_type().unwrap(), "qwen3_next");
    assert_eq!(full_layers(&config), [3, 7]);
    counts(
        &config,
        &[
            ("linear_conv_kernel_dim", 4),
            ("linear_key_head_dim", 16),
            ("linear_num_key_heads", 2),
            ("linear_num_value_heads", 4),
            ("linear_value_head_dim", 24),
            ("num_experts", 8),
            ("num_experts_per_tok", 2),
            ("moe_intermediate_size", 32),
            ("shared_expert_intermediate_size", 48),
        ],
    );
    assert_eq!(config.flag("norm_topk_prob").unwrap(), Some(true));
    assert_eq!(config.rope(None).unwrap().partial_rotary_factor, 0.25);

    let error = open(&qwen3next().u32("qwen3next.expert_gating_func", 2)).unwrap_err();
    assert!(error.contains("qwen3next.expert_gating_func: expected 1, softmax"), "{error}");
}

#[test]
fn tensors_of_one_row_and_of_one_input_channel_have_the_shapes_of_transformers() {
    let file = qwen3next()
        .tensor_f32("blk.0.ffn_gate_inp_shexp.weight", &[64], &[0.0; 64])
        .tensor_f32("blk.0.ssm_conv1d.weight", &[8, 4], &[0.0; 32])
        .tensor_f32("blk.1.ssm_conv1d.weight", &[8, 1, 4], &[0.0; 32]);
    let checkpoint = open(&file).unwrap();
    let shape = |name: &str| {
        checkpoint.tensor(&format!("model.layers.{name}.weight")).unwrap().shape.to_vec()
    };
    assert_eq!(shape("0.mlp.shared_expert_gate"), [1, 64]);
    assert_eq!(shape("0.linear_attn.conv1d"), [8, 4]);
    assert_eq!(shape("1.linear_attn.conv1d"), [8, 4]);
}

#[test]
fn layers_that_predict_further_tokens_do_not_count() {
    let file = common("qwen35")
        .u32("qwen35.nextn_predict_layers", 1)
        .u32("qwen35.full_attention_interval", 3)
        .tensor_f32("blk.7.attn_norm.weight", &[64], &[0.0; 64]);
    let checkpoint = open(&file).unwrap();
    assert_eq!(checkpoint.config().count("num_hidden_layers").unwrap(), Some(7));
    assert_eq!(full_layers(checkpoint.config()), [2, 5]);
    assert!(checkpoint.has("mtp.layers.0.input_layernorm.weight"));

    let error = open(&common("qwen35").u32("qwen35.nextn_predict_layers", 8)).unwrap_err();
    assert!(error.contains("nextn_predict_layers: expected less than block_count, 8"), "{error}");
}

#[test]
fn layers_without_end_are_refused() {
    let file = GgufFile::new()
        .string("general.architecture", "gemma3")
        .u32("gemma3.block_count", u32::MAX);
    let error = open(&file).unwrap_err();
    assert!(error.contains("gemma3.block_count: expected at most 16384"), "{error}");
}

#[test]
fn a_list_of_recurrent_layers_wins_over_the_interval() {
    let flags = [1, 1, 0, 1, 1, 1, 1, 0, 1];
    let listed = |flags: &[u8]| {
        let list = gguf::list(7, flags.len(), flags);
        common("qwen35").raw("qwen35.attention.recurrent_layers", 9, &list)
    };
    assert_eq!(full_layers(&config(&listed(&flags))), [2, 7]);
    let error = open(&listed(&flags[..4])).unwrap_err();
    assert!(error.contains("expected a flag for each of 8 layers, found 4 flags"), "{error}");
    let error = open(&common("qwen35").u32("qwen35.full_attention_interval", 0)).unwrap_err();
    assert!(error.contains("full_attention_interval: expected at least 1"), "{error}");
}

#[test]
fn gemma3_slides_over_unscaled_layers() {
    let file = common("gemma3")
        .u32("gemma3.attention.key_length", 32)
        .u32("gemma3.attention.sliding_window", 24)
        .f32("gemma3.rope.freq_base", 1e6)
        .string("gemma3.rope.scaling.type", "linear")
        .f32("gemma3.rope.scaling.factor", 8.0);
    let config = config(&file);
    assert_eq!(config.model_type().unwrap(), "gemma3_text");
    assert_eq!(config.string("hidden_activation").unwrap(), Some("gelu_pytorch_tanh"));
    assert_eq!(full_layers(&config), [5]);
    counts(&config, &[("sliding_window", 24), ("query_pre_attn_scalar", 32)]);
    let full = config.rope(Some("full_attention")).unwrap();
    assert_eq!((full.theta, full.scaling), (1e6, RopeScaling::Linear { factor: 8.0 }));
    let sliding = config.rope(Some("sliding_attention")).unwrap();
    assert_eq!((sliding.theta, sliding.scaling), (10_000.0, RopeScaling::Default));
}

#[test]
fn the_largest_gemma3_scales_by_its_hidden_size_and_one_without_a_window_does_not_slide() {
    let file = GgufFile::new()
        .string("general.architecture", "gemma3")
        .u32("gemma3.block_count", 62)
        .u32("gemma3.embedding_length", 5376)
        .u32("gemma3.attention.head_count", 32)
        .u32("gemma3.attention.key_length", 128);
    let config = config(&file);
    counts(&config, &[("query_pre_attn_scalar", 168), ("head_dim", 128)]);
    assert_eq!(full_layers(&config).len(), 62);
}

/// Latent attention: 16 rotated and 32 other elements of a key, values of 24.
fn deepseek2() -> GgufFile {
    common("deepseek2")
        .u32("deepseek2.attention.head_count_kv", 1)
        .u32("deepseek2.attention.kv_lora_rank", 40)
        .u32("deepseek2.attention.key_length", 56)
        .u32("deepseek2.attention.value_length", 40)
        .u32("deepseek2.rope.dimension_count", 16)
        .u32("deepseek2.leading_dense_block_count", 1)
        .u32("deepseek2.expert_count", 8)
        .u32("deepseek2.expert_used_count", 2)
        .u32("deepseek2.expert_shared_count", 1)
        .u32("deepseek2.expert_feed_forward_length", 32)
}

fn halves(file: GgufFile) -> GgufFile {
    file.u32("deepseek2.attention.key_length_mla", 48)
        .u32("deepseek2.attention.value_length_mla", 24)
}

#[test]
fn latent_attention_with_corrected_scores_is_glm() {
    let file = halves(deepseek2())
        .f32("deepseek2.expert_weights_scale", 1.5)
        .u32("deepseek2.nextn_predict_layers", 1)
        .tensor_f32("blk.1.exp_probs_b.bias", &[8], &[0.0; 8]);
    let config = config(&file);
    assert_eq!(config.model_type().unwrap(), "glm4_moe_lite");
    counts(
        &config,
        &[
            ("num_hidden_layers", 7),
            ("num_nextn_predict_layers", 1),
            ("num_key_value_heads", 4),
            ("kv_lora_rank", 40),
            ("qk_nope_head_dim", 32),
            ("qk_rope_head_dim", 16),
            ("v_head_dim", 24),
            ("first_k_dense_replace", 1),
            ("n_routed_experts", 8),
            ("n_shared_experts", 1),
            ("n_group", 1),
            ("topk_group", 1),
        ],
    );
    // A file says that weights are renormalised, or they are not.
    assert_eq!(config.flag("norm_topk_prob").unwrap(), Some(false));
    assert_eq!(config.number("routed_scaling_factor").unwrap(), Some(1.5));
    assert_eq!(
        (config.count("q_lora_rank").unwrap(), config.count("head_dim").unwrap()),
        (None, None)
    );
    assert_eq!(config.rope(None).unwrap().partial_rotary_factor, 1.0);
}

#[test]
fn older_files_have_the_lengths_of_the_expanded_head() {
    let file = deepseek2().u32("deepseek2.expert_gating_func", 2);
    counts(&config(&file), &[("qk_nope_head_dim", 40), ("v_head_dim", 40)]);
}

#[test]
fn other_models_with_latent_attention_are_refused() {
    let sigmoid = || halves(deepseek2()).u32("deepseek2.expert_gating_func", 2);
    assert!(open(&sigmoid()).is_ok());
    let error = open(&halves(deepseek2())).unwrap_err();
    assert!(error.contains("expert_gating_func: expected 2, sigmoid, found 1"), "{error}");
    let yarn = sigmoid()
        .string("deepseek2.rope.scaling.type", "yarn")
        .f32("deepseek2.rope.scaling.factor", 40.0);
    let error = open(&yarn).unwrap_err();
    assert!(error.contains("deepseek2.rope.scaling.type: expected none"), "{error}");
    let error = open(&yarn.f32("deepseek2.rope.scaling.yarn_log_multiplier", 0.0707)).unwrap_err();
    assert!(error.contains("yarn_log_multiplier: expected 0, or nothing"), "{error}");
    let error = open(&sigmoid().f32("deepseek2.attention.temperature_scale", 0.1)).unwrap_err();
    assert!(error.contains("attention.temperature_scale: expected 0"), "{error}");
}

#[test]
fn values_of_another_length_than_keys_are_refused() {
    let file = common("qwen3")
        .u32("qwen3.attention.key_length", 16)
        .u32("qwen3.attention.value_length", 8);
    let error = open(&file).unwrap_err();
    assert!(error.contains("qwen3.attention.value_length: expected 16, as the keys"), "{error}");
}
