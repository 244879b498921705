"""Computes a prompt before anybody asks, keeps its state under a name, and shows that a completion which
begins alike resumes it. Run from the root of the repository:
`python deploy/clients/snapshots.py [ADDRESS [MODEL]]`, with `--help` for TLS and tokens; needs grpcio-tools."""
import sys

import grpc
from connection import arguments, connect
from google.protobuf import duration_pb2

sys.path.append("proto")
inference, inference_rpc = grpc.protos_and_services("sconce/v1/inference.proto")
state, state_rpc = grpc.protos_and_services("sconce/v1/state.proto")

PROMPT = "You answer questions about lamps, candles and sconces, in one sentence. " * 8


def main():
    """Keeps, uses and drops one snapshot."""
    given = arguments(main.__doc__, ("address", "127.0.0.1:50051"), ("model", "smollm2"))
    model = given.model
    with connect(given.address, given) as channel:
        keeper = state_rpc.StateServiceStub(channel)
        kept = keeper.Snapshot(state.SnapshotRequest(
            model=model, text=PROMPT, name="system", pinned=True, ttl=duration_pb2.Duration(seconds=3600),
        )).snapshot
        print(f"kept {kept.token_count} tokens in {kept.bytes} bytes as {kept.name} ({kept.id})")

        question = PROMPT + "What is a sconce?"
        match = keeper.MatchPrefix(state.MatchPrefixRequest(model=model, text=question))
        print(f"of {match.prompt_tokens} tokens, {match.cache.resumed_tokens} would be resumed")

        request = inference.CompleteRequest(model=model, text=question, max_tokens=16)
        for response in inference_rpc.InferenceServiceStub(channel).Complete(request):
            if response.HasField("started"):
                print(f"{response.started.cache.resumed_tokens} were")
            print(response.delta.text, end="", flush=True)
        print()
        keeper.DropSnapshot(state.DropSnapshotRequest(id=kept.id))


if __name__ == "__main__":
    main()
