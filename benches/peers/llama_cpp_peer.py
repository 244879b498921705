"""Times llama.cpp on a GGUF file through llama-cpp-python's low-level API, as JSON.

    python llama_cpp_peer.py FILE PROMPTS GENERATE DEPTHS    such as model.gguf 512,2048 128 0

Cases are those of `sconce bench engine`; the number of threads is that of RAYON_NUM_THREADS, which candle
reads too; everything else is llama.cpp's default.
"""
import ctypes
import json
import os
import random
import sys
import time

import llama_cpp as lc

WARM_UP_TOKENS = 8
SILENT = lc.llama_log_callback(lambda level, text, data: None)


class Peer:
    """A loaded model with one context."""

    def __init__(self, path, context, threads):
        lc.llama_log_set(SILENT, None)
        lc.llama_backend_init()
        self.model = lc.llama_model_load_from_file(path.encode(), lc.llama_model_default_params())
        params = lc.llama_context_default_params()
        params.n_ctx = context + 16
        params.n_batch = 2048
        params.n_threads = params.n_threads_batch = threads
        self.context = lc.llama_init_from_model(self.model, params)
        self.vocab_size = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(self.model))

    def clear(self):
        """Forgets every token."""
        lc.llama_memory_clear(lc.llama_get_memory(self.context), True)

    def step(self, tokens):
        """Evaluates tokens after those before and returns the logits after the last."""
        array = (lc.llama_token * len(tokens))(*tokens)
        if lc.llama_decode(self.context, lc.llama_batch_get_one(array, len(tokens))):
            raise SystemExit("llama_decode failed")
        return lc.llama_get_logits_ith(self.context, -1)

    def prefill(self, tokens):
        """Seconds to evaluate a prompt."""
        self.clear()
        start = time.perf_counter()
        self.step(tokens)
        return time.perf_counter() - start

    def decode(self, tokens, before):
        """Seconds to evaluate `tokens` one at a time after `before`."""
        self.clear()
        if before:
            self.step(before)
        start = time.perf_counter()
        for token in tokens:
            self.step([token])
        return time.perf_counter() - start


def main():
    path, prompts, generate, depths = sys.argv[1:]
    prompts = [int(n) for n in prompts.split(",") if int(n)]
    depths, generate = [int(n) for n in depths.split(",")], int(generate)
    longest = max([*prompts, *(d + generate for d in depths), WARM_UP_TOKENS])
    peer = Peer(path, longest, int(os.environ.get("RAYON_NUM_THREADS", os.cpu_count())))
    tokens = random.Random(1).choices(range(peer.vocab_size), k=longest)
    peer.prefill(tokens[:WARM_UP_TOKENS])
    peer.decode(tokens[:WARM_UP_TOKENS], [])
    results = []
    for n in prompts:
        results.append(dict(work="prefill", tokens=n, depth=0, tokens_per_second_median=n / peer.prefill(tokens[:n])))
    for d in depths if generate else []:
        seconds = peer.decode(tokens[d : d + generate], tokens[:d])
        results.append(dict(work="decode", tokens=generate, depth=d, tokens_per_second_median=generate / seconds))
    print(json.dumps(dict(version=f"llama.cpp of llama-cpp-python {lc.__version__}", results=results)))


if __name__ == "__main__":
    main()
