"""Greedy decoding by transformers, written down as a golden file.

What it is for: one way of running a reference model (float32, eager attention, token by token with a
key/value cache) and one JSON shape for what came out. What it is not for: making or loading models.
"""
import json

import torch

TOP = 5


class Decoded:
    """What greedy decoding gave: ids, top log-probabilities of each step, the smallest argmax margin."""

    def __init__(self, tokens, top, margin):
        self.tokens = tokens
        self.top = top
        self.margin = margin


@torch.no_grad()
def greedy(model, input_ids, steps, stop_ids=(), least_margin=0.0):
    """Decodes `steps` tokens after `input_ids`, or fewer when one of `stop_ids` (kept) comes first, or when a
    margin falls below `least_margin`.

    The prompt goes through in one pass and every later token alone, so a rope whose base depends on the
    length of the sequence sees at each position the length that ends there.
    """
    cache, feed = None, torch.tensor([input_ids])
    tokens, top, margin = [], [], float("inf")
    for _ in range(steps):
        out = model(feed, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        logits = out.logits[0, -1].double()
        best = torch.topk(torch.log_softmax(logits, -1), TOP)
        margin = min(margin, float(best.values[0] - best.values[1]))
        tokens.append(int(best.indices[0]))
        top.append([[int(i), round(float(v), 6)] for i, v in zip(best.indices, best.values)])
        if tokens[-1] in stop_ids or margin < least_margin:
            break
        feed = torch.tensor([tokens[-1:]])
    return Decoded(tokens, top, margin)


def prompt_entry(input_ids, decoded):
    """The entry of one prompt in a `golden.json`."""
    return {
        "input_ids": list(input_ids),
        "greedy_tokens": decoded.tokens,
        "top5": decoded.top,
        "min_margin": round(decoded.margin, 6),
    }


def write_json(path, value):
    """Writes `value` with one prompt a line: small, and still a readable diff."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    text = text.replace('{"input_ids"', '\n{"input_ids"').replace('{"name"', '\n{"name"')
    path.write_text(text + "\n", encoding="utf-8")
