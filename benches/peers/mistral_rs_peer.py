"""Times mistral.rs on a GGUF file through the package `mistralrs`, as JSON; see harness/peer.py.

It takes text alone, so a prompt is a text of about as many tokens, and samples every token greedily. What it
says of the time of a request is taken, and scaled to the tokens that were asked for.
"""
from pathlib import Path

import mistralrs

from harness import peer

# Common words, each a token of its own in the vocabularies measured here.
WORDS = " time year people way day man thing woman life child world school state family student group country"


class Peer:
    """A loaded model."""

    def __init__(self, path, _context):
        path = Path(path).resolve()
        which = mistralrs.Which.GGUF(quantized_model_id=str(path.parent), quantized_filename=path.name)
        self.runner = mistralrs.Runner(which, max_seqs=1, prefix_cache_n=0)
        self.drawn = 0

    def text(self, count):
        """Some `count` tokens that no prompt before began with."""
        self.drawn += 1
        words = WORDS.split()
        return "".join(f" {words[(i * self.drawn + self.drawn) % len(words)]}" for i in range(count))

    def ask(self, prompt, tokens):
        """What the engine says of one request."""
        request = mistralrs.CompletionRequest(
            prompt=self.text(prompt), model="default", max_tokens=tokens, temperature=0.0, top_k=1, ignore_eos=True)
        return self.runner.send_completion_request(request).usage

    def prefill(self, count):
        """Seconds for `count` tokens of a prompt."""
        usage = self.ask(count, 1)
        return usage.total_prompt_time_sec * count / usage.prompt_tokens

    def decode(self, count, depth):
        """Seconds for `count` tokens of a completion; the first comes with the prompt."""
        usage = self.ask(max(depth, 1), count + 1)
        return usage.total_completion_time_sec * count / (usage.completion_tokens - 1)


if __name__ == "__main__":
    peer.main("mistral.rs", Peer)
