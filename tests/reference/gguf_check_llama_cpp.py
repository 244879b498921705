"""Holds the GGUF fixtures to llama.cpp: it must load them, and agree with transformers on their logits.

What it is for: knowing that a fixture is what llama.cpp means by its architecture, and not only what this
repository does. Needs the llama-cpp-python package (0.3.36), and compares greedy tokens and the five best
log-probabilities of every step. llama.cpp quantizes activations where weights are quantized, so for those
files the difference is only shown.

    python tests/reference/gguf_check_llama_cpp.py [FILE ...]
"""
import json
import sys
from pathlib import Path

import numpy as np
from llama_cpp import Llama

FIXTURES = Path(__file__).resolve().parents[2] / "models/tests/fixtures"
# Both sides compute in f32, in other orders; llama.cpp's GELU is a table of f16.
TOLERANCE, TOLERANCE_GELU = 2e-4, 1e-2
F32 = 0


def logprobs(model, tokens):
    """Natural logarithms of the softmax after each token of a sequence that is read in one pass."""
    model.reset()
    model.eval(tokens)
    logits = np.array(model.scores[: len(tokens)], dtype=np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def check(path):
    """The largest difference of a log-probability, and the share of equal greedy tokens."""
    model = Llama(
        str(path), n_ctx=512, n_batch=512, n_ubatch=512, logits_all=True, verbose=False, n_threads=1,
        type_k=F32, type_v=F32, flash_attn=False,
    )
    worst, equal, steps = 0.0, 0, 0
    for prompt in json.loads(path.with_suffix(".golden.json").read_text())["prompts"]:
        ids, greedy = prompt["input_ids"], prompt["greedy_tokens"]
        found = logprobs(model, ids + greedy)[len(ids) - 1 :]
        for step, (token, top) in enumerate(zip(greedy, prompt["top5"])):
            worst = max(worst, max(abs(found[step][token] - value) for token, value in top))
            equal += int(found[step].argmax() == token)
            steps += 1
    return worst, equal / steps


def main(paths):
    failed = []
    for path in paths or sorted(FIXTURES.glob("gguf_*.gguf")):
        worst, agreement = check(path)
        print(f"{path.stem}: logprobs differ by {worst:.2e}, greedy agreement {agreement:.3f}", flush=True)
        tolerance = TOLERANCE_GELU if "gemma" in path.stem else TOLERANCE
        if path.stem.endswith("_f32") and not (worst <= tolerance and agreement == 1.0):
            failed.append(path.stem)
    if failed:
        raise SystemExit(f"not what llama.cpp computes: {', '.join(failed)}")


if __name__ == "__main__":
    main([Path(path) for path in sys.argv[1:]])
