"""Times llama.cpp on a GGUF file through llama-cpp-python's low-level API, as JSON; see harness/peer.py.

Everything but the number of threads is llama.cpp's default. A prompt is given in batches of at
most 2048 tokens.
"""
import time

import llama_cpp as lc

from harness import peer
from harness.tokens import bench_tokens

SILENT = lc.llama_log_callback(lambda level, text, data: None)
CONTEXT_MARGIN = 16
BATCH_TOKENS_MAX = 2048


class Peer:
    """A loaded model with one context."""

    def __init__(self, path, context, threads):
        lc.llama_log_set(SILENT, None)
        lc.llama_backend_init()
        self.model = lc.llama_model_load_from_file(path.encode(), lc.llama_model_default_params())
        params = lc.llama_context_default_params()
        params.n_ctx = context + CONTEXT_MARGIN
        params.n_batch = BATCH_TOKENS_MAX
        params.n_threads = params.n_threads_batch = threads
        self.context = lc.llama_init_from_model(self.model, params)
        self.vocab_size = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(self.model))
        self.tokens = bench_tokens(context, self.vocab_size)

    def clear(self):
        """Forgets every token."""
        lc.llama_memory_clear(lc.llama_get_memory(self.context), True)

    def step(self, tokens):
        """Evaluates tokens after those before and returns the logits after the last."""
        for start in range(0, len(tokens), BATCH_TOKENS_MAX):
            chunk = tokens[start : start + BATCH_TOKENS_MAX]
            array = (lc.llama_token * len(chunk))(*chunk)
            if lc.llama_decode(self.context, lc.llama_batch_get_one(array, len(chunk))):
                raise SystemExit("llama_decode failed")
        return lc.llama_get_logits_ith(self.context, -1)

    def prefill(self, count):
        """Seconds to evaluate a prompt."""
        self.clear()
        start = time.perf_counter()
        self.step(self.tokens[:count])
        return time.perf_counter() - start

    def decode(self, count, depth):
        """Seconds to evaluate `count` tokens one at a time after `depth` others."""
        self.clear()
        if depth:
            self.step(self.tokens[:depth])
        start = time.perf_counter()
        for token in self.tokens[depth : depth + count]:
            self.step([token])
        return time.perf_counter() - start


if __name__ == "__main__":
    peer.main(f"llama.cpp of llama-cpp-python {lc.__version__}",
              lambda path, context: Peer(path, context, peer.threads()))
