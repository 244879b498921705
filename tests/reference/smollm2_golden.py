"""What transformers makes of SmolLM2-135M-Instruct (the published Q4_1 file, dequantized to float32).

Writes models/tests/fixtures/smollm2_golden.json: ten chat prompts with their greedy continuations, their ids
checked against llama.cpp; and smollm2_page.json: a page of text with the most likely next tokens at every position.

    python tests/reference/smollm2_golden.py .models/SmolLM2-135M-Instruct.Q4_1.gguf PYTHON_WITH_LLAMA_CPP
"""
import sys
from pathlib import Path

import gguf
import torch

import golden
import llama_cpp_tokens
import llama_gguf

OUT = Path(__file__).resolve().parents[2] / "models/tests/fixtures"
STEPS, PAGE_TOKENS = 32, 512
# Below this the references' own rounding could choose the other token.
MARGIN = 0.01

# The page that `sconce bench accuracy` reads, so that its figures can be checked against this reference.
PAGE = Path(__file__).resolve().parents[2] / "server/src/cli/bench/page.txt"

REPORT = """Minutes of the harbour council, held in the old customs house on the evening of the ninth.
The harbour master reported that dredging of the inner basin had gone on through the winter without
accident and that the depth at the fish quay now stood at four metres at low water. Two members asked
whether the spoil could be used to mend the sea wall at the northern end, where the storm of January had
opened a gap of some six metres. The engineer answered that the material was too fine, but that a mixture
with quarry stone had been tried elsewhere and had held for eleven years. The council agreed to ask for
an estimate before the summer. The second matter was the price of moorings. Owners of small boats had
written a letter, signed by forty-one persons, which complained that the charge had risen by a third in
two years while the lamps on the eastern pier were dark more often than lit. The treasurer showed the
accounts: the charge paid for the watchman, the water, the removal of ice and the repair of the slipway,
and left nothing over. She proposed to keep the charge for boats under six metres as it was and to raise
that of visiting yachts. After some discussion this was carried by seven votes to two. The third matter
was the request of the school to keep three rowing boats in the lee of the breakwater, so that children
of the upper classes might learn to handle an oar. It was granted with pleasure and without a vote. The
lamps will be looked at on Monday."""

PROMPTS = {
    "factual": [{"role": "user", "content": "What is the capital of France, and which river runs through it?"}],
    "code": [{"role": "user", "content": "Write a Python function that returns the n-th Fibonacci number. "
                                         "Use a loop:\n\n```python\ndef fib(n: int) -> int:\n```"}],
    "turns": [
        {"role": "system", "content": "You are a patient teacher. Answer in at most three short sentences."},
        {"role": "user", "content": "Why is the sky blue?"},
        {"role": "assistant", "content": "Air scatters short waves of light more than long ones. Blue light is "
                                         "short, so it reaches us from every part of the sky."},
        {"role": "user", "content": "And why is the sunset red?"},
    ],
    "unicode": [{"role": "user", "content": "Übersetze ins Englische: „Das Café öffnet um 7:30 Uhr – schöne Grüße aus "
                                            "München!“ 你好，世界 🌍 ٢٠٢٦"}],
    "long": [{"role": "user", "content": REPORT + "\n\nWhat did the council decide about the price of moorings?"}],
    "short": [{"role": "user", "content": "Hi"}],
    "rust": [{"role": "user", "content": "What does this print?\n\n```rust\nfn main() {\n\tlet v: Vec<u64> = (1..=4).map(|i| i * i)"
                                         ".collect();\n\tprintln!(\"{v:?}\");\n}\n```"}],
    "emoji": [{"role": "user", "content": "Name these: \U0001f34e\U0001f34c. A family: \U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466, "
                                          "a hand: \U0001f44b\U0001f3fd, a flag: \U0001f1eb\U0001f1f7."}],
    "marks": [{"role": "user", "content": "What do these words mean? Cafe\u0301, cre\u0300me bru\u0302le\u0301e; \u0928\u092e\u0938\u094d\u0924\u0947; "
                                          "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35; \u6771\u4eac\u306f\u9996\u90fd\u3067\u3059; z\u0351\u036ba\u0309\u0300l\u0335"}],
    "special": [{"role": "user", "content": "The markers are <|im_start|>, <|im_end|> and <|endoftext|>;    <|im_start|> comes "
                                            "first.\n\n\n\tWhich one comes last? 1 22 333 4444"}],
}


def write_prompts(model, tokenizer, theirs, path):
    """The chat prompts, decoded greedily to 32 tokens or to the end token; `theirs` gives llama.cpp's ids of texts."""
    prompts = [tokenizer.apply_chat_template(m, tokenize=False, add_generation_prompt=True) for m in PROMPTS.values()]
    entries = []
    for (name, messages), prompt, second in zip(PROMPTS.items(), prompts, theirs(prompts), strict=True):
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        assert ids == second["parsed"], f"{name}: llama.cpp has {second['parsed']}, not {ids}"
        decoded = golden.greedy(model, ids, STEPS, stop_ids=(tokenizer.eos_token_id,))
        assert decoded.margin >= MARGIN, f"{name}: margin {decoded.margin}"
        entry = {"name": name, "messages": messages, "prompt": prompt}
        entry |= golden.prompt_entry(ids, decoded)
        entry["text"] = tokenizer.decode(decoded.tokens, skip_special_tokens=True)
        entries.append(entry)
        counts = f"{len(ids)} + {len(decoded.tokens)} tokens, margin {decoded.margin:.4f}"
        print(f"{name}: {counts}: {entry['text']!r}", flush=True)
    golden.write_json(path, {"prompts": entries})


@torch.no_grad()
def write_page(model, tokenizer, path):
    """Top log-probabilities of the token after each token of the page."""
    ids = tokenizer(PAGE.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
    ids = ids[:PAGE_TOKENS]
    logprobs = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
    best = torch.topk(logprobs, golden.TOP)
    top = [[[int(i), round(float(v), 4)] for i, v in zip(*row)] for row in zip(best.indices, best.values)]
    # `next[p]` is the log-probability that the model gives to the page's own token after position p.
    following = [round(float(logprobs[p, t]), 4) for p, t in enumerate(ids[1:])]
    golden.write_json(path, {"input_ids": ids, "next": following, "top5": top})
    print(f"page: {len(ids)} tokens, perplexity {torch.tensor(following).neg().mean().exp():.3f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    file = gguf.GGUFReader(sys.argv[1])
    reference, words = llama_gguf.load_model(file), llama_gguf.load_tokenizer(file)
    theirs = lambda texts: llama_cpp_tokens.tokenize(sys.argv[2], sys.argv[1], texts)
    write_prompts(reference, words, theirs, OUT / "smollm2_golden.json")
    write_page(reference, words, OUT / "smollm2_page.json")
