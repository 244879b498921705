"""Asks whether a server serves, and waits until it does, by the standard health service. Run:
`python deploy/clients/health.py [ADDRESS [SERVICE]]`, with `--help` for TLS and tokens; needs
grpcio-health-checking."""
import sys

import grpc
from connection import arguments, connect
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVING = health_pb2.HealthCheckResponse.SERVING


def wait(stub, service, timeout):
    """Returns when the service serves; what it was before is printed."""
    for response in stub.Watch(health_pb2.HealthCheckRequest(service=service), timeout=timeout):
        print(service or "(the server)", health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))
        if response.status == SERVING:
            return


def main():
    """`readiness`: a model is ready. `liveness`: the process answers. An unknown name is NOT_FOUND."""
    given = arguments(main.__doc__, ("address", "127.0.0.1:50051"), ("service", "readiness"))
    with connect(given.address, given) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            wait(stub, given.service, timeout=60)
            status = stub.Check(health_pb2.HealthCheckRequest(service=given.service), timeout=5).status
        except grpc.RpcError as error:
            sys.exit(f"{error.code().name}: {error.details()}")
    sys.exit(0 if status == SERVING else 1)


if __name__ == "__main__":
    main()
