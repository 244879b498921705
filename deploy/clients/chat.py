"""A conversation of two turns, streamed, with what the server remembered of it. Run from the root of the
repository: `python deploy/clients/chat.py [ADDRESS [MODEL]]`, with `--help` for TLS and tokens; needs
grpcio-tools."""
import sys

import grpc
from connection import arguments, connect

sys.path.append("proto")
pb, rpc = grpc.protos_and_services("sconce/v1/inference.proto")


def answer(stub, model, messages):
    """Streams the next turn to standard output; returns its text and the account of the request."""
    text, cache = "", None
    request = pb.CompleteRequest(
        model=model,
        chat=pb.ChatPrompt(messages=messages),
        max_tokens=48,
        sampling=pb.Sampling(temperature=0),
    )
    # The deadline holds for the whole stream; leaving the loop early would cancel the work.
    for response in stub.Complete(request, timeout=300):
        if response.HasField("started"):
            cache = response.started.cache
        elif response.HasField("delta"):
            text += response.delta.text
            print(response.delta.text, end="", flush=True)
        else:
            usage = response.finished.usage
            reason = pb.FinishReason.Name(response.finished.reason)
    print(f"\n[{usage.prompt_tokens} prompt tokens, {cache.resumed_tokens} remembered; "
          f"{usage.completion_tokens} new; {reason}]")
    return text


def main():
    """Two questions, the second of which needs the first answer."""
    given = arguments(main.__doc__, ("address", "127.0.0.1:50051"), ("model", "smollm2"))
    messages = []
    with connect(given.address, given) as channel:
        stub = rpc.InferenceServiceStub(channel)
        for question in ("Name three things that give light.", "Which of them is the oldest?"):
            print(f"> {question}")
            messages.append(pb.ChatMessage(role="user", content=question))
            try:
                text = answer(stub, given.model, messages)
            except grpc.RpcError as error:
                sys.exit(f"{error.code().name}: {error.details()}")
            messages.append(pb.ChatMessage(role="assistant", content=text))


if __name__ == "__main__":
    main()
