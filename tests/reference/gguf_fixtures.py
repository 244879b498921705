"""Tiny llama GGUF files, one for each block type that can be quantized here, and their goldens.

Writes models/tests/fixtures/gguf_llama_<type>.gguf and gguf_llama_<type>.golden.json. The reference is
transformers on the dequantized weights, so the comparison tests the reading of blocks, names, metadata and
the order of q and k rows, and not the loss by quantization.

    python tests/reference/gguf_fixtures.py
"""
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type

import golden
import llama_gguf

OUT = Path(__file__).resolve().parents[2] / "models/tests/fixtures"
STEPS, MARGIN, MAX_BYTES = 16, 0.05, 150_000
LAYERS, HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, CONTEXT = 2, 32, 64, 2, 1, 128
TIED = {Type.F32}
TYPES = (Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1)


def vocabulary():
    """The 256 byte tokens of GPT-2, one merge, and two control tokens: (tokens, types, merges)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shifted = iter(range(256, 512))
    letters = [chr(b) if b in printable else chr(next(shifted)) for b in range(256)]
    tokens = ["<|start|>", "<|end|>", *letters, "th"]
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    return tokens, [control, control, *[normal] * 257], ["t h"]


def tensors(vocab_size, tied, seed):
    """Names and float32 values, q and k rows already in the converter's order."""
    rng = np.random.default_rng(seed)
    matrix = lambda out, width, gain: (rng.standard_normal((out, width)) * gain / width**0.5).astype(np.float32)
    norm = lambda: (1 + 0.2 * rng.standard_normal(HIDDEN)).astype(np.float32)
    head_dim = HIDDEN // HEADS
    yield "token_embd.weight", matrix(vocab_size, HIDDEN, 3.0 if tied else 5.5)
    for i in range(LAYERS):
        name = f"blk.{i}."
        yield name + "attn_norm.weight", norm()
        yield name + "attn_q.weight", llama_gguf.permute(matrix(HIDDEN, HIDDEN, 1.3), HEADS)
        yield name + "attn_k.weight", llama_gguf.permute(matrix(KV_HEADS * head_dim, HIDDEN, 1.3), KV_HEADS)
        yield name + "attn_v.weight", matrix(KV_HEADS * head_dim, HIDDEN, 1.3)
        yield name + "attn_output.weight", matrix(HIDDEN, HIDDEN, 1.3)
        yield name + "ffn_norm.weight", norm()
        yield name + "ffn_gate.weight", matrix(INTERMEDIATE, HIDDEN, 1.3)
        yield name + "ffn_up.weight", matrix(INTERMEDIATE, HIDDEN, 1.3)
        yield name + "ffn_down.weight", matrix(HIDDEN, INTERMEDIATE, 1.3)
    yield "output_norm.weight", norm()
    if not tied:
        yield "output.weight", matrix(vocab_size, HIDDEN, 2.0)


def write_file(path, kind, seed):
    """Writes one GGUF file with random weights of block type `kind`; vectors stay F32."""
    w = gguf.GGUFWriter(path, "llama")
    tokens, types, merges = vocabulary()
    w.add_context_length(CONTEXT)
    w.add_embedding_length(HIDDEN)
    w.add_block_count(LAYERS)
    w.add_feed_forward_length(INTERMEDIATE)
    w.add_head_count(HEADS)
    w.add_head_count_kv(KV_HEADS)
    w.add_rope_dimension_count(HIDDEN // HEADS)
    w.add_rope_freq_base(10000.0)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(tokens)
    w.add_token_types(types)
    w.add_token_merges(merges)
    w.add_bos_token_id(0)
    w.add_eos_token_id(1)
    for name, value in tensors(len(tokens), kind in TIED, seed):
        if value.ndim == 1 or kind == Type.F32:
            w.add_tensor(name, value)
        elif kind == Type.F16:
            w.add_tensor(name, value.astype(np.float16))
        else:
            w.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def make(kind):
    """Writes the file and golden of one block type, with the first seed that gives clear margins."""
    name = f"gguf_llama_{kind.name.lower()}"
    path = OUT / f"{name}.gguf"
    for seed in range(300):
        write_file(path, kind, seed)
        model = llama_gguf.load_model(gguf.GGUFReader(path))
        rng = np.random.default_rng(1000 + seed)
        prompts = [rng.integers(2, 258, n).tolist() for n in (1, 7, 40)]
        decoded = [golden.greedy(model, ids, STEPS) for ids in prompts]
        if all(d.margin >= MARGIN and len(set(d.tokens)) >= 4 for d in decoded):
            break
    else:
        raise SystemExit(f"{name}: no seed gives clear margins")
    entries = [golden.prompt_entry(*p) for p in zip(prompts, decoded)]
    golden.write_json(OUT / f"{name}.golden.json", {"prompts": entries})
    assert path.stat().st_size < MAX_BYTES
    print(name, "seed", seed, path.stat().st_size, "bytes, margins", [round(d.margin, 3) for d in decoded], flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for chosen in TYPES:
        make(chosen)
