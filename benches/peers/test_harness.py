"""Tests of what the scripts of this folder share; no peer is needed: run by `tests/run_all.sh`."""
import asyncio
import contextlib
import io
import json
import unittest

from harness import llama_server, report, rounds
from harness.rounds import Case
from harness.tokens import RandomPrompts, bench_tokens

SEEN = {
    "sconce": [{Case("decode 8"): 30.0, Case("TTFT", "s", True): 1.0}, {Case("decode 8"): 10.0},
               {Case("decode 8"): 20.0}],
    "peer": [{Case("decode 8"): 10.0, Case("TTFT", "s", True): 3.0}, {Case("decode 8"): 10.0},
             {Case("decode 8"): 5.0, Case("prefill 8"): 1.0}],
}


class Rounds(unittest.TestCase):
    def test_a_ratio_is_the_median_of_the_ratios_within_rounds(self):
        self.assertEqual(rounds.ratio(SEEN, "peer", Case("decode 8")), 3.0)

    def test_a_ratio_is_above_one_where_sconce_takes_less_time(self):
        self.assertEqual(rounds.ratio(SEEN, "peer", Case("TTFT", "s", True)), 3.0)

    def test_what_one_engine_did_not_measure_has_no_ratio(self):
        self.assertIsNone(rounds.ratio(SEEN, "peer", Case("prefill 8")))

    def test_a_table_judges_by_the_bars_and_says_what_was_not_measured(self):
        lines = list(rounds.table(SEEN, {"decode 8": {"peer": 3.5}, "TTFT": {"peer": 2}}))
        self.assertEqual(lines[2], "| decode 8 | 20 (10 to 30) | 10 (5 to 10) | 3.00 | 3.5 missed |")
        self.assertEqual(lines[3], "| TTFT, s | 1 (1 to 1) | 3 (3 to 3) | 3.00 | 2 met |")
        self.assertEqual(lines[4], "| prefill 8 | not measured | 1 (1 to 1) |  |  |")

    def test_engines_take_turns_at_being_first(self):
        order = []
        engines = {name: lambda i, name=name: order.append(name) or {} for name in "abc"}
        with contextlib.redirect_stderr(io.StringIO()):
            rounds.in_turn(engines, 3)
        self.assertEqual("".join(order), "abcbcacab")

    def test_json_carries_every_round(self):
        row = json.loads(rounds.as_json(SEEN, {"threads": 2}))["results"][0]
        self.assertEqual(row["rounds"]["sconce"], [30.0, 10.0, 20.0])
        self.assertEqual(row["medians"]["peer"], 10.0)


class Bars(unittest.TestCase):
    def test_every_bar_is_a_ratio_of_a_peer(self):
        for name in ("smollm2", "hybrid"):
            for case, peers in report.bars_of(name).items():
                self.assertTrue(all(least > 1 for least in peers.values()), case)

    def test_an_unknown_name_is_refused(self):
        with self.assertRaises(SystemExit):
            report.bars_of("smollm3")


class Tokens(unittest.TestCase):
    def test_tokens_are_those_of_the_benchmark_in_rust(self):
        # Worked out from the generator's definition, state 0x5eed.
        first = (0x5EED * 6364136223846793005 + 1442695040888963407) % 2**64
        self.assertEqual(bench_tokens(2, 49152)[0], (first >> 33) % 49152)

    def test_prompts_differ_and_a_seed_makes_them_again(self):
        prompts = RandomPrompts(49152, 1)
        first, second = prompts.draw(16), prompts.draw(16)
        self.assertNotEqual(first, second)
        self.assertEqual(RandomPrompts(49152, 1).draw(16), first)


class Events(unittest.TestCase):
    def test_events_are_put_together_from_chunks_that_cut_them(self):
        stream = b'data: {"a":1}\n\n: ping\n\ndata: {"b":2}\n\n'
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (stream[:9], stream[9:30], stream[30:]))
        response = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"

        async def read():
            reader = asyncio.StreamReader()
            reader.feed_data(response)
            reader.feed_eof()
            return [event async for event in llama_server.events(reader)]

        self.assertEqual(asyncio.run(read()), [b'{"a":1}', b'{"b":2}'])


if __name__ == "__main__":
    unittest.main()
