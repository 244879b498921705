"""Token ids that look random: the same for every engine, or drawn anew for every request."""
import random

# Knuth's MMIX generator, as in `sconce bench engine` and in the candle peer.
SEED = 0x5EED
MULTIPLIER, INCREMENT, MASK = 6_364_136_223_846_793_005, 1_442_695_040_888_963_407, (1 << 64) - 1


def bench_tokens(count, vocab_size):
    """The ids that `sconce bench engine` feeds to a model of this vocabulary."""
    state, ids = SEED, []
    for _ in range(count):
        state = (state * MULTIPLIER + INCREMENT) & MASK
        ids.append((state >> 33) % vocab_size)
    return ids


class RandomPrompts:
    """Prompts of which no two begin alike, so that no cache helps; a seed makes them again."""

    # Lower ids are control tokens in the vocabularies measured here, and the highest may be.
    FIRST, MARGIN = 1000, 1000

    def __init__(self, vocab_size, seed):
        self.vocab_size, self.random = vocab_size, random.Random(seed)

    def draw(self, tokens):
        """One prompt."""
        ids = range(self.FIRST, self.vocab_size - self.MARGIN)
        return self.random.choices(ids, k=tokens)
