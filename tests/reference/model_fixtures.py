"""Makes the fixtures of every architecture after llama: checkpoint folders and what transformers answers.

Writes models/tests/fixtures/<architecture>_<variant>/. Weights are random but seeded; of the prompts the
first is taken whose argmax margins are not tiny, so that a correct implementation cannot flip a token.

    python tests/reference/model_fixtures.py [ARCHITECTURE | ARCHITECTURE_VARIANT ...]
"""
import sys

import torch
import transformers

from fixtures import common, dense, hybrid, moe

TABLES = [*dense.TABLES, *moe.TABLES, *hybrid.TABLES]


def main(chosen):
    failed = []
    for architecture, variants in TABLES:
        for name, variant in variants.items():
            if not chosen or architecture.name in chosen or f"{architecture.name}_{name}" in chosen:
                try:
                    common.make(architecture, name, variant)
                except (AssertionError, ValueError) as error:
                    failed.append(f"{architecture.name}_{name}: {error}")
    if failed:
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    main(sys.argv[1:])
