"""llama.cpp's server and a client of its native interface."""
import asyncio
import http.client
import json
import subprocess
import time
from http import HTTPStatus

from . import processes
from .answer import Answer


class Server:
    """A running server; all settings but those given are its defaults, continuous batching among them."""

    def __init__(self, binary, file, threads, slots, context, options=()):
        """`context` is tokens of each slot: the server divides its whole context by the slots."""
        self.port = processes.free_port()
        line = [
            processes.program(binary), "--model", str(file), "--host", "127.0.0.1", "--port", str(self.port),
            "--ctx-size", str(context * slots), "--parallel", str(slots),
            "--threads", str(threads), "--threads-batch", str(threads), *options,
        ]
        self.process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with processes.stopped_on_failure(self.process):
            processes.wait_until(self.healthy, self.process, line)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        """Ends it."""
        processes.stop(self.process)

    def healthy(self):
        """Whether it has loaded its model."""
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False

    def post(self, path, body):
        """JSON of the answer to one request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        return json.loads(connection.getresponse().read())

    def client(self):
        """A client of it."""
        return Client(self.port)


class Client:
    """A connection for each stream, since the server closes it after one; one that stays open for the rest."""

    def __init__(self, port):
        self.port, self.open = port, http.client.HTTPConnection("127.0.0.1", port)

    @staticmethod
    def body(prompt, tokens, stream):
        """A request for a greedy completion of exactly `tokens` tokens with nothing from the cache."""
        return json.dumps(dict(
            prompt=prompt, n_predict=tokens, stream=stream, cache_prompt=False, ignore_eos=True, temperature=0.0,
        )).encode()

    async def complete(self, prompt, tokens):
        """Streams a completion on a new connection."""
        body = self.body(prompt, tokens, stream=True)
        head = f"POST /completion HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n" \
               f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        began, first, last = time.perf_counter(), None, b"{}"
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(head.encode() + body)
        async for event in events(reader):
            first = first or time.perf_counter()
            last = event
        ended = time.perf_counter()
        writer.close()
        await writer.wait_closed()
        # The stream leaves out tokens that end inside a character; the last event counts them all.
        return Answer(began, first, ended, json.loads(last).get("tokens_predicted", 0))

    async def one_token(self, prompt):
        """One token on the connection that stays open; not streamed, as that would close it."""
        body = self.body(prompt, 1, stream=False)
        began = time.perf_counter()
        self.open.request("POST", "/completion", body, {"Content-Type": "application/json"})
        response = self.open.getresponse()
        answer = response.read()
        ended = time.perf_counter()
        if response.status != HTTPStatus.OK:
            raise SystemExit(f"expected a token from llama-server, found {response.status}: {answer!r}")
        return Answer(began, ended, ended, json.loads(answer).get("tokens_predicted", 0))

    async def close(self):
        """Closes the connection that stays open."""
        self.open.close()


async def events(reader):
    """The data of the server-sent events of a response."""
    status, headers = await reader.readline(), await reader.readuntil(b"\r\n\r\n")
    if b" 200 " not in status or b"chunked" not in headers:
        raise SystemExit(f"expected a stream from llama-server, found {status!r} {headers!r}")
    rest = b""
    while size := int(await reader.readline(), 16):
        rest += (await reader.readexactly(size + 2))[:-2]
        *whole, rest = rest.split(b"\n\n")
        for event in whole:
            if event.startswith(b"data: {"):
                yield event[len(b"data: "):]
