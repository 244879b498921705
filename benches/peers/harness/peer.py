"""The command line of a peer that runs in a Python of its own: times the cases it is given, and prints JSON.

    python SCRIPT FILE PROMPTS GENERATE DEPTHS    such as model.gguf 512,2048 128 0
"""
import json
import os
import sys

WARM_UP_TOKENS = 16


def threads():
    """How many threads to compute with: RAYON_NUM_THREADS, as for candle, which has no other way."""
    return int(os.environ.get("RAYON_NUM_THREADS", os.cpu_count()))


def counts(text):
    """Numbers separated by commas, but for 0."""
    return [int(n) for n in text.split(",")]


def main(version, load):
    """Measures `load(path, context)`: an object with `prefill(n)` and `decode(n, depth)`, which return seconds."""
    # What libraries print is not to be found among the results.
    results_to = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    path, prompts, generate, depths = sys.argv[1:]
    prompts, generate = [n for n in counts(prompts) if n], int(generate)
    depths = counts(depths) if generate else []
    peer = load(path, max([*prompts, *(depth + generate for depth in depths), 2 * WARM_UP_TOKENS]))
    peer.prefill(WARM_UP_TOKENS)
    peer.decode(WARM_UP_TOKENS, WARM_UP_TOKENS)
    results = [result("prefill", n, 0, peer.prefill(n)) for n in prompts]
    results += [result("decode", generate, depth, peer.decode(generate, depth)) for depth in depths]
    print(json.dumps(dict(version=version, results=results)), file=results_to, flush=True)


def result(work, tokens, depth, seconds):
    """A case as `sconce bench engine` reports it."""
    return dict(work=work, tokens=tokens, depth=depth, tokens_per_second_median=tokens / seconds)
