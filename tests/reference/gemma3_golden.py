"""What transformers makes of Gemma 3 270M (the published Q4_K_M file, dequantized to float32).

Writes models/tests/fixtures/gemma3_golden.json: ten prompts with their greedy continuations. The ids come
from the real tokenizer.json and are those of llama.cpp on the file, which is checked.

    python tests/reference/gemma3_golden.py PYTHON_WITH_LLAMA_CPP
"""
import json
import sys
from pathlib import Path

import gguf
import jinja2
import torch
from tokenizers import Tokenizer

import gemma3_gguf
import golden
import llama_cpp_tokens

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "models/tests/fixtures/gemma3_golden.json"
FILE = ROOT / ".models/gemma-3-270m-q4_k_m.gguf"
TOKENIZER = ROOT / ".models/tokenizers/gemma3"
STEPS = 32
# Below this the references' own rounding could choose the other token.
MARGIN = 0.01

PAGE = (ROOT / "server/src/cli/bench/page.txt").read_text(encoding="utf-8")

CHAT = [
    {"role": "system", "content": "Answer in one short sentence."},
    {"role": "user", "content": "Which planet is the largest?"},
    {"role": "assistant", "content": "Jupiter is the largest planet of the solar system."},
    {"role": "user", "content": "And which one is the smallest?"},
]

# The file is the base model's, so these are texts to go on with. All but the last two begin with BOS alone.
PROMPTS = {
    "short": "The",
    "prose": "The lighthouse keeper climbed the stairs every evening at six. On the night of the storm,",
    "python": "def is_prime(n: int) -> bool:\n    \"\"\"Tells whether n is a prime number.\"\"\"\n    if n < 2:\n        return False\n",
    "rust": "use std::collections::HashMap;\n\n/// Counts how often each word occurs.\nfn count_words(text: &str) -> HashMap<&str, usize> {\n\tlet mut counts =",
    "cjk": "\u4eca\u5929\u5929\u6c14\u5f88\u597d\uff0c\u6211\u4eec\u51b3\u5b9a\u53bb\u516c\u56ed\u6563\u6b65\u3002"
           "\u6771\u4eac\u306f\u65e5\u672c\u306e\u9996\u90fd\u3067\u3059\u3002\uc11c\uc6b8\uc740 \ub300\ud55c\ubbfc\uad6d\uc758",
    "emoji": "Fruit: \U0001f34e\U0001f34c\U0001f347. Family: \U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466. "
             "Hands: \U0001f44b\U0001f3fd\U0001f44d\U0001f3ff. Flags: \U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7. Animals: \U0001f436\U0001f431",
    "marks": "Cafe\u0301 and cre\u0300me bru\u0302le\u0301e; \u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e; "
             "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01; \u0645\u064e\u0631\u0652\u062d\u064e\u0628\u064b\u0627; z\u0351\u036b\u0343a\u0309\u0300l\u0335g\u0321o\u0336. "
             "In English, these words mean:",
    "markup": "<h1>Prices</h1>\n<table>\n<tr><th>Fruit</th><th>Price</th></tr>\n<tr><td>Apple</td><td>1.20</td></tr>\n"
              "\n\n\n\t\t<!-- 16 spaces:                 -->\n<tr>",
    "window": PAGE + "\nThe title of this text is",
    "chat": CHAT,
}


def render(messages):
    """The text that the chat template of the tokenizer's own configuration makes, BOS included."""
    config = json.loads((TOKENIZER / "tokenizer_config.json").read_text(encoding="utf-8"))
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(config["chat_template"])
    return template.render(messages=messages, bos_token=config["bos_token"], add_generation_prompt=True)


def main(llama_cpp_python):
    torch.set_num_threads(1)
    reader = gguf.GGUFReader(FILE)
    tokenizer = Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))
    gemma3_gguf.check_vocabulary(reader, tokenizer)
    texts = {name: "<bos>" + p if isinstance(p, str) else render(p) for name, p in PROMPTS.items()}
    seconds = llama_cpp_tokens.tokenize(llama_cpp_python, FILE, list(texts.values()))
    model = gemma3_gguf.load_model(reader)
    entries = []
    for (name, text), second in zip(texts.items(), seconds, strict=True):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == second["parsed"], f"{name}: llama.cpp has {second['parsed']}, not {ids}"
        decoded = golden.greedy(model, ids, STEPS)
        continuation = tokenizer.decode(decoded.tokens, skip_special_tokens=False)
        counts = f"{len(ids)} + {len(decoded.tokens)} tokens, margin {decoded.margin:.4f}"
        print(f"{name}: {counts}: {continuation!r}", flush=True)
        assert decoded.margin >= MARGIN, f"{name}: margin {decoded.margin}"
        entries.append({"name": name, "prompt": text, **golden.prompt_entry(ids, decoded), "text": continuation})
    window = model.config.sliding_window
    assert max(len(entry["input_ids"]) for entry in entries) > 1.5 * window, "no prompt passes the window"
    golden.write_json(OUT, {"prompts": entries})


if __name__ == "__main__":
    main(*sys.argv[1:])
