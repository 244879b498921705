"""AIPerf against SMG in front of two workers, and a table of what it found; see load.sh.

Each number of clients has prompts of its own: a few long beginnings, of which every prompt has one, and
an end that no other has. So the cache is cold at the start of each row, and what can be resumed is known.
"""

import argparse
import contextlib
import io
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import zipfile

import grpc
from processes import MODEL, PATIENCE, Gateway, Worker

# The prompts: tokens of a beginning, how many there are, tokens of an end (mean and deviation).
PREFIX_TOKENS, PREFIXES, END_TOKENS, END_DEVIATION = 512, 4, 64, 16
# Tokens of an answer, mean and deviation; answers do not end before.
ANSWER_TOKENS, ANSWER_DEVIATION = 32, 8
# What AIPerf takes of a machine whose cores the servers need too.
SENDERS = 2
# Longest that one row may take, in seconds, the start of AIPerf included.
ROW_MAX = 600.0
# Most clients and requests of a row.
CLIENTS_MAX, REQUESTS_MAX = 256, 10_000
# The name under which AIPerf finds the tokenizer.
TOKENIZER = f"sconce/{MODEL}"

HEADER = [
    "clients", "requests", "errors", "seconds", "requests/s", "tokens/s out", "first token p50, ms", "p99, ms",
    "between chunks p50, ms", "p99, ms", "prompt tokens", "cached",
]


def counted(limit):
    """Parses a whole number from 1 to `limit`."""

    def parse(text):
        number = int(text)
        if not 1 <= number <= limit:
            raise argparse.ArgumentTypeError(f"expected 1 to {limit}, found {number}")
        return number

    return parse


def keep_tokenizer(worker, hub):
    """Puts the tokenizer that `worker` serves where the libraries of the hub look for it without network."""
    with grpc.insecure_channel(f"127.0.0.1:{worker.port}") as channel:
        serve = channel.unary_stream("/vllm.grpc.engine.VllmEngine/GetTokenizer")
        archive = b"".join(map(first_bytes, serve(b"", timeout=PATIENCE)))
    entry = hub / f"models--{TOKENIZER.replace('/', '--')}"
    (entry / "refs").mkdir(parents=True)
    (entry / "refs/main").write_text("served")
    with zipfile.ZipFile(io.BytesIO(archive)) as files:
        files.extractall(entry / "snapshots/served")


def first_bytes(message):
    """What field 1 of a message holds, bytes; nothing if it is left out."""
    if not message.startswith(b"\x0a"):
        return b""
    length, shift, at = 0, 0, 1
    while True:
        byte = message[at]
        length |= (byte & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if byte < 0x80:
            return message[at : at + length]


def tokens(workers):
    """Tokens of prompts that the workers were sent, and of these the ones they did not compute again."""
    sums = {"prompt": 0.0, "cached": 0.0}
    for worker in workers:
        for kind, value in re.findall(r'^sconce_tokens_total{.*kind="(\w+)".*} (\S+)$', worker.metrics(), re.M):
            if kind in sums:
                sums[kind] += float(value)
    return sums


def drive(gateway, hub, clients, requests):
    """Has AIPerf send `requests` from as many `clients`; what it exports of them."""
    with tempfile.TemporaryDirectory(prefix="aiperf-") as found:
        argv = [sys.executable, f"{os.environ['AIPERF']}/bin/aiperf", "profile"]
        argv += ["--url", f"http://127.0.0.1:{gateway.port}", "--endpoint-type", "chat", "--streaming"]
        argv += ["--model", MODEL, "--tokenizer", TOKENIZER, "--use-server-token-count"]
        argv += ["--concurrency", clients, "--request-count", requests, "--random-seed", clients]
        argv += ["--prefix-prompt-length", PREFIX_TOKENS, "--num-prefix-prompts", PREFIXES]
        argv += ["--isl", END_TOKENS, "--isl-stddev", END_DEVIATION]
        argv += ["--osl", ANSWER_TOKENS, "--osl-stddev", ANSWER_DEVIATION]
        argv += ["--extra-inputs", "ignore_eos:true", "--extra-inputs", "temperature:0"]
        argv += ["--request-timeout-seconds", ROW_MAX, "--workers-max", SENDERS, "--record-processors", 1]
        argv += ["--no-gpu-telemetry", "--no-server-metrics", "--ui", "none", "--artifact-dir", found]
        env = {**os.environ, "PYTHONPATH": os.environ["AIPERF"], "HF_HUB_CACHE": str(hub)}
        env |= {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "NO_COLOR": "1"}
        # Its own processes would each compile what another has compiled.
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        said = run([str(part) for part in argv], env)
        summary = pathlib.Path(found, "profile_export_aiperf.json")
        if not summary.exists():
            raise AssertionError(f"AIPerf found nothing; it said:\n{said}")
        return json.loads(summary.read_text())


def run(argv, env):
    """Runs a program in a group of its own, which is ended with it; what it said."""
    with subprocess.Popen(
        argv, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    ) as child:
        try:
            said, _ = child.communicate(timeout=ROW_MAX)
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)
            raise
    if child.returncode != 0:
        raise AssertionError(f"AIPerf ended with {child.returncode}; it said:\n{said[-4000:]}")
    return said[-4000:]


