"""Times vLLM's build for CPUs on a checkpoint directory, as JSON; see harness/peer.py.

In bfloat16, which is what it computes in on a CPU. It has no way to evaluate tokens without a request, so
decoding is a request's time less that of the same request for one token.
"""
import os
import time

from harness import peer
from harness.tokens import bench_tokens

CONTEXT_MARGIN = 16
# Read when vLLM is imported: GiB for keys and values, and as many threads as OMP_NUM_THREADS says, unbound.
os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind", VLLM_ENABLE_V1_MULTIPROCESSING="0")


class Peer:
    """A loaded model."""

    def __init__(self, path, context):
        import vllm

        self.params = vllm.SamplingParams
        self.llm = vllm.LLM(
            model=path, dtype="bfloat16", max_model_len=context + CONTEXT_MARGIN, max_num_seqs=1,
            enable_prefix_caching=False, disable_log_stats=True)
        vocab = self.llm.llm_engine.model_config.get_vocab_size()
        self.tokens = bench_tokens(context, vocab)

    def ask(self, prompt, tokens):
        """Seconds of one request."""
        params = self.params(max_tokens=tokens, ignore_eos=True, temperature=0.0, detokenize=False)
        start = time.perf_counter()
        self.llm.generate([{"prompt_token_ids": self.tokens[:prompt]}], params, use_tqdm=False)
        return time.perf_counter() - start

    def prefill(self, count):
        """Seconds to evaluate a prompt, and to draw one token."""
        return self.ask(count, 1)

    def decode(self, count, depth):
        """Seconds for `count` tokens after `depth` others."""
        prompt = max(depth, 1)
        return self.ask(prompt, count + 1) - self.ask(prompt, 1)


if __name__ == "__main__":
    peer.main("vLLM", Peer)
