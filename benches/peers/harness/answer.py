"""What a client saw of one completion."""
from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """Times are of `time.perf_counter`."""

    began: float
    first: float
    ended: float
    tokens: int

    @property
    def first_token_seconds(self):
        """From the request to the first token."""
        return self.first - self.began

    @property
    def rate(self):
        """Tokens per second from the first token to the last."""
        return (self.tokens - 1) / (self.ended - self.first)
