"""Prints what was measured: machine, table, optionally the bars it is held to, optionally JSON instead."""
import json
import os
import statistics
from pathlib import Path

from . import rounds
from .machine import machine

BARS = Path(__file__).resolve().parents[1] / "bars.json"


def add_options(parser):
    """The options that every comparison has."""
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each engine")
    parser.add_argument("--bars", metavar="NAME", help="judge by these ratios of bars.json, such as smollm2; "
                        "with FILE:NAME, of another file")
    parser.add_argument("--json", action="store_true", help="print JSON, every round in it")


def bars_of(name):
    """{case: {peer: least ratio}} of `NAME` or `FILE:NAME`; none without a name."""
    if not name:
        return {}
    path, _, name = name.rpartition(":")
    known = json.loads(Path(path or BARS).read_text())
    if name not in known:
        raise SystemExit(f"expected one of {', '.join(known)} as --bars, found {name}")
    return known[name]


def report(args, seen, about):
    """Prints `seen` of `rounds.in_turn`; `about` is more to say: {what: it}."""
    about = dict(machine=machine(), threads=args.threads, model=Path(args.file).name, rounds=args.rounds, **about)
    bars = bars_of(args.bars)
    if args.json:
        print(rounds.as_json(seen, about, bars))
        return
    print("; ".join(f"{name.replace('_', ' ')}: {words(value)}" for name, value in about.items()))
    print("tokens per second unless another unit is given; medians (ranges); ratios: medians of those of each round\n")
    print("\n".join(rounds.table(seen, bars)))


def words(value):
    """A value, or several by name."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {words(v)}" for name, v in value.items())
    return rounds.number(value) if isinstance(value, float) else str(value)


def medians(lists):
    """{name: median} of {name: values}."""
    return {name: statistics.median(values) for name, values in lists.items() if values}
