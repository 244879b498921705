"""Workers and a gateway as processes on loopback ports, and what an HTTP client sees of them."""

import contextlib
import functools
import http.client
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

import grpc

# Longest that anything here is waited for, far above what it needs.
PATIENCE = 60.0
# Between two looks at something that is waited for.
LOOK = 0.05
# Most characters of what a process said that a failure shows.
SAID_MAX = 4000

MODEL = "smollm2"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(what, holds, processes):
    """Waits until `holds` returns something, and returns that; fails at once if one of `processes` ends."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        found = holds()
        if found:
            return found
        for process in processes:
            process.run_on(LOOK / len(processes))
    said = "".join(f"; {process.name} said:\n{process.last()}" for process in processes)
    raise AssertionError(f"{what}: not within {PATIENCE:.0f} s{said}")


def metrics(port):
    """What Prometheus would read from a port."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()


class Process:
    """A child whose output goes to a file."""

    def __init__(self, name, argv, env=None):
        self.name = name
        self.log = tempfile.NamedTemporaryFile(prefix=f"{name}-", suffix=".log", delete=False)
        self.child = subprocess.Popen(
            argv,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "NO_COLOR": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", **(env or {})},
        )

    def text(self):
        return pathlib.Path(self.log.name).read_text(errors="replace")

    def last(self):
        """The end of what it said."""
        return self.text()[-SAID_MAX:]

    def run_on(self, seconds):
        """Waits; fails as soon as it ends."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self.child.wait(seconds)
            raise AssertionError(f"{self.name} ended with {code}; it said:\n{self.last()}")

    def kill(self):
        self.child.send_signal(signal.SIGKILL)
        self.child.wait(PATIENCE)

    def stop_gently(self):
        """Asks it to end, and waits."""
        self.child.send_signal(signal.SIGTERM)
        self.child.wait(PATIENCE)

    def stop(self):
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
            try:
                self.child.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.kill()
        self.log.close()
        os.unlink(self.log.name)


class Worker(Process):
    """A sconce with SmolLM2, or another model."""

    def __init__(self, name, path=None, **settings):
        self.port = free_port()
        path = path or os.environ["SCONCE_TEST_MODEL"]
        env = {
            "SCONCE__SERVER__WITHDRAWAL": "2s",
            "SCONCE__ENGINE__CONTEXT_LENGTH_MAX": "4096",
            "SCONCE__ENGINE__MEMORY_BUDGET": "2GiB",
            "SCONCE__ENGINE__THREADS": "1",
            "SCONCE__TELEMETRY__LOG_FORMAT": "json",
            **{key.upper(): str(value) for key, value in settings.items()},
        }
        listen = f"127.0.0.1:{self.port}"
        super().__init__(
            name,
            [os.environ["SCONCE"], "serve", "--listen", listen, "--model", f"{MODEL}={path}"],
            env,
        )
        self.url = f"grpc://{listen}"

    def is_idle(self):
        """Whether no request runs or waits, by the first field of GetServerInfo, left out at 0."""
        with grpc.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            info = channel.unary_unary("/vllm.grpc.engine.VllmEngine/GetServerInfo")
            return not info(b"", timeout=PATIENCE).startswith(b"\x08")

    def metrics(self):
        """What Prometheus would read."""
        return metrics(self.port)

    def gauge(self, name):
        """A metric's value that has no labels."""
        return float(re.search(rf"^{name} (\S+)$", self.metrics(), re.M)[1])


class Gateway(Process):
    """SMG in front of workers, once it has their model and tokenizer."""

    def __init__(self, workers, *options):
        self.port, self.metrics_port = free_port(), free_port()
        argv = [os.environ["SMG"], "launch", "--host", "127.0.0.1", "--port", str(self.port)]
        argv += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(self.metrics_port)]
        argv += ["--log-level", "warn", "--worker-startup-check-interval", "1", "--worker-urls"]
        argv += [worker.url for worker in workers] + list(options)
        super().__init__("smg", [sys.executable, *argv])
        try:
            ready = functools.partial(self.is_ready, len(workers))
            until("the gateway is ready", ready, [self, *workers])
        except AssertionError:
            self.stop()
            raise

    def is_ready(self, workers):
        with contextlib.suppress(OSError, http.client.HTTPException):
            ready = self.get("/readiness")[0] == 200
            known = [worker for worker in self.get("/workers")[1]["workers"] if worker["is_healthy"]]
            tokenizers = self.get("/v1/tokenizers")[1].get("tokenizers")
            return ready and len(known) == workers and bool(tokenizers)
        return False

    def was_told_by(self, workers):
        """Whether it has been told what each of these remembers."""
        told = r'^smg_kv_event_batches_total\{worker="(.+)",disposition="snapshot"\} [1-9]'
        urls = re.findall(told, metrics(self.metrics_port), re.M)
        return {worker.url for worker in workers} == set(urls)

    def request(self, method, path, body=None, timeout=PATIENCE):
        """Status and answer, parsed if it is JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with contextlib.closing(connection):
            payload = None if body is None else json.dumps(body)
            connection.request(method, path, payload, {"content-type": "application/json"})
            response = connection.getresponse()
            data = response.read().decode("utf-8", "replace")
        with contextlib.suppress(ValueError):
            return response.status, json.loads(data)
        return response.status, data

    def get(self, path):
        return self.request("GET", path)

    def post(self, path, body, **options):
        return self.request("POST", path, body, **options)

    def chat(self, text, **options):
        return self.post("/v1/chat/completions", chat(text, **options))

    @contextlib.contextmanager
    def asking(self, body):
        """A chat completion that was asked for; whoever leaves hangs up."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            path, headers = "/v1/chat/completions", {"content-type": "application/json"}
            connection.request("POST", path, json.dumps(body), headers)
            yield connection

    @contextlib.contextmanager
    def streaming(self, body):
        """An open stream of events."""
        with self.asking({**body, "stream": True}) as connection:
            response = connection.getresponse()
            assert response.status == 200, (response.status, response.read())
            with contextlib.closing(response):
                yield events(response)


def events(response):
    """The JSON of each event, until the last."""
    for line in response:
        match = re.match(rb"data:\s*(.*)", line.strip())
        if match and match[1] != b"[DONE]":
            yield json.loads(match[1])


def chat(text, **options):
    """A chat completion's body, greedy."""
    messages = text if isinstance(text, list) else [{"role": "user", "content": text}]
    return {"model": MODEL, "messages": messages, "temperature": 0, **options}


def cached_tokens(body):
    """Prompt tokens of an answer that were not computed again."""
    return ((body["usage"].get("prompt_tokens_details") or {}).get("cached_tokens")) or 0
