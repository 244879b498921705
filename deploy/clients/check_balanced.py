"""Whether service_config.json does what it says, with three servers: A and B have a model, C has none.

Usage: python deploy/clients/check_balanced.py A B C PID, from the root of the repository. A and B have
loaded `shared`, A also `a`, B also `b`; PID is the process of A, which is told to stop on the way.
"""
import os
import signal
import sys

import grpc

import balanced
from balanced import pb, rpc

models, models_rpc = grpc.protos_and_services("sconce/v1/model.proto")
# Calls of one kind; several times the number of servers.
CALLS = 12
# Most calls until both have answered once; each takes its time on the wire, connecting less than all.
CALLS_MAX = 10_000


def expect(what, holds):
    """Ends the program if something does not hold."""
    if not holds:
        sys.exit(f"check_balanced.py: {what}")


def main(a, b, c, process):
    """Round robin and health."""
    with balanced.connect(f"ipv4:{a},{b},{c}") as channel:
        lister = models_rpc.ModelServiceStub(channel)
        request = models.ListModelsRequest()
        answers = set()
        # The first calls may all go to one, while the connection to the other is being made.
        for _ in range(CALLS_MAX):
            listed = lister.ListModels(request, timeout=60, wait_for_ready=True).models
            answers.add(tuple(found.model for found in listed))
            if len(answers) == 2:
                break
        for _ in range(CALLS):
            listed = lister.ListModels(request, timeout=60, wait_for_ready=True).models
            answers.add(tuple(found.model for found in listed))
        expect(f"calls go to A and B, never to C; found {answers}",
               answers == {("a", "shared"), ("b", "shared")})

        stub = rpc.InferenceServiceStub(channel)
        os.kill(int(process), signal.SIGTERM)
        for _ in range(CALLS):
            answer = stub.Tokenize(pb.TokenizeRequest(model="shared", text="light"), timeout=60)
            expect("an answer while A goes", len(answer.token_ids) > 0)
    print("check_balanced.py: calls go round, past what is not ready, and on when a server goes")


if __name__ == "__main__":
    main(*sys.argv[1:])
