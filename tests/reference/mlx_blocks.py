"""A directory of weights that MLX quantized, with the values it reads from them.

Every mode, number of bits and group size as a module of its own, with an override in config.json;
matrices and stacks of three. `golden.<module>` holds the values: codes as `mx.dequantize` unpacks
them, times scale plus bias in float32, which MLX confirms. Run from the repository's root:

    pip install 'mlx[cpu]==0.32.4' numpy && python tests/reference/mlx_blocks.py
"""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np

OUT = Path("models/tests/fixtures/mlx_blocks")
PREFIX = "language_model.model.layers.0."
MATRIX = (2, 256)
STACK = (3, 2, 128)
SEED = 21

# Scales and biases have the type of the weight that was quantized.
AFFINE_TYPES = {32: mx.float32, 64: mx.float16, 128: mx.bfloat16}

# mode, bits, group size
AFFINE = [("affine", bits, size) for bits in (2, 3, 4, 5, 6, 8) for size in AFFINE_TYPES]
FLOATS = [("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)]
STACKED = [("affine", 4, 64), ("affine", 3, 32), *FLOATS]


def wide(array: mx.array) -> mx.array:
    return array.astype(mx.float32)


def affine(weight, bits, size):
    weight = weight.astype(AFFINE_TYPES[size])
    codes, scales, biases = mx.quantize(weight, size, bits)
    ones, zeros = mx.ones(scales.shape), mx.zeros(scales.shape)
    numbers = np.array(mx.dequantize(codes, ones, zeros, size, bits))
    spread = [np.repeat(np.array(wide(a)), size, axis=-1) for a in (scales, biases)]
    values = numbers * spread[0] + spread[1]
    theirs = mx.dequantize(codes, wide(scales), wide(biases), size, bits)
    np.testing.assert_allclose(values, np.array(theirs), rtol=1e-5, atol=1e-6)
    return {"weight": codes, "scales": scales, "biases": biases}, values


def floats(weight, mode, bits, size):
    codes, scales = mx.quantize(weight, size, bits, mode=mode)
    values = mx.dequantize(codes, scales, None, size, bits, mode=mode, dtype=mx.float32)
    return {"weight": codes, "scales": scales}, np.array(values)


def with_global_scales(weight, mode, bits, size):
    """One more scale for each matrix of a stack, as mlx-lm stores it for experts."""
    largest = mx.max(mx.abs(weight), axis=(-2, -1))
    parts, values = [], []
    for matrix, scale in zip(weight, largest):
        parts.append(mx.quantize(matrix, size, bits, mode=mode, global_scale=scale))
        codes, scales = parts[-1]
        read = mx.dequantize(
            codes, scales, None, size, bits, mode=mode, global_scale=scale, dtype=mx.float32
        )
        values.append(np.array(read))
    codes, scales = (mx.stack(arrays) for arrays in zip(*parts))
    tensors = {"weight": codes, "scales": scales, "global_scale": largest}
    return tensors, np.stack(values)


def main() -> None:
    mx.random.seed(SEED)
    tensors, quantization = {}, {"group_size": 64, "bits": 4}

    def add(name, mode, bits, size, made):
        parts, values = made
        tensors.update({f"{PREFIX}{name}.{part}": array for part, array in parts.items()})
        tensors[f"golden.{name}"] = mx.array(values)
        override = {"group_size": size, "bits": bits}
        if mode != "affine":
            override["mode"] = mode
        quantization[PREFIX + name] = override

    for shape, prefix, cases in [(MATRIX, "matrix", AFFINE + FLOATS), (STACK, "stack", STACKED)]:
        for mode, bits, size in cases:
            weight = mx.random.normal(shape)
            quantized = affine(weight, bits, size) if mode == "affine" else None
            quantized = quantized or floats(weight, mode, bits, size)
            add(f"{prefix}_{mode}_{bits}_{size}", mode, bits, size, quantized)
    weight = mx.random.normal(STACK) * mx.array([0.1, 1.0, 10.0]).reshape(3, 1, 1)
    case = ("nvfp4", 4, 16)
    add("stack_nvfp4_global", *case, with_global_scales(weight, *case))

    OUT.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(OUT / "model.safetensors"), tensors)
    config = {"model_type": "llama", "quantization": quantization}
    (OUT / "config.json").write_text(json.dumps(config, indent=1) + "\n")


if __name__ == "__main__":
    main()
