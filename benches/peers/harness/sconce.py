"""`sconce serve` and a client of it; needs grpcio-tools, by which the stubs are made when this is imported."""
import os
import subprocess
import sys
import time
from pathlib import Path

import grpc
import grpc.aio

from . import processes
from .answer import Answer

sys.path.append(str(Path(__file__).resolve().parents[3] / "proto"))
pb, rpc = grpc.protos_and_services("sconce/v1/inference.proto")

MODEL = "model"


class Server:
    """A running server with one model; all settings but the threads are its defaults."""

    def __init__(self, binary, file, threads):
        line = [binary, "serve", "--listen", "127.0.0.1:0", "--model", f"{MODEL}={file}", "--threads", str(threads)]
        # Nobody has to be told that it goes, so it goes at once.
        env = dict(os.environ, SCONCE__SERVER__WITHDRAWAL="0s")
        self.process = subprocess.Popen(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        with processes.stopped_on_failure(self.process):
            # `listening on ADDRESS`; nothing, if it ended before.
            words = self.process.stdout.readline().split()
            if not words:
                raise SystemExit(f"did not start: {' '.join(line)}")
            self.address = words[-1]
            if subprocess.run(ready(binary, self.address), stdout=subprocess.DEVNULL).returncode:
                raise SystemExit(f"did not get ready: {' '.join(line)}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        """Ends it."""
        processes.stop(self.process)

    def client(self):
        """A client with a connection of its own."""
        return Client(self.address)


def ready(binary, address):
    """The command that waits until a server has its model."""
    return [binary, "health", "--wait", "--service", "readiness", "--server", address,
            "--timeout", f"{processes.START_SECONDS_MAX}s"]


class Client:
    """One connection; as many requests at a time as one likes."""

    def __init__(self, address):
        # Else channels to the same address share a connection.
        options = [("grpc.use_local_subchannel_pool", 1)]
        self.channel = grpc.aio.insecure_channel(address, options=options)
        self.stub = rpc.InferenceServiceStub(self.channel)

    async def complete(self, prompt, tokens):
        """Completes token ids greedily by exactly `tokens` tokens."""
        request = pb.CompleteRequest(
            model=MODEL, tokens=pb.TokensPrompt(ids=prompt), max_tokens=tokens, ignore_eos=True,
            sampling=pb.Sampling(temperature=0.0),
        )
        began, first, count = time.perf_counter(), None, 0
        async for message in self.stub.Complete(request):
            if message.WhichOneof("event") == "delta":
                first = first or time.perf_counter()
                count += len(message.delta.token_ids)
        return Answer(began, first, time.perf_counter(), count)

    async def one_token(self, prompt):
        """One token on the open connection."""
        return await self.complete(prompt, 1)

    async def close(self):
        """Closes the connection."""
        await self.channel.close()
