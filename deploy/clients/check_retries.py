"""Whether service_config.json has calls tried again that a full server refused.

Usage: python deploy/clients/check_retries.py TARGET, from the root of the repository. TARGET has the model
`full`, slow, for one sequence and one that waits.
"""
import sys
import urllib.request

import grpc

import balanced
from balanced import pb, rpc

# Far more than are computed before a call is hung up on.
TOKENS_MAX = 30_000
# Looks at the server's counts; each is a request over the wire.
LOOKS_MAX = 10_000


def count(target, series):
    """A count of the server's; 0 while there is none."""
    with urllib.request.urlopen(f"http://{target}/metrics", timeout=60) as page:
        for line in page.read().decode().splitlines():
            if line.startswith(series):
                return int(float(line.rsplit(" ", 1)[1]))
    return 0


def until(target, series, least):
    """Returns when a count has come to `least`."""
    for _ in range(LOOKS_MAX):
        if count(target, series) >= least:
            return
    sys.exit(f"check_retries.py: {series} never came to {least}")


def main(target):
    """Fills the server, asks with and without the config, makes room."""
    request = pb.CompleteRequest(model="full", text="Light", max_tokens=4)
    endless = pb.CompleteRequest(model="full", text="Light", max_tokens=TOKENS_MAX)
    refused = 'sconce_requests_total{rpc="sconce.v1.InferenceService/Complete",code="RESOURCE_EXHAUSTED"}'
    with grpc.insecure_channel(target) as plain, balanced.connect(f"ipv4:{target}") as channel:
        stub = rpc.InferenceServiceStub(plain)
        fillers = [stub.Complete(endless, timeout=600)]
        # The queue takes one, so the first must have left it, and the counts must tell so.
        until(target, 'sconce_sequences{model="full",state="running"}', 1)
        fillers.append(stub.Complete(endless, timeout=600))
        until(target, "sconce_queue_requests ", 1)
        try:
            list(stub.Complete(request, timeout=60))
            sys.exit("check_retries.py: expected a refusal without the config, found an answer")
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise
        until(target, refused, 1)
        answer = rpc.InferenceServiceStub(channel).Complete(request, timeout=60)
        until(target, refused, 2)
        for filler in fillers:
            filler.cancel()
        if not list(answer)[-1].HasField("finished"):
            sys.exit("check_retries.py: the answer has no end")
    print("check_retries.py: a full server is asked again")


if __name__ == "__main__":
    main(*sys.argv[1:])
