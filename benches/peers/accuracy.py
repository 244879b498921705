"""How far llama.cpp's computation is from the float32 computation of the same GGUF weights.

    python accuracy.py reference FILE TEXT LOGITS.npy   with the packages of tests/reference/requirements.txt
    python accuracy.py llama-cpp FILE LOGITS.npy        with numpy and llama-cpp-python

Prints top-1 agreement and the divergence from the reference over the positions of TEXT, read teacher forced
one token at a time: what `sconce bench accuracy --text TEXT` prints for sconce's default precision.
"""
import json
import sys
from pathlib import Path

import numpy as np


def reference(path, text, out):
    """Writes the ids of the text and the float32 logits after each of them."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests/reference"))
    import gguf
    import llama_gguf
    import torch

    reader = gguf.GGUFReader(path)
    model, tokenizer = llama_gguf.load_model(reader), llama_gguf.load_tokenizer(reader)
    ids = tokenizer(Path(text).read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        np.save(out, model(torch.tensor([ids])).logits[0].numpy())
    Path(out).with_suffix(".json").write_text(json.dumps(ids))


def log_softmax(logits):
    """In f64."""
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def llama_cpp(path, logits):
    """Compares llama.cpp with the written logits."""
    from harness import peer as settings
    from llama_cpp_peer import Peer

    ids = json.loads(Path(logits).with_suffix(".json").read_text())
    exact = np.load(logits, mmap_mode="r")
    peer = Peer(path, len(ids), settings.threads())
    agreed, divergence, loss = 0, [], []
    # The last token has no successor in the text, and is left out as `sconce bench accuracy` does.
    for position, token in enumerate(ids[:-1]):
        found = np.ctypeslib.as_array(peer.step([token]), (peer.vocab_size,))
        p, q = log_softmax(exact[position]), log_softmax(found)
        agreed += int(p.argmax() == q.argmax())
        divergence.append(float((np.exp(p) * (p - q)).sum()))
        loss.append(-q[ids[position + 1]])
    n = len(ids) - 1
    print(json.dumps({
        "positions": n, "top1_agreement": agreed / n, "kl_mean": float(np.mean(divergence)),
        "kl_max": max(divergence), "perplexity": float(np.exp(np.mean(loss))),
    }))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["reference", path, text, out]:
            reference(path, text, out)
        case ["llama-cpp", path, logits]:
            llama_cpp(path, logits)
        case _:
            raise SystemExit(__doc__)
