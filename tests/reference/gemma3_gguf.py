"""A gemma3 GGUF file as transformers would have it.

What it is for: the float32 reference of a Gemma 3 text model, every tensor dequantized by the `gguf`
package. What it is not for: any other architecture, or the vision tower.
"""
import gguf
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from llama_gguf import metadata

LAYER_TENSORS = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm", "post_ffw_norm": "post_feedforward_layernorm",
}
TOP_TENSORS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}

# What the format leaves to its reader: every sixth layer is a full one, and the sliding ones have this base.
PATTERN, LOCAL_ROPE_BASE = 6, 10000.0


def config_of(reader):
    """The transformers configuration that the file's metadata describes."""
    get = lambda key, default=None: metadata(reader, f"gemma3.{key}", default)
    assert get("rope.scaling.type") is None, "scaled ropes (4B and above) are not read here"
    layers, head_dim = int(get("block_count")), int(get("attention.key_length"))
    full, local = float(get("rope.freq_base")), float(get("rope.freq_base_swa", LOCAL_ROPE_BASE))
    return Gemma3TextConfig(
        vocab_size=len(metadata(reader, "tokenizer.ggml.tokens")),
        hidden_size=int(get("embedding_length")),
        intermediate_size=int(get("feed_forward_length")),
        num_hidden_layers=layers,
        num_attention_heads=int(get("attention.head_count")),
        num_key_value_heads=int(get("attention.head_count_kv")),
        head_dim=head_dim,
        query_pre_attn_scalar=head_dim,
        rms_norm_eps=float(get("attention.layer_norm_rms_epsilon")),
        max_position_embeddings=int(get("context_length")),
        sliding_window=int(get("attention.sliding_window")),
        layer_types=["sliding_attention" if (i + 1) % PATTERN else "full_attention" for i in range(layers)],
        rope_parameters={
            "full_attention": dict(rope_type="default", rope_theta=full),
            "sliding_attention": dict(rope_type="default", rope_theta=local),
        },
        attn_implementation="eager",
    )


def load_model(reader):
    """A float32 model with the file's weights, dequantized."""
    model = Gemma3ForCausalLM(config_of(reader))
    state = {}
    for t in reader.tensors:
        w = gguf.quants.dequantize(t.data, t.tensor_type).astype("float32")
        w = w.reshape([int(d) for d in reversed(t.shape)])
        part = t.name.removesuffix(".weight").split(".")
        name = TOP_TENSORS[part[0]] if part[0] != "blk" else f"model.layers.{part[1]}.{LAYER_TENSORS[part[2]]}"
        # The file has the factor 1 + w of a norm, transformers keeps w.
        w = w - 1 if "norm" in part[-1] else w
        state[name + ".weight"] = torch.from_numpy(w.copy())
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    return model.float().eval()


def check_vocabulary(reader, tokenizer):
    """Asserts that a tokenizer.json has the vocabulary of the file."""
    tokens, types = (metadata(reader, f"tokenizer.ggml.{key}") for key in ("tokens", "token_type"))
    for i, (token, kind) in enumerate(zip(tokens, types)):
        # Tokens that the user defined stand in the file as text, not as pieces.
        piece = tokenizer.id_to_token(i)
        assert token == (piece.replace("\u2581", " ") if kind == gguf.TokenType.USER_DEFINED else piece), (i, token)
