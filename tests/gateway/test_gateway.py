"""SMG in front of two workers: chats, refusals, routing by what is remembered, clients that go away."""

import functools
import http.client
import json
import threading
import unittest

from processes import MODEL, Gateway, Worker, cached_tokens, chat, until

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TOPICS = ["rivers", "bridges", "clouds", "engines"]


def weather(*cities):
    """A conversation in which the assistant called the tool for every city but the last: small models
    do what was done before."""
    messages = []
    for city in cities:
        call = '{"name": "get_weather", "arguments": {"city": "%s"}}' % city
        messages += [
            {"role": "user", "content": f"Weather in {city}?"},
            {"role": "assistant", "content": f"<tool_call>\n{call}\n</tool_call>"},
        ]
    return messages[:-1]


def topic(name):
    """A conversation's first message, long enough for some blocks of 64 tokens."""
    return " ".join(f"{name} fact number {i} is worth telling." for i in range(24))


def is_paris(call):
    """Whether the tool was called for the last city, with arguments as JSON in a text."""
    function = call["function"]
    return function["name"] == "get_weather" and json.loads(function["arguments"]) == {"city": "Paris"}


class BehindAGateway(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.workers = [Worker("one"), Worker("two")]
        for worker in cls.workers:
            cls.addClassCleanup(worker.stop)
        cls.gateway = Gateway(cls.workers, "--policy", "cache_aware", "--tool-call-parser", "qwen")
        cls.addClassCleanup(cls.gateway.stop)

    def test_a_chat_is_answered_with_usage(self):
        status, body = self.gateway.chat("Name the capital of Germany.", max_tokens=16)
        self.assertEqual(status, 200, body)
        self.assertIn("Berlin", body["choices"][0]["message"]["content"])
        usage = body["usage"]
        self.assertGreater(usage["prompt_tokens"], 20)
        self.assertLessEqual(usage["completion_tokens"], 16)
        self.assertEqual(usage["total_tokens"], usage["prompt_tokens"] + usage["completion_tokens"])

    def test_a_streamed_chat_says_the_same(self):
        body = chat("Name three colours.", max_tokens=24)
        whole = self.gateway.post("/v1/chat/completions", body)[1]
        with self.gateway.streaming({**body, "stream_options": {"include_usage": True}}) as said:
            events = list(said)
        deltas = [event["choices"][0]["delta"] for event in events if event["choices"]]
        text = "".join(delta.get("content") or "" for delta in deltas)
        self.assertEqual(text, whole["choices"][0]["message"]["content"])
        usage = events[-1]["usage"]
        for key in ("prompt_tokens", "completion_tokens"):
            self.assertEqual(usage[key], whole["usage"][key], key)
        reasons = [event["choices"][0].get("finish_reason") for event in events if event["choices"]]
        self.assertEqual(reasons[-1], whole["choices"][0]["finish_reason"])

    def test_the_model_ends_by_itself_and_at_stop_strings(self):
        _, body = self.gateway.chat("Say hello.", max_tokens=64)
        self.assertEqual(body["choices"][0]["finish_reason"], "stop")
        text = body["choices"][0]["message"]["content"]
        stop = text.split()[1]
        _, cut = self.gateway.chat("Say hello.", max_tokens=64, stop=[stop])
        self.assertEqual(cut["choices"][0]["message"]["content"], text[: text.index(stop)])
        self.assertLess(cut["usage"]["completion_tokens"], body["usage"]["completion_tokens"])

    def test_several_choices(self):
        status, body = self.gateway.chat("Tell a tale.", max_tokens=8, n=3, temperature=1.0, seed=5)
        self.assertEqual(status, 200, body)
        self.assertEqual(sorted(choice["index"] for choice in body["choices"]), [0, 1, 2])

    def test_logprobs(self):
        status, body = self.gateway.chat("Hi", max_tokens=4, logprobs=True, top_logprobs=2)
        self.assertEqual(status, 200, body)
        content = body["choices"][0]["logprobs"]["content"]
        self.assertGreaterEqual(len(content), 1)
        self.assertEqual(content[0]["logprob"], content[0]["top_logprobs"][0]["logprob"])

    def test_what_cannot_be_kept_is_an_error_and_no_text(self):
        schema = {"type": "object", "properties": {"city": {"type": "string"}}}
        asked = [
            {"response_format": {"type": "json_object"}},
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}},
            {"tools": [TOOL], "tool_choice": "required"},
        ]
        for options in asked:
            status, body = self.gateway.chat("Paris?", max_tokens=8, **options)
            self.assertIn(status, (400, 501), body)
            self.assertNotIn("choices", body)
            self.assertIn("json", str(body))
        status, body = self.gateway.chat("Paris?", max_tokens=8, tools=[TOOL])
        self.assertEqual(status, 200, "a tool that need not be called is no constraint")
        status, body = self.gateway.post("/v1/embeddings", {"model": MODEL, "input": "x"})
        self.assertGreaterEqual(status, 400, body)

    def test_a_call_of_a_tool_that_the_model_writes_comes_as_one(self):
        body = chat(weather("Oslo", "Rome", "Paris"), max_tokens=48, tools=[TOOL], tool_choice="auto")
        status, whole = self.gateway.post("/v1/chat/completions", body)
        self.assertEqual(status, 200, whole)
        choice = whole["choices"][0]
        self.assertEqual(choice["finish_reason"], "tool_calls", choice)
        self.assertFalse(choice["message"]["content"], choice)
        self.assertEqual([is_paris(call) for call in choice["message"]["tool_calls"]], [True], choice)

        with self.gateway.streaming(body) as said:
            choices = [event["choices"][0] for event in said if event["choices"]]
        self.assertEqual(choices[-1]["finish_reason"], "tool_calls", choices)
        call = {"name": "", "arguments": ""}
        for choice in choices:
            for part in choice["delta"].get("tool_calls") or []:
                self.assertEqual(part["index"], 0)
                for key in call:
                    call[key] += part["function"].get(key) or ""
        self.assertTrue(is_paris({"function": call}), choices)

    def test_the_second_turn_goes_where_the_first_is_remembered(self):
        first = {name: chat(topic(name), max_tokens=4) for name in TOPICS}
        answers = {}
        for name in TOPICS:
            status, body = self.gateway.post("/v1/chat/completions", first[name])
            self.assertEqual(status, 200, body)
            answers[name] = body
        # In another order, so that no turn-taking gets it right.
        for name in reversed(TOPICS):
            messages = first[name]["messages"] + [
                answers[name]["choices"][0]["message"],
                {"role": "user", "content": "And then?"},
            ]
            messages = [{key: message[key] for key in ("role", "content")} for message in messages]
            status, body = self.gateway.chat(messages, max_tokens=4)
            self.assertEqual(status, 200, body)
            prompt = answers[name]["usage"]["prompt_tokens"]
            self.assertGreater(cached_tokens(body), prompt // 2, f"{name}: {body['usage']}")

    def test_a_client_that_leaves_a_stream_frees_the_worker(self):
        with self.gateway.streaming(chat("Count.", max_tokens=4000, ignore_eos=True)) as said:
            for _ in range(4):
                next(said)
        self.until_idle()

    def test_a_client_that_leaves_an_answer_frees_the_worker(self):
        with self.gateway.asking(chat("Count.", max_tokens=4000, ignore_eos=True)):
            until("it runs", lambda: not self.is_idle(), self.workers)
        self.until_idle()

    def is_idle(self):
        return all(worker.is_idle() for worker in self.workers)

    def until_idle(self):
        until("no request runs", self.is_idle, self.workers)


class AfterAnotherGateway(unittest.TestCase):
    def test_a_prompt_goes_where_events_alone_tell_that_it_is_remembered(self):
        workers = [Worker(name, "sim:") for name in ("one", "two")]
        for worker in workers:
            self.addCleanup(worker.stop)
        topics = [f"{name} {number}" for name in TOPICS for number in (1, 2)]
        held = [topics[::2], topics[1::2]]
        for worker, names in zip(workers, held):
            other = Gateway([worker])
            try:
                for name in names:
                    status, body = other.chat(topic(name), max_tokens=4)
                    self.assertEqual(status, 200, body)
            finally:
                other.stop()

        # It has routed nothing before.
        gateway = Gateway(workers, "--policy", "cache_aware")
        self.addCleanup(gateway.stop)
        told = functools.partial(gateway.was_told_by, workers)
        until("it is told what both remember", told, [gateway, *workers])
        # All of one worker, then all of the other: no turn-taking gets that right.
        for name in held[0] + held[1]:
            status, body = gateway.chat(topic(name) + " And then?", max_tokens=4)
            self.assertEqual(status, 200, body)
            usage = body["usage"]
            self.assertGreater(cached_tokens(body), usage["prompt_tokens"] // 2, f"{name}: {usage}")


class UnderPressure(unittest.TestCase):
    # A step of a simulated model takes its time, so that no machine ends this many within hours.
    SLOW = "sim:decode_us=100000,context=131072"
    ENDLESS = chat("Count.", max_tokens=100_000, ignore_eos=True)

    def setUp(self):
        self.worker = Worker(
            "small",
            self.SLOW,
            sconce__engine__sequences_max=1,
            sconce__engine__waiting_max=1,
            sconce__engine__context_length_max=131072,
        )
        self.addCleanup(self.worker.stop)
        self.gateway = Gateway([self.worker])
        self.addCleanup(self.gateway.stop)

    def test_a_full_queue_is_429(self):
        processes = [self.worker, self.gateway]
        with self.gateway.streaming(self.ENDLESS) as said:
            # One that has said something has left the queue.
            next(event for event in said if event["choices"][0]["delta"].get("content"))
            with self.gateway.asking(self.ENDLESS):
                until("one waits", lambda: self.worker.gauge("sconce_queue_requests") == 1, processes)
                status, body = self.gateway.chat("Room for one more?", max_tokens=2)
                self.assertEqual(status, 429, body)
                self.assertEqual(body["error"]["type"], "rate_limit_error")
                self.assertIn("queue of completions is full", body["error"]["message"])
                self.assertEqual(self.worker.gauge("sconce_queue_requests"), 1)
        until("both have left", self.worker.is_idle, processes)
        status, body = self.gateway.chat("And now?", max_tokens=2, ignore_eos=True)
        self.assertEqual(status, 200, body)
        self.assertEqual(body["usage"]["completion_tokens"], 2)


class Failover(unittest.TestCase):
    """One of two workers goes, by a signal, while requests come: none fails that can be asked again."""

    def setUp(self):
        # A step takes its time, so that no machine is done before a worker goes.
        self.workers = [Worker(name, "sim:decode_us=20000") for name in ("one", "two")]
        for worker in self.workers:
            self.addCleanup(worker.stop)
        self.gateway = Gateway(
            self.workers, "--policy", "round_robin", "--health-check-interval-secs", "1"
        )
        self.addCleanup(self.gateway.stop)

    def under_load(self, act, lasting):
        """Short requests from four clients while `act` runs; every status."""
        over, statuses = threading.Event(), []

        def client(number):
            turn = 0
            while not over.is_set():
                turn += 1
                try:
                    status, body = self.gateway.chat(f"Client {number}, turn {turn}.", max_tokens=6)
                except (OSError, http.client.HTTPException) as problem:
                    # No answer at all: told here, for a thread that ends of it fails no test.
                    status, body = None, repr(problem)
                statuses.append((status, body if status != 200 else ""))

        clients = [threading.Thread(target=client, args=(i,)) for i in range(4)]
        for thread in clients:
            thread.start()
        until("requests are answered", lambda: len(statuses) >= 8, [self.gateway])
        act()
        before = len(statuses)
        until("and go on", lambda: len(statuses) >= before + lasting, [self.gateway])
        over.set()
        for thread in clients:
            thread.join()
        return statuses

    def test_a_drained_worker_loses_nothing(self):
        statuses = self.under_load(self.workers[0].stop_gently, 12)
        self.assertEqual([status for status in statuses if status[0] != 200], [])
        self.assertEqual(self.workers[0].child.returncode, 0)

    def test_a_killed_worker_loses_nothing_under_load(self):
        statuses = self.under_load(self.workers[0].kill, 12)
        self.assertEqual([status for status in statuses if status[0] != 200], [])
        status, body = self.gateway.chat("Still there?", max_tokens=4)
        self.assertEqual(status, 200, body)

    def test_a_worker_killed_in_the_middle_of_answers_loses_none(self):
        """Of what is not streamed a worker says nothing before its end, so the gateway asks again."""
        answers = []

        def ask(number):
            answers.append(self.gateway.chat(f"Client {number}.", max_tokens=300, ignore_eos=True))

        clients = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
        for thread in clients:
            thread.start()
        until(
            "both workers run requests",
            lambda: not any(worker.is_idle() for worker in self.workers),
            [self.gateway, *self.workers],
        )
        self.workers[0].kill()
        self.assertEqual(answers, [], "it was killed before anything was answered")
        for thread in clients:
            thread.join()
        self.assertEqual([status for status, _ in answers], [200] * 4, answers)
        for _, body in answers:
            self.assertEqual(body["usage"]["completion_tokens"], 300)

    def test_a_killed_worker_ends_its_streams_with_an_error(self):
        """What a client has had tokens of, no gateway can ask for again; it says so."""
        body = chat("Count.", max_tokens=300, ignore_eos=True)
        with self.gateway.streaming(body) as one, self.gateway.streaming(body) as other:
            for said in (one, other):
                for _ in range(4):
                    next(said)
            self.workers[0].kill()
            lasts = [list(said)[-1] for said in (one, other)]
        errors = [last["error"]["type"] for last in lasts if "error" in last]
        self.assertEqual(errors, ["stream_error"], lasts)
        reasons = [last["choices"][0]["finish_reason"] for last in lasts if "choices" in last]
        self.assertEqual(reasons, ["length"], lasts)


if __name__ == "__main__":
    unittest.main()
