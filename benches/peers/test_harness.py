"""Tests of what the scripts of this folder share; no peer is needed: run by `tests/run_all.sh`."""
import asyncio
import contextlib
import http.server
import io
import json
import subprocess
import sys
import threading
import unittest
from unittest import mock

import cache
import compare
import serve
from harness import engines, llama_server, processes, report, rounds
from harness.answer import Answer
from harness.cases import first_token_case, streams_cases, work_case
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

    def test_a_bar_without_a_measurement_stays_in_the_verdict(self):
        bars = {"decode 8": {"peer": 2, "absent": 1.5}, "prefill 8": {"peer": 4}, "prefill 16": {"peer": 4}}
        lines = list(rounds.table(SEEN, bars))
        self.assertTrue(lines[2].endswith("| 2 met, 1.5 not measured |"), lines[2])
        self.assertTrue(lines[4].endswith("| 4 not measured |"), lines[4])
        self.assertEqual(rounds.not_measured(SEEN, bars), ["prefill 16"])
        self.assertEqual(json.loads(rounds.as_json(SEEN, {}, bars))["bars_not_measured"], ["prefill 16"])

    def test_engines_take_turns_at_being_first(self):
        order = []
        engines = {name: lambda i, name=name: order.append(name) or {} for name in "abc"}
        with contextlib.redirect_stderr(io.StringIO()):
            rounds.in_turn(engines, 3)
        self.assertEqual("".join(order), "abcbcacab")

    def test_the_table_of_the_cache_has_the_same_medians_and_ratios(self):
        case = Case("repeat, again", "s", lower_is_better=True)
        seen = {"sconce": [{case: 0.25}, {case: 0.5}], "llama.cpp": [{case: 0.5}, {case: 2.0}]}
        lines = list(cache.table(seen, {case: {"prompt": 4096, "sconce": 65, "llama.cpp": 1}}))
        self.assertEqual(lines[2], "| repeat, again | 4096 | 65 | 1 | 0.375 | 1.250 | 3.0 |")
        self.assertEqual(lines[0].count("|"), lines[2].count("|"))

    def test_json_carries_every_round(self):
        row = json.loads(rounds.as_json(SEEN, {"threads": 2}))["results"][0]
        self.assertEqual(row["rounds"]["sconce"], [30.0, 10.0, 20.0])
        self.assertEqual(row["medians"]["peer"], 10.0)


class Bars(unittest.TestCase):
    def test_every_bar_is_a_ratio_of_a_peer(self):
        for name in ("smollm2", "hybrid"):
            for case, peers in report.bars_of(name).items():
                self.assertTrue(all(least > 1 for least in peers.values()), case)

    def test_every_bar_is_of_a_case_that_is_measured_by_default(self):
        args = compare.parse(["FILE"])
        measured = [work_case("prefill", n, 0) for n in args.prompts]
        measured += [work_case("decode", args.generate, depth) for depth in args.depths]
        measured += [case for n in serve.parse(["streams", "FILE"]).streams for case in streams_cases(n)]
        measured += [first_token_case(connection) for connection in ("open", "new")]
        for name in ("smollm2", "hybrid"):
            self.assertLessEqual(set(report.bars_of(name)), {case.label for case in measured}, name)


class Options(unittest.TestCase):
    def refusal(self, parse, words):
        said = io.StringIO()
        with contextlib.redirect_stderr(said), self.assertRaises(SystemExit) as refused:
            parse(words)
        self.assertEqual(refused.exception.code, 2, said.getvalue())
        return said.getvalue()

    def test_what_is_not_at_least_one_is_refused_by_its_option(self):
        for words in (["--rounds", "0"], ["--streams", "1,0"], ["--requests", "0"], ["--threads", "-1"]):
            self.assertIn(f"{words[0]}: expected at least 1", self.refusal(serve.parse, ["ttft", "FILE", *words]))

    def test_unknown_bars_are_refused_before_anything_runs(self):
        self.assertIn("smollm2", self.refusal(compare.parse, ["FILE", "--bars", "smollm3"]))
        self.assertIn("--bars", self.refusal(compare.parse, ["FILE", "--bars", "/nowhere.json:smollm2"]))


class Engines(unittest.TestCase):
    def test_engines_that_read_no_hybrid_are_left_out(self):
        args = compare.parse(["--hybrid", "FOLDER"])
        for engine in (engines.candle, engines.mistral_rs):
            with self.assertRaisesRegex(processes.Unavailable, "reads no hybrid"):
                engine(args, "FILE")

    def test_sconce_warms_up_as_its_peers_do_and_measures_no_peaks(self):
        lines = []
        args = compare.parse(["FILE", "--sconce", sys.executable])
        with mock.patch.object(engines, "run", lambda found, threads: lines.extend(found) or []):
            engines.sconce(args, "FILE")(0)
        self.assertEqual(len(lines), 2)
        for line in lines:
            self.assertEqual(line[line.index("--warm-up") + 1], engines.WARM_UP_TOKENS)
            self.assertIn("--no-peaks", line)


class Processes(unittest.TestCase):
    def test_a_server_that_fails_to_start_does_not_stay(self):
        waiting = [sys.executable, "-c", "input()"]
        process = subprocess.Popen(waiting, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        with process.stdin, self.assertRaises(KeyboardInterrupt), processes.stopped_on_failure(process):
            raise KeyboardInterrupt
        self.assertIsNotNone(process.returncode)
        self.assertTrue(process.stdout.closed)

    def test_a_server_that_ends_is_not_waited_for(self):
        process = subprocess.Popen([sys.executable, "-c", ""])
        with self.assertRaises(SystemExit), processes.stopped_on_failure(process):
            processes.wait_until(lambda: False, process, ["server"])
        self.assertIsNotNone(process.returncode)


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


class Busy(http.server.BaseHTTPRequestHandler):
    """A server that refuses every request as llama-server does while it loads."""

    def do_POST(self):
        self.send_response(503)
        self.end_headers()
        self.wfile.write(b'{"error": {"message": "loading"}}')

    def log_message(self, *_):
        pass


class FirstTokens(unittest.TestCase):
    def test_a_refused_request_is_no_token(self):
        with http.server.HTTPServer(("127.0.0.1", 0), Busy) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            client = llama_server.Client(server.server_port)
            with self.assertRaisesRegex(SystemExit, "found 503"):
                asyncio.run(client.one_token([1]))
            asyncio.run(client.close())
            server.shutdown()

    def test_an_answer_without_its_token_is_not_timed(self):
        self.assertEqual(serve.first_token_ms(Answer(1.0, 1.5, 2.0, 1)), 500.0)
        for tokens in (0, 2):
            with self.assertRaisesRegex(SystemExit, f"of 1, found {tokens}"):
                serve.first_token_ms(Answer(1.0, 1.5, 2.0, tokens))


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
