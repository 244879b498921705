"""The engines that compare.py runs: how each is found, and how it measures its cases.

An engine is a function that measures one round: {case: tokens per second}. Each round is a process of its own,
which warms up before it times. All but llama-bench print `{"results": [{"work", "tokens", "depth",
"tokens_per_second_median"}]}`, as `sconce bench engine` does.
"""
import json
import os
import subprocess
import sys
from pathlib import Path

from . import processes
from .cases import work_case
from .peer import WARM_UP_TOKENS
from .processes import Unavailable

ERROR_CHARACTERS_MAX = 2000
FOLDER = Path(__file__).resolve().parents[1]


def run(lines, threads):
    """The results of command lines, of each what it prints as JSON."""
    # candle has no other way to be told; and what an engine does beside is to have no more either.
    env = dict(os.environ, RAYON_NUM_THREADS=str(threads), OMP_NUM_THREADS=str(threads))
    results = []
    for line in lines:
        done = subprocess.run([str(word) for word in line], env=env, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(map(str, line))}: {done.stderr[-ERROR_CHARACTERS_MAX:]}")
        found = json.loads(done.stdout)
        results += found if isinstance(found, list) else found["results"]
    return results


def rates(lines, threads):
    """{case: tokens per second} of engines that print results as sconce does."""
    return {work_case(r["work"], r["tokens"], r["depth"]): r["tokens_per_second_median"] for r in run(lines, threads)}


def sconce(args, file):
    """sconce's own benchmark; prefill and decode apart, since it would prefill at every depth too."""
    engine = [processes.program(args.sconce), "bench", "engine", "--path", file, "--threads", args.threads,
              "--repetitions", 1, "--warm-up", WARM_UP_TOKENS, "--no-peaks", "--json"]
    lines = []
    if any(args.prompts):
        lines.append([*engine, "--prompt", numbers(args.prompts), "--generate", 0])
    if args.generate:
        lines.append([*engine, "--prompt", 0, "--generate", args.generate, "--depth", numbers(args.depths)])
    return lambda _: rates(lines, args.threads)


def numbers(values):
    """A list as engines are told it."""
    return ",".join(map(str, values)) or "0"


def cases(args):
    """The cases as the peers of this folder are told them."""
    return [numbers(args.prompts), args.generate, numbers(args.depths)]


def expect_llama(args):
    """Leaves out an engine that reads no other GGUF files than those of a llama."""
    if args.hybrid:
        raise Unavailable("reads no hybrid")


def candle(args, file):
    """candle-transformers' quantized_llama: the cargo package of this folder, built when it is first needed."""
    if args.no_candle:
        raise Unavailable("not wanted")
    expect_llama(args)
    cargo = processes.program("cargo")
    subprocess.run([cargo, "build", "--release", "--locked", "--quiet"], cwd=FOLDER, check=True)
    line = [FOLDER / "target/release/peer-candle", file, *cases(args)]
    return lambda _: rates([line], args.threads)


def python_peer(python, module, script, args, file):
    """A script of this folder, run by an interpreter that has the engine's package."""
    python = python or sys.executable
    if not processes.has_module(python, module):
        raise Unavailable(f"{python} has no {module}")
    line = [python, FOLDER / script, file, *cases(args)]
    return lambda _: rates([line], args.threads)


def llama_cpp(args, file):
    """llama.cpp by its own llama-bench where that is given, else as llama-cpp-python has it."""
    if not args.llama_bench:
        return python_peer(args.llama_cpp_python, "llama_cpp", "llama_cpp_peer.py", args, file)
    bench = [processes.program(args.llama_bench), "--model", file, "--threads", args.threads, "--repetitions", 1,
             "--output", "json"]
    lines = []
    if any(args.prompts):
        lines.append([*bench, "--n-prompt", numbers(args.prompts), "--n-gen", 0])
    if args.generate:
        lines.append([*bench, "--n-prompt", 0, "--n-gen", args.generate, "--n-depth", numbers(args.depths)])

    def measure(_):
        found = {}
        for r in run(lines, args.threads):
            work = ("prefill", r["n_prompt"]) if r["n_prompt"] else ("decode", r["n_gen"])
            found[work_case(*work, r["n_depth"])] = r["avg_ts"]
        return found

    return measure


def four_bit(args, file):
    """The file requantized by llama.cpp to its fastest 4-bit type, made where it is missing."""
    target = args.requantize / f"{Path(file).stem}-Q4_0.gguf"
    if not target.exists():
        python = args.llama_cpp_python or sys.executable
        if not processes.has_module(python, "llama_cpp"):
            raise Unavailable(f"{python} has no llama_cpp to requantize with")
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([python, FOLDER / "requantize.py", file, target, "Q4_0"], check=True)
    return target


def mistral_rs(args, file):
    """mistral.rs by its Python package."""
    expect_llama(args)
    return python_peer(args.mistralrs_python, "mistralrs", "mistral_rs_peer.py", args, file)


def found(args):
    """{name: engine} of all that are here; says of each of the others why not."""
    ways = {"sconce": lambda: sconce(args, args.file), "candle": lambda: candle(args, args.file),
            "llama.cpp": lambda: llama_cpp(args, args.file)}
    if args.requantize:
        ways["llama.cpp, 4-bit"] = lambda: llama_cpp(args, four_bit(args, args.file))
    ways["mistral.rs"] = lambda: mistral_rs(args, args.file)
    ways["vLLM"] = lambda: vllm(args)
    engines = {}
    for name, way in ways.items():
        try:
            engines[name] = way()
        except Unavailable as why:
            print(f"{name}: left out: {why}", file=sys.stderr)
    if "sconce" not in engines:
        raise SystemExit("nothing to compare with")
    return engines


def vllm(args):
    """vLLM on a checkpoint directory, as it reads no GGUF on a CPU."""
    if not args.vllm_model:
        raise Unavailable("no --vllm-model")
    return python_peer(args.vllm_python, "vllm", "vllm_peer.py", args, args.vllm_model)