def row(found, before, after, clients, requests):
    """A line of the table, and what is wrong with it."""

    def of(metric, part="avg"):
        return (found.get(metric) or {}).get(part) or 0.0

    errors = int(of("error_request_count"))
    done = int(of("request_count"))
    prompt, cached = (after[kind] - before[kind] for kind in ("prompt", "cached"))
    wrong = []
    if errors or done != requests:
        wrong.append(f"{clients} clients: expected {requests} answers, found {done}, and {errors} errors: "
                     f"{json.dumps(found.get('error_summary'))}")
    if prompt < of("total_usage_prompt_tokens"):
        wrong.append(f"{clients} clients: answers tell of {of('total_usage_prompt_tokens'):.0f} prompt tokens, "
                     f"metrics of {prompt:.0f}")
    cells = [str(clients), str(done), str(errors), f"{of('benchmark_duration'):.1f}"]
    cells += [f"{of('request_throughput'):.2f}", f"{of('output_token_throughput'):.1f}"]
    for metric in ("time_to_first_token", "inter_chunk_latency"):
        cells += [f"{of(metric, part):.1f}" for part in ("p50", "p99")]
    cells += [f"{prompt:.0f}", f"{cached / prompt:.1%}" if prompt else "none"]
    return cells, wrong


def main():
    parser = argparse.ArgumentParser(prog="load.sh SCONCE", description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=counted(CLIENTS_MAX), nargs="+", default=[1, 4, 16],
                        help="how many send at a time, a row of the table each")
    parser.add_argument("--requests", type=counted(REQUESTS_MAX), default=64, help="of each row")
    options = parser.parse_args()
    # Whoever ends this ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("load.py: told to end"))
    with contextlib.ExitStack() as ending:
        hub = pathlib.Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="hub-")))
        workers = [Worker("one"), Worker("two")]
        for worker in workers:
            ending.callback(worker.stop)
        gateway = Gateway(workers, "--policy", "cache_aware")
        ending.callback(gateway.stop)
        keep_tokenizer(workers[0], hub)
        print("| " + " | ".join(HEADER) + " |\n" + "|---" * len(HEADER) + "|", flush=True)
        problems = []
        for clients in options.clients:
            before = tokens(workers)
            found = drive(gateway, hub, clients, options.requests)
            cells, wrong = row(found, before, tokens(workers), clients, options.requests)
            print("| " + " | ".join(cells) + " |", flush=True)
            problems += wrong
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (AssertionError, subprocess.TimeoutExpired) as problem:
        sys.exit(f"load.py: {problem}")
