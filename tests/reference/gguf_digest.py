"""Digest of all dequantized values of a GGUF file, by the `gguf` package (PyPI, 0.19.0).

For each tensor, in the order of the file, the sum over its values of (bits of the f32) times
(index + 1), modulo 2^64; the digest is that of the sums times (index of the tensor + 1).

    pip install gguf==0.19.0 numpy && python tests/reference/gguf_digest.py FILE
"""

import sys

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize


def weighted_sum(bits: np.ndarray) -> int:
    weights = np.arange(1, bits.size + 1, dtype=np.uint64)
    return int((bits.astype(np.uint64) * weights).sum(dtype=np.uint64))


def main() -> None:
    sums = []
    for tensor in GGUFReader(sys.argv[1]).tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype("<f4").reshape(-1)
        sums.append(weighted_sum(values.view("<u4")))
    digest = weighted_sum(np.array(sums, dtype=np.uint64))
    print(f"{len(sums)} tensors, {digest:#018x}")


if __name__ == "__main__":
    main()
