"""Writes a GGUF file anew in another type, by llama.cpp itself; run by a Python that has llama-cpp-python.

    python requantize.py FROM TO TYPE    such as model.Q4_1.gguf model.Q4_0.gguf Q4_0

What is quantized is quantized again. The types of ends and of single tensors are llama.cpp's choice.
"""
import os
import sys
from pathlib import Path

import llama_cpp as lc

TYPES = {"Q4_0": lc.LLAMA_FTYPE_MOSTLY_Q4_0, "Q8_0": lc.LLAMA_FTYPE_MOSTLY_Q8_0}
SILENT = lc.llama_log_callback(lambda level, text, data: None)


def main():
    source, target, kind = sys.argv[1:]
    lc.llama_log_set(SILENT, None)
    params = lc.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = TYPES[kind], True
    # Under another name until it is whole.
    partial = f"{target}.{os.getpid()}"
    if lc.llama_model_quantize(os.fsencode(source), os.fsencode(partial), params):
        Path(partial).unlink(missing_ok=True)
        raise SystemExit(f"llama.cpp could not write {source} as {kind}")
    Path(partial).rename(target)


if __name__ == "__main__":
    main()
