"""What the comparisons measure, by the names that tables and bars.json have for it."""
from .rounds import Case


def work_case(work, tokens, depth):
    """Tokens of a prompt or of a completion, after `depth` others, as compare.py measures them."""
    return Case(f"{work} {tokens}" + (f" at depth {depth}" if depth else ""))


def streams_cases(streams):
    """Of so many requests at a time: tokens of all, tokens of each, time to the first."""
    name = f"{streams} stream{'s' if streams > 1 else ''}"
    return Case(f"{name}, all"), Case(f"{name}, each"), Case(f"{name}, TTFT", "s", lower_is_better=True)


def first_token_case(connection):
    """The time to the first token on a connection that is `open` or `new`."""
    return Case(f"TTFT, {connection} connection", "ms", lower_is_better=True)
