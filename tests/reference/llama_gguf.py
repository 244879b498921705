"""A llama GGUF file as transformers would have it: model, tokenizer, chat template.

What it is for: the float32 reference of a GGUF file, every tensor dequantized by the `gguf` package. What
it is not for: any other architecture, or SentencePiece vocabularies.
"""
import gguf
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

LAYER_TENSORS = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}
TOP_TENSORS = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
}


def metadata(reader, key, default=None):
    """The value of a metadata key."""
    field = reader.fields.get(key)
    return default if field is None else field.contents()


def permute(rows, heads):
    """Orders the rows of a q or k projection as llama.cpp's converter does: rotation pairs side by side."""
    out, width = rows.shape
    return rows.reshape(heads, 2, out // heads // 2, width).swapaxes(1, 2).reshape(out, width)


def unpermute(rows, heads):
    """The inverse of `permute`: first halves, then second halves, of each head."""
    out, width = rows.shape
    return rows.reshape(heads, out // heads // 2, 2, width).swapaxes(1, 2).reshape(out, width)


def config_of(reader):
    """The transformers configuration that the file's metadata describes."""
    get = lambda key, default=None: metadata(reader, f"llama.{key}", default)
    heads = int(get("attention.head_count"))
    return LlamaConfig(
        vocab_size=len(metadata(reader, "tokenizer.ggml.tokens")),
        hidden_size=int(get("embedding_length")),
        intermediate_size=int(get("feed_forward_length")),
        num_hidden_layers=int(get("block_count")),
        num_attention_heads=heads,
        num_key_value_heads=int(get("attention.head_count_kv", heads)),
        rms_norm_eps=float(get("attention.layer_norm_rms_epsilon")),
        max_position_embeddings=int(get("context_length")),
        tie_word_embeddings=all(t.name != "output.weight" for t in reader.tensors),
        rope_parameters=dict(rope_type="default", rope_theta=float(get("rope.freq_base", 10000.0))),
        attn_implementation="eager",
    )


def load_model(reader):
    """A float32 model with the file's weights, dequantized."""
    config = config_of(reader)
    model = LlamaForCausalLM(config)
    state = {}
    for t in reader.tensors:
        w = gguf.quants.dequantize(t.data, t.tensor_type).astype("float32")
        w = w.reshape([int(d) for d in reversed(t.shape)])
        part = t.name.removesuffix(".weight").split(".")
        if part[0] == "blk":
            heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(part[2])
            w = unpermute(w, heads) if heads else w
            name = f"model.layers.{part[1]}.{LAYER_TENSORS[part[2]]}"
        else:
            name = TOP_TENSORS[part[0]]
        state[name + ".weight"] = torch.from_numpy(w.copy())
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    return model.float().eval()


def load_tokenizer(reader):
    """The byte-level BPE of the file; numerals are split one by one where it names SmolLM's pre-tokenizer."""
    get = lambda key, default=None: metadata(reader, f"tokenizer.ggml.{key}", default)
    assert get("model") == "gpt2", "only byte-level BPE is read here"
    tokens, types = get("tokens"), get("token_type")
    merges = [tuple(m.split(" ", 1)) for m in get("merges")]
    bpe = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    split = [pre_tokenizers.Digits(individual_digits=True)] if get("pre") == "smollm" else []
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([*split, byte_level])
    bpe.decoder = decoders.ByteLevel()
    special = [t for t, kind in zip(tokens, types) if kind == gguf.TokenType.CONTROL]
    bpe.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=tokens[int(get("bos_token_id"))],
        eos_token=tokens[int(get("eos_token_id"))],
        chat_template=metadata(reader, "tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
    )
