"""Runs sconce and its peers in turn on one GGUF file and prints a markdown table of medians and ratios.

    python benches/peers/compare.py .models/SmolLM2-135M-Instruct.Q4_1.gguf --requantize .models/made --bars smollm2
    python benches/peers/compare.py --hybrid .models/hybrid --type Q4_0 --bars hybrid

Measured is the engine without a server: evaluating prompts, and decoding after a number of tokens. All have the
same number of threads and the same random tokens (llama-bench has its own), copy the logits of every decoded
token to where the caller can read them, and warm up before they are timed. An engine that is not found is left
out, and the reason is said. `llama.cpp, 4-bit` is llama.cpp on its fastest 4-bit form of the same model.
"""
import argparse
import subprocess
import sys
from pathlib import Path

from harness import engines, report, rounds

HERE = Path(__file__).resolve().parent


def counts(text):
    """Numbers separated by commas; 0 is none of them."""
    return [int(n) for n in text.split(",")]


def hybrid_file(folder, kind):
    """The GGUF file of the random hybrid, made where it is missing."""
    path = folder / f"hybrid-{kind.lower()}.gguf"
    if not path.exists():
        subprocess.run([sys.executable, HERE / "make_hybrid.py", folder, "--types", kind], check=True)
    return path


def parse(words=None):
    """The command line, or `words` instead of it."""
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("file", nargs="?", help="a GGUF file; candle and mistral.rs read those of a llama alone")
    ap.add_argument("--hybrid", type=Path, metavar="FOLDER", help="instead of a file, the random hybrid")
    ap.add_argument("--type", default="Q4_0", help="the element type of the hybrid")
    ap.add_argument("--sconce", default="target/release/sconce", help="the binary, built with --release")
    ap.add_argument("--no-candle", action="store_true", help="leave candle out (else it is built here)")
    ap.add_argument("--llama-cpp-python", metavar="PYTHON", help="an interpreter that has llama-cpp-python")
    ap.add_argument("--llama-bench", metavar="PATH", help="llama.cpp's own benchmark, instead of llama-cpp-python")
    ap.add_argument("--requantize", type=Path, metavar="FOLDER", help="also llama.cpp on the file requantized to "
                    "Q4_0, which is kept in this folder; by llama-cpp-python")
    ap.add_argument("--mistralrs-python", metavar="PYTHON", help="an interpreter that has mistralrs")
    ap.add_argument("--vllm-python", metavar="PYTHON", help="an interpreter that has vLLM's build for CPUs")
    ap.add_argument("--vllm-model", metavar="FOLDER", help="the same model as a checkpoint that vLLM reads")
    ap.add_argument("--prompts", type=counts, default=[512, 2048], help="prompt lengths; 0 for none")
    ap.add_argument("--generate", type=int, default=128, help="tokens to decode; 0 for none")
    ap.add_argument("--depths", type=counts, default=[0, 2048], help="tokens before the decoded ones")
    report.add_options(ap)
    args = ap.parse_args(words)
    if (args.file is None) == (args.hybrid is None):
        ap.error("expected either a file or --hybrid")
    return args


def main():
    args = parse()
    if args.hybrid:
        args.file = str(hybrid_file(args.hybrid, args.type))
    found = engines.found(args)
    report.report(args, rounds.in_turn(found, args.rounds), {})


if __name__ == "__main__":
    main()
