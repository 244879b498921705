"""Checks directories of `sconce quantize` with MLX-LM: they load, hold what MLX itself would, and compute.

For each architecture a tiny seeded checkpoint is made with transformers and quantized to every format.
Then, against MLX-LM's own reading of the unquantized checkpoint (its names, stacks, shifted norms):

- every quantized module has the codes, scales and biases of `mlx.core.quantize`, bit for bit;
- every other parameter is equal, bit for bit;
- the same weights in the layout of a multimodal checkpoint, with a tower and further heads to be left
  out, make the same directory but for prefixes;
- the loaded model gives the logits of the unquantized one with dequantized weights; from float32
  sources only, since MLX on a CPU has not all operators in bfloat16.

Needs the packages of requirements.txt, mlx-lm 0.32.2 and mlx[cpu] 0.32.4. Run from the repository's root:

    cargo build -p sconce-server && python tests/reference/mlx_check.py target/debug/sconce
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import mlx.core as mx
import torch
import transformers
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model
from safetensors.torch import save_file

FORMATS = ["int4", "int8", "mxfp4", "mxfp8", "nvfp4"]
PROMPT = [3, 17, 96, 5, 44, 120, 7, 8, 9, 63, 2, 31]
TOLERANCE = 2e-3

COMMON = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 128, "norm_topk_prob": True}
HYBRID = {
    "head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    "shared_expert_intermediate_size": 64,
}
LATENT = {
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 128,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "kv_lora_rank": 64,
    "q_lora_rank": 64,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 16,
    "v_head_dim": 64,
    "num_key_value_heads": 4,
    "first_k_dense_replace": 1,
    "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
    "routed_scaling_factor": 1.8,
}

# Model type, what differs from COMMON, and whether MLX-LM reads experts one by one or stacked.
MODELS = [
    ("llama", {}, "stacked"),
    ("qwen3", {"head_dim": 16, "tie_word_embeddings": True}, "stacked"),
    ("qwen3_moe", {"head_dim": 16, **EXPERTS}, "single"),
    (
        "gemma3_text",
        {
            "head_dim": 16,
            "sliding_window": 8,
            "tie_word_embeddings": True,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
        "stacked",
    ),
    ("glm4_moe_lite", LATENT, "single"),
    ("qwen3_next", {**EXPERTS, **HYBRID}, "single"),
    ("qwen3_5_text", HYBRID, "stacked"),
    ("qwen3_5_moe_text", {**EXPERTS, **HYBRID}, "stacked"),
]


# Model types whose checkpoints are also found as the text part of a multimodal one.
WHOLES = {"gemma3_text": "gemma3", "qwen3_5_text": "qwen3_5", "qwen3_5_moe_text": "qwen3_5_moe"}


def checkpoint(model_type, changes, dtype):
    """Configuration and weights of a seeded model; norms too are random, or shifts would go unseen."""
    torch.manual_seed(3)
    config = transformers.AutoConfig.for_model(model_type, **{**COMMON, **changes}, dtype="float32")
    model = transformers.AutoModelForCausalLM.from_config(config)
    weights = {}
    for name, weight in model.state_dict().items():
        if "norm" in name or name.endswith(("dt_bias", "correction_bias")):
            weight = weight + torch.randn_like(weight) * 0.1
        elif weight.dim() > 1:
            weight = torch.randn_like(weight) * weight.shape[-1] ** -0.5
        weights[name] = weight.to(dtype)
    if config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    return config, weights


def single_experts(weights):
    """The same weights with every expert a tensor of its own."""
    split = {}
    for name, weight in weights.items():
        block, _, leaf = name.rpartition(".experts.")
        if not block:
            split[name] = weight
            continue
        for index, expert in enumerate(weight):
            parts = {leaf: expert}
            if leaf == "gate_up_proj":
                parts = dict(zip(("gate_proj", "up_proj"), expert.chunk(2)))
            for part, tensor in parts.items():
                split[f"{block}.experts.{index}.{part}.weight"] = tensor
    return split


def nested(config, weights):
    """The same model as the text part of a multimodal one."""
    text = config.to_dict()
    whole = {
        "model_type": WHOLES[config.model_type],
        "text_config": text,
        "vision_config": {"hidden_size": 8},
        "vocab_size": text["vocab_size"],
        "tie_word_embeddings": text["tie_word_embeddings"],
    }
    renamed = {name.replace("model.", "model.language_model.", 1): weight for name, weight in weights.items()}
    renamed["model.visual.patch_embed.proj.weight"] = torch.ones(8, 3, 2, 2)
    renamed["mtp.fc.weight"] = torch.ones(8, 8)
    return whole, renamed


def save(folder, config, weights):
    folder.mkdir(parents=True)
    config = config if isinstance(config, dict) else config.to_dict()
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    weights = {name: weight.contiguous().clone() for name, weight in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def raw(array):
    return bytes(memoryview(mx.view(array, {4: mx.uint32, 2: mx.uint16, 1: mx.uint8}[array.itemsize])))


def same(found, expected):
    return found.dtype == expected.dtype and found.shape == expected.shape and raw(found) == raw(expected)


def check(folder, source, computes):
    """Compares a quantized directory with MLX-LM's reading of its source: error, bits of a weight, packed weights."""
    model, config = load_model(folder)
    plain, _ = load_model(source, model_config=spelled_for_mlx(config))
    found, expected = dict(tree_flatten(model.parameters())), dict(tree_flatten(plain.parameters()))
    quantization = config["quantization"]
    defaults = {key: quantization[key] for key in ("group_size", "bits", "mode")}
    dequantized, packed = {}, 0
    for name, weight in expected.items():
        module = name.removesuffix(".weight")
        if f"{module}.scales" not in found:
            assert same(found.pop(name), weight), f"{name} changed"
            dequantized[name] = weight
            continue
        options = quantization.get(module, defaults)
        parts = mx.quantize(weight, **options)
        keys = [f"{module}.{part}" for part in ("weight", "scales", "biases")][: len(parts)]
        for key, part in zip(keys, parts):
            assert same(found.pop(key), part), f"{key} is not what mlx makes of it ({options})"
        dequantized[name] = mx.dequantize(*parts, **options).astype(weight.dtype)
        packed += weight.size
    assert not found, f"left over: {list(found)}"
    plain.load_weights(list(dequantized.items()))
    tokens = mx.array([PROMPT])
    error = mx.abs(model(tokens) - plain(tokens)).max().item() if computes else 0.0
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return error, 8 * size / sum(weight.size for weight in expected.values()), packed


