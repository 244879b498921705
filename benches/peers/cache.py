"""Runs `sconce bench cache` and llama.cpp's server in turn on one GGUF file and prints a markdown table.

    python benches/peers/cache.py .models/SmolLM2-135M-Instruct.Q4_1.gguf --llama-server PATH

Each round runs every scenario once on each side, in an order that turns from round to round, with another
text. llama-server is asked the same token ids through /completion; where a conversation goes on, each server
goes on from its own answer. What a request computed is what the server says of it. Times are medians over rounds,
and so are the ratios, which are taken within a round. A swap or a restart is a restart for llama-server, which
forgets.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import llama_server, rounds
from harness.machine import machine
from harness.report import positive
from harness.rounds import OURS, Case

MEBIBYTE = 1 << 20
THEIRS = "llama.cpp"


class Llama:
    """llama-server for one scenario, which may start it again."""

    def __init__(self, args, cache_bytes):
        self.args, self.server = args, None
        self.options = ["--cache-ram", str(-(-cache_bytes // MEBIBYTE))] if cache_bytes else []

    def start(self):
        """Starts it, or another that knows nothing of the one before."""
        self.stop()
        args = self.args
        self.server = llama_server.Server(
            args.llama_server, args.file, args.threads, args.slots, args.context, self.options)

    def stop(self):
        """Stops it, if it runs."""
        if self.server:
            self.server.stop()
            self.server = None

    def complete(self, prompt, tokens):
        """Seconds to the first token, tokens computed of the prompt, and the completion."""
        body = dict(
            prompt=prompt, n_predict=tokens, cache_prompt=True, return_tokens=True, ignore_eos=True, temperature=0.0,
        )
        began = time.perf_counter()
        answer = self.server.post("/completion", body)
        seconds = time.perf_counter() - began
        if len(answer.get("tokens", [])) != tokens:
            raise SystemExit(f"llama-server broke off a request of {len(prompt)} tokens: {answer.get('error')}")
        # A stream would show the first token, but loses those that end inside a character. What is timed as
        # prediction begins with the first token, so the rest of the time is what it took.
        timings = answer["timings"]
        return seconds - timings["predicted_ms"] / 1000, timings["prompt_n"], answer["tokens"]


def ask_llama(args, scenario, cache_bytes):
    """The reported requests of a scenario: [(label, prompt tokens, computed, seconds)]."""
    server, asked, results = Llama(args, cache_bytes), [], []
    try:
        server.start()
        for step in scenario["steps"]:
            if step["do"] != "ask":
                server.start()
                continue
            prompt = sum(asked[step["after"]], []) if step["after"] is not None else []
            prompt = prompt + step["tokens"]
            seconds, computed, completion = server.complete(prompt, step["completion"])
            asked.append((prompt, completion))
            if step["kind"] != "unmeasured":
                results.append((step["label"], len(prompt), computed, seconds))
    finally:
        server.stop()
    return results


def sconce(args, extra):
    """The rows of `sconce bench cache`; none where it only writes what it would ask."""
    line = [args.sconce, "bench", "cache", "--path", args.file, "--threads", str(args.threads), "--json", *extra]
    done = subprocess.run(line, capture_output=True, text=True)
    # 1 says that a promise was not kept: that is a result too.
    if done.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(line)}: {done.stderr}")
    return json.loads(done.stdout)["results"] if done.stdout else []


def measure(args):
    """{engine: [{case: seconds} of a round]}, and of each case the tokens of its prompt and the most computed."""
    names = args.only.split(",")
    seen, tokens = {OURS: [], THEIRS: []}, {}
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "plan.json"
        for i in range(args.rounds):
            seen[OURS].append({})
            seen[THEIRS].append({})
            for name in names:
                extra = ["--tokens", str(args.tokens), "--only", name, "--seed", str(args.seed + i), *args.options]
                # The plan is the same in every run of a seed, and written before anything is measured.
                sconce(args, [*extra, "--plan", str(plan), "--dry-run"])
                (scenario,) = json.loads(plan.read_text())["rounds"][0]
                # Under pressure both have the bytes of the same option, so sconce tells how many that are.
                ours = sconce(args, extra) if i % 2 == 0 or name == "pressure" else None
                theirs = ask_llama(args, scenario, ours[0]["device_bytes_max"] if name == "pressure" else None)
                ours = ours or sconce(args, extra)
                for row, (_, prompt, computed, seconds) in zip(ours, theirs, strict=True):
                    case = Case(f"{name}, {row['request']}", "s", lower_is_better=True)
                    seen[OURS][i][case], seen[THEIRS][i][case] = row["ttft_seconds_median"], seconds
                    most = tokens.setdefault(case, {"prompt": prompt, OURS: 0, THEIRS: 0})
                    most[OURS] = max(most[OURS], row["recomputed_tokens"])
                    most[THEIRS] = max(most[THEIRS], computed)
                    print(f"round {i + 1}: {case.label}: {row['recomputed_tokens']} in "
                          f"{row['ttft_seconds_median']:.3f} s, {THEIRS} {computed} in {seconds:.3f} s",
                          file=sys.stderr, flush=True)
    return seen, tokens


def table(seen, tokens):
    """Markdown: one row for each request."""
    yield from rounds.header(["scenario, request", "prompt", *(f"{name} computes" for name in seen),
                              *(f"{name} TTFT, s" for name in seen), f"{THEIRS} / {OURS}"])
    for case in rounds.cases_of(seen):
        times = [f"{rounds.median(seen, name, case):.3f}" for name in seen]
        yield rounds.row([case.label, *tokens[case].values(), *times, f"{rounds.ratio(seen, THEIRS, case):.1f}"])


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("file", help="a GGUF file with its tokenizer")
    ap.add_argument("--llama-server", required=True, metavar="PATH", help="llama.cpp's server")
    ap.add_argument("--sconce", default="target/release/sconce", help="the binary, built with --release")
    ap.add_argument("--tokens", type=positive, default=4096, help="tokens of a prompt")
    ap.add_argument("--context", type=positive, default=8192, help="tokens of context of each slot of llama-server")
    ap.add_argument("--slots", type=positive, default=1, help="slots of llama-server")
    ap.add_argument("--only", default="repeat,changed-4,changed-100,changed-1000,changed-half,conversation,alternating,"
                    "pressure,swap", help="scenarios, by their names in sconce")
    ap.add_argument("--rounds", type=positive, default=3)
    ap.add_argument("--seed", type=int, default=1, help="of the first round's text")
    ap.add_argument("--threads", type=positive, default=os.cpu_count())
    ap.add_argument("options", nargs="*", help="more options for `sconce bench cache`, after --")
    args = ap.parse_args()
    seen, tokens = measure(args)
    print(f"{machine()}; {args.threads} threads; {Path(args.file).name}")
    print(f"tokens computed: the most of {args.rounds} rounds; times: medians\n")
    print("\n".join(table(seen, tokens)))


if __name__ == "__main__":
    main()
