//! The sizes that are measured: those of the bars, and tiny ones that try the same code on a processor.

use serde_json::{Value, json};

/// Sizes of everything that is measured.
#[derive(Debug, Clone)]
pub(crate) struct Sizes {
    /// Rounds, in each of which all sides of a comparison are timed once.
    pub(crate) rounds: usize,
    /// Milliseconds that a side takes at least in a round.
    pub(crate) round_ms: u64,
    /// Bytes of each of the two buffers whose copy is the measure of bandwidth.
    pub(crate) copied_bytes: usize,
    /// Bytes that operands take together, so that no cache has them when they come again.
    pub(crate) cold_bytes: usize,
    /// Key heads, value heads, and elements of a head of the gated delta rule.
    pub(crate) delta: [usize; 3],
    /// Tokens of a prefill of the rule.
    pub(crate) delta_tokens: Vec<usize>,
    /// Sequences of a decode step of the rule.
    pub(crate) delta_batch: Vec<usize>,
    /// Inputs of weights, and of a residual stream.
    pub(crate) hidden: usize,
    /// Outputs of weights.
    pub(crate) outputs: Vec<usize>,
    /// Experts, those a token chooses, and their width.
    pub(crate) experts: [usize; 3],
    /// Layers of experts that take turns.
    pub(crate) expert_layers: usize,
    /// Tokens of a prefill through experts.
    pub(crate) expert_tokens: usize,
    /// Rows, inputs and outputs of the product that is the measure of arithmetic.
    pub(crate) square: usize,
    /// `config.json` of the model.
    pub(crate) config: Value,
    /// Tokens before a decode, decoded tokens of a round, tokens of a prefill, and of a conversation
    /// that moves out and in.
    pub(crate) context: usize,
    pub(crate) decoded: usize,
    pub(crate) prefill: usize,
    pub(crate) conversation: usize,
}

#[allow(dead_code, reason = "the benchmark has the one, its test the other")]
impl Sizes {
    /// Those of the bars: Qwen3-Next-80B-A3B and its parts.
    pub(crate) fn full() -> Self {
        Self {
            rounds: 7,
            round_ms: 20,
            copied_bytes: 1 << 30,
            cold_bytes: 512 << 20,
            delta: [16, 32, 128],
            delta_tokens: vec![2048, 8192, 32_768],
            delta_batch: vec![1, 32, 256],
            hidden: 2048,
            outputs: vec![4096, 8192, 16_384],
            experts: [512, 10, 512],
            expert_layers: 4,
            expert_tokens: 2048,
            square: 8192,
            config: qwen3_next_80b(),
            context: 1024,
            decoded: 32,
            prefill: 8192,
            conversation: 65_536,
        }
    }

    /// Those that try the code.
    pub(crate) fn tiny() -> Self {
        Self {
            rounds: 3,
            round_ms: 0,
            copied_bytes: 1 << 16,
            cold_bytes: 1 << 10,
            delta: [1, 2, 16],
            delta_tokens: vec![70],
            delta_batch: vec![1, 3],
            hidden: 128,
            outputs: vec![64],
            experts: [6, 2, 128],
            expert_layers: 2,
            expert_tokens: 9,
            square: 32,
            config: tiny_hybrid(),
            context: 5,
            decoded: 2,
            prefill: 70,
            conversation: 300,
        }
    }
}

/// The configuration of Qwen3-Next-80B-A3B, as its `config.json` has it.
pub(crate) fn qwen3_next_80b() -> Value {
    json!({
        "architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next",
        "attention_bias": false, "decoder_sparse_step": 1, "full_attention_interval": 4,
        "head_dim": 256, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 5120,
        "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_num_key_heads": 16,
        "linear_num_value_heads": 32, "linear_value_head_dim": 128,
        "max_position_embeddings": 262_144, "mlp_only_layers": [], "moe_intermediate_size": 512,
        "norm_topk_prob": true, "num_attention_heads": 16, "num_experts": 512,
        "num_experts_per_tok": 10, "num_hidden_layers": 48, "num_key_value_heads": 2,
        "partial_rotary_factor": 0.25, "rms_norm_eps": 1e-6, "rope_theta": 10_000_000,
        "shared_expert_intermediate_size": 512, "tie_word_embeddings": false,
        "vocab_size": 151_936,
    })
}

/// The same in small.
fn tiny_hybrid() -> Value {
    let mut config = qwen3_next_80b();
    for (key, value) in [
        ("full_attention_interval", 2),
        ("head_dim", 32),
        ("hidden_size", 128),
        ("linear_key_head_dim", 16),
        ("linear_num_key_heads", 2),
        ("linear_num_value_heads", 4),
        ("linear_value_head_dim", 32),
        ("moe_intermediate_size", 128),
        ("num_attention_heads", 4),
        ("num_experts", 6),
        ("num_experts_per_tok", 2),
        ("num_hidden_layers", 2),
        ("num_key_value_heads", 1),
        ("shared_expert_intermediate_size", 128),
        ("vocab_size", 96),
    ] {
        config[key] = json!(value);
    }
    config
}
