"""Tests of `gpu_peer.py` without PyTorch: the lines that it answers with, and the order in which it asks
the device for the time; run by `tests/run_all.sh`."""
import contextlib
import io
import sys
import unittest
from unittest import mock

import gpu_peer


class Event:
    """An event that notes when it is recorded."""

    def __init__(self, asked, number):
        self.asked, self.number = asked, number

    def record(self):
        self.asked.append(f"record {self.number}")

    def elapsed_time(self, _):
        return 5.0


def device(asked):
    """A PyTorch that notes what it is asked for."""
    torch = mock.MagicMock()
    torch.cuda.is_available.return_value = True
    events = iter(range(100))
    torch.cuda.Event = lambda enable_timing: Event(asked, next(events) % 2)
    torch.cuda.synchronize = lambda: asked.append("synchronize")
    torch.cuda._sleep = lambda cycles: asked.append("sleep")
    return torch


class Timing(unittest.TestCase):
    def test_all_calls_are_queued_while_the_device_sleeps(self):
        asked = []
        found = gpu_peer.seconds(device(asked), lambda: asked.append("work"))
        calls = ["work"] * gpu_peer.RUNS
        around = ["work", "synchronize", "sleep", "record 0", *calls, "record 1", "synchronize"]
        self.assertEqual(asked, around)
        self.assertAlmostEqual(found, 0.005 / gpu_peer.RUNS)


class Answers(unittest.TestCase):
    def answers(self, lines, torch):
        out = io.StringIO()
        with (
            mock.patch.dict(sys.modules, {"torch": torch}),
            mock.patch.object(sys, "stdin", io.StringIO(lines)),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            gpu_peer.main()
        return out.getvalue().splitlines()

    def test_a_line_is_answered_by_seconds_or_by_a_reason_and_the_next_one_too(self):
        first, second, third = self.answers("matmul 8\ncube 8\nmatmul 8\n", device([]))
        self.assertEqual(float(first), 0.001)
        self.assertIn("KeyError", second)
        self.assertEqual(third, first)

    def test_where_there_is_no_pytorch_that_is_the_reason(self):
        (answer,) = self.answers("matmul 8\n", None)
        self.assertIn("torch", answer)
        self.assertRaises(ValueError, float, answer)


if __name__ == "__main__":
    unittest.main()
