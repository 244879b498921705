"""Serves one GGUF file by sconce and by llama.cpp's server in turn, and prints a markdown table.

    python benches/peers/serve.py streams FILE --llama-server PATH --four-bit FILE_IN_Q4_0
    python benches/peers/serve.py ttft FILE --llama-server PATH

streams: N requests at a time, each of random tokens and a greedy completion of a fixed length. Reported are the
completion tokens of all per second of the whole batch, the prompts' time included; those of one stream after
its first token; the time to the first token. Each measurement has a server of its own, warmed up by one batch.

ttft: prompts of 16 random tokens, one at a time, and the time until the first token is here, on a connection
that is open and on a new one. The servers of all engines run meanwhile, and idle but for the one that is asked.

Prompts are token ids, no two alike, and llama-server is told not to remember; sconce has its defaults. The
client is one process; its share of a core is reported. Needs grpcio-tools.
"""
import argparse
import asyncio
import statistics
import time
from functools import partial

from harness import llama_server, report, rounds
from harness.cases import first_token_case, streams_cases
from harness.report import positive, positives
from harness.tokens import RandomPrompts

# The servers may need a little more than prompt and completion.
CONTEXT_MARGIN = 64
WARM_UP_REQUESTS, WARM_UP_TOKENS = 5, 5


def start(args, engine, slots, context):
    """A server of `engine`: (kind, file)."""
    kind, file = engine
    if kind == "sconce":
        # Here, since it makes its stubs when it is imported, which nothing else needs.
        from harness import sconce

        return sconce.Server(args.sconce, file, args.threads)
    # It would save what nobody asks for again.
    return llama_server.Server(args.llama_server, file, args.threads, slots, context, ["--cache-ram", "0"])


def expect_tokens(answer, tokens):
    """Refuses an answer that was broken off: its times say nothing."""
    if answer.tokens != tokens:
        raise SystemExit(f"expected a completion of {tokens}, found {answer.tokens} tokens")


async def batch(client, prompts, tokens):
    """Answers to all prompts at once, seconds they took, and the client's own share of a core."""
    began, cpu = time.perf_counter(), time.process_time()
    answers = await asyncio.gather(*(client.complete(prompt, tokens) for prompt in prompts))
    seconds = time.perf_counter() - began
    for answer in answers:
        expect_tokens(answer, tokens)
    return answers, seconds, (time.process_time() - cpu) / seconds


def measure_streams(args, engine, client_cores, i):
    """One round of one engine: every number of streams. Appends what the client took of a core."""
    return asyncio.run(streams_round(args, engine, client_cores, RandomPrompts(args.vocab, args.seed + i)))


async def streams_round(args, engine, client_cores, random):
    """The cases of `measure_streams`."""
    values = {}
    for streams in args.streams:
        with start(args, engine, streams, args.prompt + args.completion + CONTEXT_MARGIN) as server:
            client = server.client()
            await batch(client, [random.draw(args.prompt) for _ in range(streams)], WARM_UP_TOKENS)
            prompts = [random.draw(args.prompt) for _ in range(streams)]
            answers, seconds, cores = await batch(client, prompts, args.completion)
            await client.close()
        of_all, of_each, first_token = streams_cases(streams)
        values[of_all] = streams * args.completion / seconds
        values[of_each] = statistics.median(answer.rate for answer in answers)
        values[first_token] = statistics.median(answer.first_token_seconds for answer in answers)
        client_cores.append(cores)
    return values


async def ask_one(server, prompt):
    """Milliseconds to the first token on a new connection, its making included."""
    client = server.client()
    answer = await client.complete(prompt, 1)
    await client.close()
    return first_token_ms(answer)


def first_token_ms(answer):
    """Milliseconds to the token of an answer that has one."""
    expect_tokens(answer, 1)
    return answer.first_token_seconds * 1e3


async def ttft_round(args, server, random):
    """Medians of a block of requests on open and on new connections."""
    client = server.client()
    warm = [first_token_ms(await client.one_token(random.draw(args.prompt)))
            for _ in range(WARM_UP_REQUESTS + args.requests)][WARM_UP_REQUESTS:]
    await client.close()
    cold = [await ask_one(server, random.draw(args.prompt)) for _ in range(args.requests)]
    return {
        first_token_case("open"): statistics.median(warm),
        first_token_case("new"): statistics.median(cold),
    }


def measure_ttft(args, engines):
    """All rounds, with the servers of all engines running."""
    servers = {}
    try:
        for name, engine in engines.items():
            servers[name] = start(args, engine, 1, args.prompt + CONTEXT_MARGIN)
        functions = {
            name: lambda i, server=server: asyncio.run(
                ttft_round(args, server, RandomPrompts(args.vocab, args.seed + i)))
            for name, server in servers.items()
        }
        return rounds.in_turn(functions, args.rounds)
    finally:
        for server in servers.values():
            server.stop()


def parse(words=None):
    """The command line, or `words` instead of it."""
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("part", choices=["streams", "ttft"])
    ap.add_argument("file", help="a GGUF file with its tokenizer")
    ap.add_argument("--four-bit", metavar="FILE", help="the same model in llama.cpp's fastest 4-bit form, for "
                    "another llama-server; compare.py --requantize makes one")
    ap.add_argument("--sconce", default="target/release/sconce", help="the binary, built with --release")
    ap.add_argument("--llama-server", default="llama-server", metavar="PATH", help="llama.cpp's server")
    ap.add_argument("--streams", type=positives, default=[1, 4, 8], help="requests at a time")
    ap.add_argument("--prompt", type=positive, help="tokens of a prompt (256; ttft: 16)")
    ap.add_argument("--completion", type=positive, default=128, help="tokens of a completion; ttft wants one")
    ap.add_argument("--requests", type=positive, default=12, help="ttft: requests of each kind in a round")
    ap.add_argument("--vocab", type=int, default=49152, help="token ids are below this")
    ap.add_argument("--seed", type=int, default=1)
    report.add_options(ap)
    args = ap.parse_args(words)
    args.prompt = args.prompt or (256 if args.part == "streams" else 16)
    return args


def main():
    args = parse()
    engines = {"sconce": ("sconce", args.file), "llama-server": ("llama", args.file)}
    if args.four_bit:
        engines["llama-server, 4-bit"] = ("llama", args.four_bit)
    about = dict(prompt_tokens=args.prompt, completion_tokens=args.completion if args.part == "streams" else 1)
    if args.part == "streams":
        cores = {name: [] for name in engines}
        functions = {name: partial(measure_streams, args, engine, cores[name]) for name, engine in engines.items()}
        seen = rounds.in_turn(functions, args.rounds)
        about["client_cores"] = report.medians(cores)
    else:
        seen = measure_ttft(args, engines)
    report.report(args, seen, about)


if __name__ == "__main__":
    main()
