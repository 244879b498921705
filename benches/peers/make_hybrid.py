"""Makes a hybrid of some 200 M random weights to measure with: gated-delta and full-attention layers, sparse MoE.

Writes into FOLDER what sconce and its peers read: a Qwen3.5-MoE checkpoint as on the hub (bf16, with SmolLM2's
tokenizer), GGUF files of the same weights, and beside each a golden.json with what transformers answers in
float32 for the bf16 weights. The golden files are for `tests/reference/gguf_check_llama_cpp.py`, which tells
whether llama.cpp computes the same; it must for F32, and is some quantization away for the others.

    python benches/peers/make_hybrid.py FOLDER [--types Q4_0,Q8_0]

Needs the packages of tests/reference/requirements.txt, and SmolLM2 in .models/ for its vocabulary.
"""
import argparse
import hashlib
import json
import sys
from pathlib import Path

import gguf
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/reference"))

import golden  # noqa: E402
import llama_gguf  # noqa: E402
from fixtures import common, gguf_layouts, hybrid, layouts  # noqa: E402

VOCABULARY = ROOT / ".models/SmolLM2-135M-Instruct.Q4_1.gguf"
ARCH, SEED = "qwen35moe", 230

# Qwen3.5-35B-A3B made about four times narrower, with 32 experts instead of 256 and 12 layers.
CONFIG = dict(
    vocab_size=49152, hidden_size=512, num_hidden_layers=12, num_attention_heads=4, num_key_value_heads=2, head_dim=256,
    linear_num_key_heads=4, linear_num_value_heads=8, linear_key_head_dim=128, linear_value_head_dim=128,
    num_experts=32, num_experts_per_tok=4, moe_intermediate_size=256, shared_expert_intermediate_size=256,
    max_position_embeddings=32768, bos_token_id=1, eos_token_id=2,
    rope_parameters={**hybrid.MROPE, "mrope_section": [11, 11, 10]},
)
LAYOUT = layouts.Layout(nested=True, trunk="model.language_model.")

PROMPTS = (
    "The harbour master reported that",
    "def fib(n: int) -> int:\n    if n < 2:\n        return n\n",
    "\u6771\u4eac\u306f\u65e5\u672c\u306e\u9996\u90fd\u3067\u3059\u3002 \U0001f468\u200d\U0001f469\u200d\U0001f467 cafe\u0301 <|im_end|>",
    # Longer than a chunk of the chunked delta rule.
    "One, two, three, four, five, six, seven, eight, nine, ten. " * 10,
)
STEPS = 32


def write_checkpoint(folder, model, state, variant, tokenizer):
    """The Hugging Face directory."""
    config = layouts.config_dict(model.config, hybrid.QWEN3_5_MOE, variant)
    common.write_folder(folder, layouts.rename(state, LAYOUT), config, LAYOUT)
    ids = {"bos_token_id": model.config.bos_token_id, "eos_token_id": model.config.eos_token_id}
    (folder / "generation_config.json").write_text(json.dumps(ids) + "\n")
    tokenizer.save_pretrained(folder)


def kind_of(name, shape, chosen):
    """The type of a tensor: vectors, routers and convolutions stay F32, and a 4-bit file has 8-bit ends."""
    if len(shape) == 1 or "ffn_gate_inp" in name or "conv1d" in name:
        return gguf.GGMLQuantizationType.F32
    if chosen == gguf.GGMLQuantizationType.Q4_0 and name in ("token_embd.weight", "output.weight"):
        return gguf.GGMLQuantizationType.Q8_0
    return chosen


def copy_vocabulary(writer, reader):
    """The tokenizer keys of another GGUF file."""
    for key, value in reader.fields.items():
        if key.startswith("tokenizer."):
            sub_type = value.types[-1] if value.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, value.contents(), value.types[0], sub_type)


def write_gguf(path, model, state, chosen, vocabulary):
    """One GGUF file of the weights, as llama.cpp's converter would arrange them."""
    writer = gguf.GGUFWriter(path, ARCH)
    gguf_layouts.write_metadata(writer, ARCH, model.config)
    copy_vocabulary(writer, vocabulary)
    state = {name: tensor.float() for name, tensor in state.items()}
    for name, tensor in gguf_layouts.rearrange(state, ARCH, model.config).items():
        values = gguf_layouts.stored(name, tensor.contiguous().numpy(), ARCH)
        kind = kind_of(name, values.shape, chosen)
        writer.add_tensor(name, np.ascontiguousarray(gguf.quants.quantize(values, kind)), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def answers(model, tokenizer):
    """What transformers goes on with."""
    entries = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        entries.append(golden.prompt_entry(ids, golden.greedy(model, ids, STEPS)))
    return {"prompts": entries}


def describe(path):
    """One line about a file: size and digest."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    print(f"{path}: {path.stat().st_size} bytes, sha256 {digest}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--types", default="Q4_0,Q8_0", help="types of the GGUF files, such as F32,Q8_0")
    args = parser.parse_args()
    variant = common.Variant(CONFIG, layout=LAYOUT)
    model = common.build(hybrid.QWEN3_5_MOE, variant, SEED)
    state = common.stored_state(model, hybrid.QWEN3_5_MOE, variant.dtype)
    common.set_weights(model, state)
    print(f"{sum(t.numel() for t in state.values()) / 1e6:.1f} M parameters", flush=True)
    reader = gguf.GGUFReader(VOCABULARY)
    tokenizer = llama_gguf.load_tokenizer(reader)
    write_checkpoint(args.folder, model, state, variant, tokenizer)
    describe(args.folder / "model.safetensors")
    found = answers(model, tokenizer)
    for name in args.types.split(","):
        path = args.folder / f"hybrid-{name.lower()}.gguf"
        write_gguf(path, model, state, gguf.GGMLQuantizationType[name], reader)
        golden.write_json(path.with_suffix(".golden.json"), found)
        describe(path)


if __name__ == "__main__":
    main()
