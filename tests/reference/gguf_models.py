"""Makes the GGUF fixtures of every architecture after llama: files, and what transformers answers for them.

Writes models/tests/fixtures/gguf_<architecture>_<name>.gguf and .golden.json. The reference is transformers in
float32 on the dequantized weights, so the comparison tests names, metadata, the order of elements and the
reading of blocks, and not the loss by quantization. `gguf_check_llama_cpp.py` holds the files to llama.cpp.

    python tests/reference/gguf_models.py [ARCHITECTURE | ARCHITECTURE_NAME ...]
"""
import sys

import torch
from gguf import GGMLQuantizationType as Type

from fixtures import dense, hybrid, moe
from fixtures.gguf_files import GgufFixture, make

SLIDING, FULL = "sliding_attention", "full_attention"
LINEAR = "linear_attention"
# Rows of whole blocks of 32 everywhere.
WIDE = dict(hidden_size=64, intermediate_size=64, num_attention_heads=2, num_key_value_heads=1, head_dim=32)
NARROW = {**WIDE, "hidden_size": 32}
SMALL = {**NARROW, "intermediate_size": 32, "head_dim": 16}


def gemma_rope(**full):
    """A base for each type of layer, and what stretches the rope of full layers."""
    sliding = dict(rope_type="default", rope_theta=10000.0)
    return dict(rope_parameters=dict(full_attention=dict(rope_theta=1000000.0, **full), sliding_attention=sliding))


# llama.cpp has one full layer in six, and scales the softmax by the size of a head.
GEMMA = dict(num_hidden_layers=7, layer_types=[SLIDING] * 5 + [FULL, SLIDING])
# One size for all heads of a delta layer; three value heads to a key head, so that their order has a direction.
DELTA = dict(linear_key_head_dim=16, linear_value_head_dim=16, linear_num_key_heads=2, linear_num_value_heads=6)
THIRD = dict(num_hidden_layers=3, layer_types=[LINEAR, LINEAR, FULL])
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, mlp_only_layers=[])
SHARED = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=24)
SHARED_WIDE = {**SHARED, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64}
LATENT = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
    q_lora_rank=32, kv_lora_rank=32, qk_rope_head_dim=16, qk_nope_head_dim=32, v_head_dim=48, n_routed_experts=4,
    num_experts_per_tok=2, n_group=1, topk_group=1, n_shared_experts=1, moe_intermediate_size=32,
    # The two latent norms have another epsilon in transformers than in llama.cpp, unless it is this.
    rms_norm_eps=1e-6,
)
GROUPS = {**LATENT, "hidden_size": 64, "num_hidden_layers": 3, "n_shared_experts": 2, "n_routed_experts": 6, "n_group": 2}

K_QUANTS = (
    ("ffn_gate", Type.Q2_K), ("ffn_up", Type.Q3_K), ("ffn_down", Type.Q6_K), ("attn_q", Type.Q4_K),
    ("attn_k", Type.IQ4_XS), ("attn_v", Type.Q5_K), ("attn_output", Type.Q5_0), ("token_embd", Type.Q6_K),
)
CODED = (("gate_exps", Type.MXFP4), ("up_exps", Type.MXFP4), ("down_exps", Type.IQ4_NL), ("output", Type.Q8_0))
IQ4_NL = (("_exps", Type.IQ4_NL), ("token_embd", Type.Q8_0))

FIXTURES = [
    GgufFixture("qwen3", dense.QWEN3, "f32", NARROW),
    GgufFixture("qwen3", dense.QWEN3, "q8_0", dict(WIDE, tie_word_embeddings=True), rest=Type.Q8_0),
    GgufFixture(
        "qwen3", dense.QWEN3, "k_quants",
        dict(WIDE, hidden_size=256, intermediate_size=256, num_hidden_layers=1, tie_word_embeddings=True), K_QUANTS,
    ),
    GgufFixture("qwen3moe", moe.QWEN3_MOE, "f32", dict(NARROW, **EXPERTS, moe_intermediate_size=16)),
    GgufFixture(
        "qwen3moe", moe.QWEN3_MOE, "f16", dict(WIDE, **EXPERTS, moe_intermediate_size=32, num_hidden_layers=2),
        rest=Type.F16,
    ),
    GgufFixture(
        "qwen3moe", moe.QWEN3_MOE, "mxfp4", dict(WIDE, **EXPERTS, moe_intermediate_size=32), CODED, Type.Q4_0,
    ),
    GgufFixture(
        "gemma3", dense.GEMMA3, "f32",
        dict(SMALL, **GEMMA, **gemma_rope(rope_type="linear", factor=8.0), query_pre_attn_scalar=16),
    ),
    GgufFixture(
        "gemma3", dense.GEMMA3, "q8_0",
        dict(WIDE, **GEMMA, **gemma_rope(rope_type="default"), query_pre_attn_scalar=32), rest=Type.Q8_0,
    ),
    GgufFixture("qwen3next", hybrid.QWEN3_NEXT, "f32", dict(SMALL, **DELTA, **THIRD, **SHARED)),
    GgufFixture("qwen3next", hybrid.QWEN3_NEXT, "q8_0", dict(WIDE, **DELTA, **THIRD, **SHARED_WIDE), rest=Type.Q8_0),
    GgufFixture("qwen35", hybrid.QWEN3_5, "f32", dict(SMALL, **DELTA, **THIRD)),
    GgufFixture(
        "qwen35", hybrid.QWEN3_5, "bf16", dict(NARROW, **DELTA, tie_word_embeddings=True), rest=Type.BF16,
        predicting=1,
    ),
    GgufFixture(
        "qwen35moe", hybrid.QWEN3_5_MOE, "f32", dict(SMALL, **DELTA, **THIRD, **SHARED, tie_word_embeddings=True),
    ),
    GgufFixture(
        "qwen35moe", hybrid.QWEN3_5_MOE, "iq4_nl", dict(WIDE, **DELTA, **SHARED_WIDE), IQ4_NL, Type.Q5_0,
        fused_experts=True,
    ),
    GgufFixture("deepseek2", moe.GLM4_MOE_LITE, "f32", LATENT),
    GgufFixture("deepseek2", moe.GLM4_MOE_LITE, "q4_1", GROUPS, (("token_embd", Type.Q8_0),), Type.Q4_1),
]


def main(chosen):
    failed = []
    for fixture in FIXTURES:
        if not chosen or fixture.arch in chosen or f"{fixture.arch}_{fixture.name}" in chosen:
            try:
                make(fixture)
            except AssertionError as error:
                failed.append(str(error))
    if failed:
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
