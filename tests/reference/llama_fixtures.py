"""Tiny llama checkpoints and what transformers makes of them.

Each variant is a Hugging Face directory under models/tests/fixtures/llama_<name>/ that isolates one thing
a loader or a forward pass can get wrong, with a golden.json beside it. Weights are random but seeded; the
seed is the first whose argmax margins are not tiny, so that a correct implementation cannot flip a token.

    python tests/reference/llama_fixtures.py [NAME ...]
"""
import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

import golden

OUT = Path(__file__).resolve().parents[2] / "models/tests/fixtures"
VOCAB, STEPS, MARGIN, MAX_BYTES = 128, 16, 0.05, 150_000
PROMPT_LENGTHS = (1, 7, 40)

BASE = dict(
    vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, rms_norm_eps=1e-5,
    bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
    rope_parameters=dict(rope_type="default", rope_theta=10000.0),
)
# Two heads of 16 give a scaled rope eight frequencies to act on.
WIDE_HEADS = dict(num_attention_heads=2, num_key_value_heads=1)


def rope(kind, **more):
    """Rope parameters in the form transformers 5 writes."""
    return dict(rope_parameters=dict(rope_type=kind, rope_theta=10000.0, **more))


LLAMA3 = rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=64)

# name -> config changes, and how the folder is written:
#   dtype; shard: largest shard; hub: rewrite the config in the flat style of older checkpoints;
#   lengths: prompt lengths.
VARIANTS = {
    "f32": (dict(num_key_value_heads=4), dict(dtype="float32")),
    "bf16": ({}, {}),
    "f16": ({}, dict(dtype="float16")),
    "sharded": ({}, dict(shard="32KB")),
    "tied": (dict(tie_word_embeddings=True, num_hidden_layers=3), {}),
    "untied": (dict(eos_token_id=[2, 5], num_hidden_layers=3, rms_norm_eps=1e-6), {}),
    "gqa": (dict(num_attention_heads=8, num_key_value_heads=1), {}),
    "biases": (dict(attention_bias=True, mlp_bias=True), {}),
    "head_dim": (dict(head_dim=24, num_attention_heads=2, num_key_value_heads=1), {}),
    "llama3": (dict(**WIDE_HEADS, **LLAMA3), {}),
    "llama3_hub": (dict(**WIDE_HEADS, **LLAMA3), dict(hub=True)),
    "linear": (dict(**WIDE_HEADS, **rope("linear", factor=4.0)), {}),
    "linear_hub": (dict(**WIDE_HEADS, **rope("linear", factor=2.5)), dict(hub=True, legacy_type=True)),
    "yarn": (dict(**WIDE_HEADS, **YARN), {}),
    "yarn_mscale_hub": (
        dict(**WIDE_HEADS, **rope("yarn", factor=8.0, original_max_position_embeddings=32, beta_fast=16.0,
                                  beta_slow=2.0, mscale=1.2, mscale_all_dim=0.8)),
        dict(hub=True),
    ),
    # The third prompt starts below the trained length of 24 and is decoded across it.
    "dynamic": (
        dict(**WIDE_HEADS, max_position_embeddings=24, **rope("dynamic", factor=4.0)),
        dict(lengths=(1, 7, 18)),
    ),
    "hub": (dict(rope_parameters=dict(rope_type="default", rope_theta=500000.0)), dict(hub=True)),
}


def draw_weights(model, seed):
    """Fills every parameter from one generator, in the order of their names."""
    g = torch.Generator().manual_seed(seed)
    for name, p in sorted(model.named_parameters()):
        noise = torch.randn(p.shape, generator=g)
        if name.endswith("bias"):
            value = 0.3 * noise
        elif "norm" in name:
            value = 1 + 0.2 * noise
        elif "embed_tokens" in name:
            # A tied table is the head as well: its rows must not overwhelm the softmax.
            value = noise * (0.6 if model.config.tie_word_embeddings else 1.0)
        else:
            value = noise * (2.0 if "lm_head" in name else 1.3) / p.shape[-1] ** 0.5
        p.data.copy_(value)


def to_hub_style(folder, legacy_type):
    """Rewrites config.json with flat `rope_theta`, `rope_scaling` and `torch_dtype`."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    parameters = config.pop("rope_parameters")
    config["rope_theta"] = parameters.pop("rope_theta")
    kind = parameters.pop("rope_type")
    key = "type" if legacy_type else "rope_type"
    config["rope_scaling"] = None if kind == "default" else {key: kind, **parameters}
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config, indent=2) + "\n")


def write_checkpoint(folder, changes, how, seed):
    """Writes the directory of one variant, without its golden file."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    dtype = how.get("dtype", "bfloat16")
    model = LlamaForCausalLM(LlamaConfig(**{**BASE, **changes}))
    draw_weights(model, seed)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=how.get("shard", "1GB"))
    if how.get("hub"):
        to_hub_style(folder, how.get("legacy_type", False))


def load_reference(folder):
    """The model as a reader of the folder sees it, computed in float32 with eager attention."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    stored = {k: v for f in folder.glob("*.safetensors") for k, v in load_file(f).items()}
    for name, p in model.named_parameters():
        key = name if name in stored else "model.embed_tokens.weight"
        assert torch.equal(p.data, stored[key].float()), f"{folder.name}: {name} was not read as stored"
    return model.eval()


def decode_prompts(folder, lengths, seed):
    """Greedy results of seeded prompts of the given lengths; None when a margin is tiny."""
    g = torch.Generator().manual_seed(1000 + seed)
    entries = []
    for length in lengths:
        ids = torch.randint(3, VOCAB, (length,), generator=g).tolist()
        decoded = golden.greedy(load_reference(folder), ids, STEPS)
        if decoded.margin < MARGIN or len(set(decoded.tokens)) < 4:
            return None
        entries.append(golden.prompt_entry(ids, decoded))
    return entries


def make(name):
    """Writes one variant with the first seed that gives clear margins."""
    changes, how = VARIANTS[name]
    folder = OUT / f"llama_{name}"
    for seed in range(200):
        write_checkpoint(folder, changes, how, seed)
        entries = decode_prompts(folder, how.get("lengths", PROMPT_LENGTHS), seed)
        if entries:
            break
    else:
        raise SystemExit(f"{name}: no seed gives clear margins")
    golden.write_json(folder / "golden.json", {"prompts": entries})
    size = sum(f.stat().st_size for f in folder.iterdir())
    assert size < MAX_BYTES, f"{name}: {size} bytes"
    print(f"{name}: seed {seed}, {size} bytes, margins", [e["min_margin"] for e in entries], flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for chosen in sys.argv[1:] or VARIANTS:
        make(chosen)
