"""Prints what was measured: machine, table, optionally the bars it is held to, optionally JSON instead."""
import argparse
import json
import os
import statistics
from pathlib import Path

from . import rounds
from .machine import machine

BARS = Path(__file__).resolve().parents[1] / "bars.json"


def positive(text):
    """A number of at least 1, of an option."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {number}")
    return number


def positives(text):
    """Numbers of at least 1, separated by commas, of an option."""
    return [positive(n) for n in text.split(",")]


def add_options(parser):
    """The options that every comparison has."""
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--threads", type=positive, default=os.cpu_count(), help="of each engine")
    parser.add_argument("--bars", metavar="NAME", type=bars_of, default={}, help="judge by these ratios of "
                        "bars.json, such as smollm2; with FILE:NAME, of another file")
    parser.add_argument("--json", action="store_true", help="print JSON, every round in it")


def bars_of(name):
    """{case: {peer: least ratio}} of `NAME` or `FILE:NAME`, of an option."""
    path, _, name = name.rpartition(":")
    try:
        known = json.loads(Path(path or BARS).read_text())
    except (OSError, ValueError) as why:
        raise argparse.ArgumentTypeError(f"expected bars in JSON: {why}")
    if name not in known:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(known)}, found {name}")
    return known[name]


def report(args, seen, about):
    """Prints `seen` of `rounds.in_turn`; `about` is more to say: {what: it}."""
    about = dict(machine=machine(), threads=args.threads, model=Path(args.file).name, rounds=args.rounds, **about)
    if args.json:
        print(rounds.as_json(seen, about, args.bars))
        return
    print("; ".join(f"{name.replace('_', ' ')}: {words(value)}" for name, value in about.items()))
    print("tokens per second unless another unit is given; medians (ranges); ratios: medians of those of each round\n")
    print("\n".join(rounds.table(seen, args.bars)))
    if missing := rounds.not_measured(seen, args.bars):
        print(f"\nnot measured here, but with a bar: {'; '.join(missing)}")


def words(value):
    """A value, or several by name."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {words(v)}" for name, v in value.items())
    return rounds.number(value) if isinstance(value, float) else str(value)


def medians(lists):
    """{name: median} of {name: values}."""
    return {name: statistics.median(values) for name, values in lists.items() if values}
