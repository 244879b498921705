"""Golden values of the GGML block types, by the `gguf` package (PyPI, 0.19.0).

For each type two blocks of seeded bytes with moderate scales, and the values that
`gguf.quants.dequantize` reads from them, bit for bit. Run from the repository's root:

    pip install gguf==0.19.0 numpy && python tests/reference/gguf_blocks.py
"""

import json
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

OUT = Path("models/tests/fixtures/gguf_blocks.json")
BLOCKS = 2
SEED = 20

# Byte offsets of the f16 scales of a block.
SCALES = {
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "IQ4_NL": [0],
    "IQ4_XS": [0],
    "MXFP4": [],
}


def main() -> None:
    random = np.random.default_rng(SEED)
    cases = []
    for name, offsets in SCALES.items():
        kind = GGMLQuantizationType[name]
        _, size = GGML_QUANT_SIZES[kind]
        blocks = random.integers(0, 256, (BLOCKS, size), dtype=np.uint8)
        for offset in offsets:
            scales = random.normal(0.0, 0.1, (BLOCKS, 1)).astype("<f2")
            blocks[:, offset : offset + 2] = scales.view(np.uint8)
        if name == "MXFP4":
            # Its scale is a byte; 255 is not a number, and has no place in a comparison.
            blocks[:, 0] = random.integers(110, 130, BLOCKS, dtype=np.uint8)
        values = dequantize(blocks.reshape(-1), kind).astype("<f4")
        cases.append(
            {
                "type": name,
                "bytes": blocks.tobytes().hex(),
                "values": values.tobytes().hex(),
            }
        )
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(cases, indent=1) + "\n")


if __name__ == "__main__":
    main()
