"""Golden values of MLX's quantization, by the `mlx` package (PyPI, 0.32.4) on the CPU.

Two kinds. `groups` holds rows made to be awkward (zeros, one-sided, tiny, huge, ties) with the packed
codes, scales and biases of every format, bit for bit. `digests` holds FNV-1a hashes of the same over
65,536 pseudo-random values of 24 magnitudes, which the Rust test makes again from the same integers.
Run from the repository's root:

    pip install mlx[cpu]==0.32.4 numpy && python tests/reference/mlx_quantize.py
"""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np

OUT = Path("models/tests/fixtures/mlx_quantize.json")
COLS = 64
SEED = 7
FORMATS = {
    "affine4": (64, 4, "affine"),
    "affine8": (64, 8, "affine"),
    "affine8_32": (32, 8, "affine"),
    "mxfp4": (32, 4, "mxfp4"),
    "mxfp8": (32, 8, "mxfp8"),
    "nvfp4": (16, 4, "nvfp4"),
}
DTYPES = {"f32": mx.float32, "bf16": mx.bfloat16, "f16": mx.float16}
DIGEST_VALUES = 1 << 16


def awkward_rows():
    """Rows of 64 values, each a different trap."""
    random = np.random.default_rng(SEED)
    normal = random.normal(0.0, 0.02, COLS)
    rows = [
        normal,
        random.normal(0.0, 3.0, COLS),
        np.abs(normal),
        -np.abs(normal),
        np.zeros(COLS),
        np.full(COLS, 0.7),
        np.full(COLS, -1.0),
        normal * 1e-6,
        normal * 1e5,
        np.where(np.arange(COLS) == 5, -2.5, 0.0),
        # Every tie between two e2m1 values under a scale of one, both signs.
        np.tile([6, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, -0.25, -0.75, -1.25, -1.75, -2.5, -3.5, -5, -6], 4),
        # Groups whose exponent of the scale is close to a tie: maxima around 6 and 448 times sqrt 2.
        np.where(np.arange(COLS) % 32 == 0, 6 * np.sqrt(2.0), 1.0),
        np.where(np.arange(COLS) % 32 == 0, 448 * np.sqrt(2.0), 30.0),
    ]
    return np.stack(rows).astype(np.float32)


def digest_values():
    """Values in [-1, 1) of 24 significant bits, times powers of two that change every 512 values."""
    state, values = 1, np.empty(DIGEST_VALUES, np.float64)
    for i in range(DIGEST_VALUES):
        state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        values[i] = ((state >> 40) - (1 << 23)) / (1 << 23) * 2.0 ** (4 - i // 512 % 24)
    return values.astype(np.float32).reshape(-1, COLS)


def raw(array):
    """The bytes of an array; bfloat16 has no numpy type, so all go through integers."""
    integer = {4: mx.uint32, 2: mx.uint16, 1: mx.uint8}[array.itemsize]
    return np.array(mx.view(array, integer)).tobytes()


def fnv(data):
    hash = 0xCBF29CE484222325
    for byte in data:
        hash = (hash ^ byte) * 0x100000001B3 % (1 << 64)
    return f"{hash:016x}"


def quantized(values, dtype, format):
    group_size, bits, mode = FORMATS[format]
    weight = mx.array(values).astype(DTYPES[dtype])
    parts = mx.quantize(weight, group_size=group_size, bits=bits, mode=mode)
    return raw(weight), [raw(part) for part in parts]


def main() -> None:
    mx.set_default_device(mx.cpu)
    groups, digests = [], []
    for dtype in DTYPES:
        outputs = {}
        rows = awkward_rows()
        if dtype == "f16":
            rows = np.clip(rows, -60000.0, 60000.0)
        for format in FORMATS:
            source, parts = quantized(rows, dtype, format)
            outputs[format] = [part.hex() for part in parts]
            _, parts = quantized(digest_values(), dtype, format)
            digests.append({"dtype": dtype, "format": format, "fnv": [fnv(part) for part in parts]})
        groups.append({"dtype": dtype, "cols": COLS, "rows": source.hex(), "outputs": outputs})
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps({"groups": groups, "digests": digests}, indent=1) + "\n")


if __name__ == "__main__":
    main()
