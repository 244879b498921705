"""Runs engines in turn, and makes medians, ratios and a table of what they measured.

Each round runs every engine once, in an order that turns from round to round, so that a machine that slows
down meanwhile slows them all. A ratio is the median over rounds of sconce against the peer in the same round:
above 1 sconce is better.
"""
import json
import statistics
import sys
from dataclasses import dataclass

OURS = "sconce"


@dataclass(frozen=True)
class Case:
    """What was measured, such as `prefill 512`, in tokens per second unless it says otherwise."""

    label: str
    unit: str = ""
    lower_is_better: bool = False

    def __str__(self):
        return f"{self.label}, {self.unit}" if self.unit else self.label


def number(value):
    """Three digits that matter, or all before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def in_turn(engines, rounds):
    """Calls `engines`, {name: function of the round's index -> {case: value}}: {name: [values of a round]}."""
    seen = {name: [] for name in engines}
    names = list(engines)
    for i in range(rounds):
        turn = i % len(names)
        for name in names[turn:] + names[:turn]:
            values = engines[name](i)
            seen[name].append(values)
            report = ", ".join(f"{case} {number(value)}" for case, value in values.items())
            print(f"round {i + 1}: {name}: {report}", file=sys.stderr, flush=True)
    return seen


def values_of(seen, name, case):
    """What one engine measured in the rounds in which it did."""
    return [values[case] for values in seen[name] if case in values]


def median(seen, name, case):
    """Of what one engine measured; None where it did not."""
    found = values_of(seen, name, case)
    return statistics.median(found) if found else None


def ratio(seen, peer, case):
    """Median over rounds; None where one of them did not measure this."""
    both = [(ours[case], theirs[case]) for ours, theirs in zip(seen[OURS], seen[peer])
            if case in ours and case in theirs]
    if not both:
        return None
    return statistics.median(b / a if case.lower_is_better else a / b for a, b in both)


def cases_of(seen):
    """Every case that any engine measured, sconce's first."""
    names = sorted(seen, key=lambda name: name != OURS)
    return list(dict.fromkeys(case for name in names for values in seen[name] for case in values))


def verdicts(seen, case, bars):
    """What the bars of a case say, in their order: `4 missed, 1.5 met, 2 not measured`."""
    said = []
    for peer, bar in bars.get(case.label, {}).items():
        found = ratio(seen, peer, case) if peer in seen else None
        verdict = "not measured" if found is None else "met" if found >= bar else "missed"
        said.append(f"{bar:g} {verdict}")
    return ", ".join(said)


def not_measured(seen, bars):
    """Cases with bars that no engine measured, so that they have no row."""
    labels = {case.label for case in cases_of(seen)}
    return [label for label in bars if label not in labels]


def row(cells):
    """A line of a table in markdown."""
    return f"| {' | '.join(map(str, cells))} |"


def header(cells):
    """The lines above the rows."""
    return [row(cells), "|---" * len(cells) + "|"]


def table(seen, bars=None):
    """Lines of markdown, a row for each case; with `bars`, {case: {peer: ratio}}, a column that judges."""
    peers = [name for name in seen if name != OURS]
    yield from header(["work", *seen, *(f"{OURS} / {peer}" for peer in peers), *(["bar"] if bars else [])])
    for case in cases_of(seen):
        cells = [str(case)]
        for name in seen:
            found = values_of(seen, name, case)
            cells.append(f"{number(median(seen, name, case))} ({number(min(found))} to {number(max(found))})"
                         if found else "not measured")
        ratios = (ratio(seen, peer, case) for peer in peers)
        cells += ["" if found is None else f"{found:.2f}" for found in ratios]
        if bars:
            cells.append(verdicts(seen, case, bars))
        yield row(cells)


def as_json(seen, about, bars=None):
    """Everything as JSON: `about`, every round's values, medians, ratios, bars."""
    peers = [name for name in seen if name != OURS]
    rows = []
    for case in cases_of(seen):
        found = {name: values_of(seen, name, case) for name in seen}
        rows.append(dict(
            work=case.label, unit=case.unit or "tokens/s", lower_is_better=case.lower_is_better, rounds=found,
            medians={name: median(seen, name, case) for name, values in found.items() if values},
            ratios={peer: ratio(seen, peer, case) for peer in peers}, bars=(bars or {}).get(case.label, {}),
        ))
    return json.dumps({**about, "results": rows, "bars_not_measured": not_measured(seen, bars or {})}, indent=1)