def check_nested(folder, flat):
    """Compares a directory made of a nested layout with the one of the flat layout."""
    (model, _), (expected, _) = load_model(folder), load_model(flat)
    parameters = [
        {name.removeprefix("language_model."): weight for name, weight in tree_flatten(it.parameters())}
        for it in (model, expected)
    ]
    assert parameters[0].keys() == parameters[1].keys()
    assert all(same(weight, parameters[1][name]) for name, weight in parameters[0].items())


def spelled_for_mlx(config):
    """The keys under which MLX-LM finds what newer configurations say elsewhere."""
    return {key: value for key, value in config.items() if not key.startswith("quantization")}


def main(sconce):
    mx.set_default_device(mx.cpu)
    with tempfile.TemporaryDirectory() as root:
        for model_type, changes, layout in MODELS:
            for dtype in (torch.float32, torch.bfloat16):
                name = f"{model_type}_{str(dtype).removeprefix('torch.')}"
                config, weights = checkpoint(model_type, changes, dtype)
                sources = {"stacked": weights, "single": single_experts(weights)}
                for kind, tensors in sources.items():
                    save(Path(root, name, kind), config, tensors)
                if model_type in WHOLES:
                    save(Path(root, name, "nested"), *nested(config, weights))
                for format in FORMATS:
                    kinds = [*sources, *(["nested"] if model_type in WHOLES else [])]
                    outputs = {kind: Path(root, name, f"{kind}-{format}") for kind in kinds}
                    for kind, output in outputs.items():
                        command = [sconce, "quantize", Path(root, name, kind), output, "--format", format]
                        done = subprocess.run(command, capture_output=True, text=True)
                        assert done.returncode == 0, done.stderr
                    files = [(outputs[kind] / "model.safetensors").read_bytes() for kind in sources]
                    assert files[0] == files[1], "the layout of experts in the source shows"
                    if "nested" in outputs:
                        check_nested(outputs["nested"], outputs["stacked"])
                    computes = dtype == torch.float32
                    error, bits, packed = check(outputs[layout], Path(root, name, layout), computes)
                    logits = f", logits within {error:.1e}" if computes else ""
                    print(f"{name:28} {format:6} {bits:6.2f} bits a weight{logits}", flush=True)
                    assert packed > 0 and error < TOLERANCE, error


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
