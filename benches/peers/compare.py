"""Runs sconce and its peers in turn on one GGUF file and prints a markdown table of medians and ratios.

    python benches/peers/compare.py .models/SmolLM2-135M-Instruct.Q4_1.gguf --sconce target/release/sconce
    python benches/peers/compare.py --hybrid .models/hybrid --type Q4_0

Each round runs every engine once, in an order that turns from round to round, so that a machine that slows
down meanwhile slows them all. A ratio is the median over rounds of sconce's rate by the peer's in the same
round: above 1 sconce is faster. Every engine runs in a process of its own and warms up before it is timed.
"""
import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def commands(args):
    """Name -> command line of each engine."""
    cases = [args.prompts, str(args.generate), args.depths]
    engine = ["bench", "engine", "--path", args.file, "--threads", str(args.threads), "--repetitions", "1", "--json"]
    sconce = []
    if any(int(n) for n in args.prompts.split(",")):
        sconce.append([args.sconce, *engine, "--prompt", args.prompts, "--generate", "0"])
    if args.generate:
        sconce.append([args.sconce, *engine, "--prompt", "0", "--generate", str(args.generate), "--depth", args.depths])
    engines = {"sconce": sconce}
    if args.candle:
        engines["candle"] = [[args.candle, args.file, *cases]]
    if args.llama_cpp_python:
        engines["llama.cpp"] = [[args.llama_cpp_python, str(HERE / "llama_cpp_peer.py"), args.file, *cases]]
    return engines


def build_candle():
    """Builds the candle peer and returns its path."""
    subprocess.run(["cargo", "build", "--release", "--locked", "--quiet"], cwd=HERE, check=True)
    return str(HERE / "target/release/peer-candle")


def hybrid_file(folder, kind):
    """The GGUF file of the random hybrid, made where it is missing."""
    path = folder / f"hybrid-{kind.lower()}.gguf"
    if not path.exists():
        subprocess.run([sys.executable, HERE / "make_hybrid.py", folder, "--types", kind], check=True)
    return path


def run(lines, threads):
    """Tokens per second of every case of one engine: {(work, tokens, depth): rate}."""
    env = dict(os.environ, RAYON_NUM_THREADS=str(threads))
    rates = {}
    for line in lines:
        done = subprocess.run(line, env=env, check=True, capture_output=True, text=True)
        for r in json.loads(done.stdout)["results"]:
            rates[r["work"], r["tokens"], r["depth"]] = r["tokens_per_second_median"]
    return rates


def measure(engines, rounds, threads):
    """Runs all engines in turn: {name: [rates of a round]}."""
    seen = {name: [] for name in engines}
    names = list(engines)
    for i in range(rounds):
        turn = i % len(names)
        for name in names[turn:] + names[:turn]:
            seen[name].append(run(engines[name], threads))
            rates = [round(rate, 1) for rate in seen[name][-1].values()]
            print(f"round {i + 1}: {name} {rates}", file=sys.stderr, flush=True)
    return seen


def machine():
    """The machine in words: processor family, cores, instruction sets that matter here."""
    model, flags = platform.processor() or platform.machine(), set()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        fields = [line.partition(":")[::2] for line in cpuinfo.read_text().splitlines()]
        found = {k.strip(): v.strip() for k, v in fields}
        model, flags = found.get("model name", model), set(found.get("flags", "").split())
    isa = [f for f in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8") if f in flags]
    return f"{model}, {os.cpu_count()} cores, {' '.join(isa) or 'no x86 extensions known'}"


def table(seen, rounds):
    """Markdown: one row for each case."""
    peers = [name for name in seen if name != "sconce"]
    yield "| work | " + " | ".join(seen) + " | " + " | ".join(f"sconce / {p}" for p in peers) + " |"
    yield "|---" * (1 + len(seen) + len(peers)) + "|"
    for case in seen["sconce"][0]:
        work, tokens, depth = case
        cells = [f"{work} {tokens}" + (f" at depth {depth}" if depth else "")]
        for name in seen:
            rates = sorted(r[case] for r in seen[name])
            cells.append(f"{statistics.median(rates):.1f} ({rates[0]:.0f} to {rates[-1]:.0f})")
        for p in peers:
            ratios = [seen["sconce"][i][case] / seen[p][i][case] for i in range(rounds)]
            cells.append(f"{statistics.median(ratios):.2f}")
        yield "| " + " | ".join(cells) + " |"


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("file", nargs="?", help="a GGUF file; candle is for llama only")
    ap.add_argument("--hybrid", type=Path, metavar="FOLDER", help="instead of a file, the random hybrid; no candle")
    ap.add_argument("--type", default="Q4_0", help="the element type of the hybrid")
    ap.add_argument("--sconce", default="target/release/sconce", help="the binary, built with --release")
    ap.add_argument("--no-candle", action="store_true", help="leave candle out (else it is built here)")
    ap.add_argument("--llama-cpp-python", metavar="PYTHON", help="an interpreter that has llama-cpp-python")
    ap.add_argument("--prompts", default="512,2048", help="prompt lengths; 0 for none")
    ap.add_argument("--generate", type=int, default=128, help="tokens to decode; 0 for none")
    ap.add_argument("--depths", default="0", help="tokens before the decoded ones")
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--threads", type=int, default=os.cpu_count())
    args = ap.parse_args()
    if (args.file is None) == (args.hybrid is None):
        ap.error("expected either a file or --hybrid")
    if args.hybrid:
        args.file, args.no_candle = str(hybrid_file(args.hybrid, args.type)), True
    args.candle = None if args.no_candle else build_candle()
    seen = measure(commands(args), args.rounds, args.threads)
    print(f"{machine()}; {args.threads} threads; {Path(args.file).name}")
    print(f"tokens per second, medians of {args.rounds} rounds in turn\n")
    print("\n".join(table(seen, args.rounds)))


if __name__ == "__main__":
    main()
