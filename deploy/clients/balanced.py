"""Spreads calls over several servers: round robin over those that are healthy, retries where a server is
full or goes. All of it is in service_config.json, which Go, Java, C++ and Node take too. Run from the
root of the repository: `python deploy/clients/balanced.py [TARGET [MODEL]]`, with `--help` for TLS and
tokens; needs grpcio-tools.

TARGET is a name with several addresses, such as dns:///sconce-headless.models.svc:50051, or a list of them,
ipv4:10.0.0.1:50051,10.0.0.2:50051. With TLS, certificates are for that name; those of a list for `sconce`.
"""
import pathlib
import sys

import connection
import grpc

sys.path.append("proto")
pb, rpc = grpc.protos_and_services("sconce/v1/inference.proto")
SERVICE_CONFIG = pathlib.Path(__file__).with_name("service_config.json").read_text()


def connect(target, shown=connection.PLAIN):
    """A channel that is one connection to each address of the target."""
    options = [("grpc.service_config", SERVICE_CONFIG)]
    if "," in target:
        # What gRPC would send as the name of the server, the list, is no name that HTTP/2 allows.
        options.append(("grpc.default_authority", "sconce"))
    return connection.connect(target, shown, options)


def main():
    """Eight short completions; each begins alike, so that every server computes the beginning once."""
    given = connection.arguments(main.__doc__, ("target", "dns:///localhost:50051"), ("model", "smollm2"))
    with connect(given.target, given) as channel:
        stub = rpc.InferenceServiceStub(channel)
        for number in range(8):
            request = pb.CompleteRequest(model=given.model, text=f"Light number {number} is", max_tokens=8)
            # A call waits for a healthy server instead of failing while there is none.
            responses = stub.Complete(request, timeout=60, wait_for_ready=True)
            print(number, "".join(response.delta.text for response in responses))


if __name__ == "__main__":
    main()
