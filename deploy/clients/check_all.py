"""Calls every RPC of a server from outside: the three services of sconce.v1, health and reflection, with
the Python packages of gRPC. Ends with exit code 1 if an answer is wrong, or an RPC was not called.

Usage: python deploy/clients/check_all.py ADDRESS MODEL, from the root of the repository. The server has
loaded MODEL; needs grpcio-tools, grpcio-health-checking, grpcio-reflection.
"""
import hashlib
import sys

import grpc
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

sys.path.append("proto")
inference, inference_rpc = grpc.protos_and_services("sconce/v1/inference.proto")
models, models_rpc = grpc.protos_and_services("sconce/v1/model.proto")
state, state_rpc = grpc.protos_and_services("sconce/v1/state.proto")

SERVICES = {
    "sconce.v1.InferenceService": inference,
    "sconce.v1.ModelService": models,
    "sconce.v1.StateService": state,
}
PROMPT = "The lamp on the wall burns all night, and so does the candle beside it. " * 6
# Longest that one call may take, in seconds.
TIMEOUT = 120


class Recorder(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor,
               grpc.StreamUnaryClientInterceptor):
    """Remembers which RPCs were called."""

    def __init__(self):
        self.called = set()

    def _pass(self, continuation, details, request):
        self.called.add(details.method.lstrip("/"))
        return continuation(details, request)

    intercept_unary_unary = intercept_unary_stream = intercept_stream_unary = _pass


def expect(what, holds):
    """Ends the program if something does not hold."""
    if not holds:
        sys.exit(f"check_all.py: {what}")


def refused(code, call):
    """A call that must fail with a status; returns it."""
    try:
        answer = call()
        list(answer) if hasattr(answer, "__next__") else answer
    except grpc.RpcError as error:
        expect(f"expected {code}, found {error.code()}: {error.details()}", error.code() == code)
        return error
    sys.exit(f"check_all.py: a call succeeded that must fail with {code}")


def check_inference(channel, model):
    """Tokens of a text are its tokens again, streams have their order, a seed its answer."""
    stub = inference_rpc.InferenceServiceStub(channel)
    tokens = stub.Tokenize(inference.TokenizeRequest(model=model, text=PROMPT), timeout=TIMEOUT)
    ids = list(tokens.token_ids)
    expect("as many pieces as ids", len(ids) == len(tokens.pieces) > 0)
    text = stub.Detokenize(inference.DetokenizeRequest(
        model=model, token_ids=ids, skip_special_tokens=True), timeout=TIMEOUT).text
    expect(f"the text again, found {text!r}", text == PROMPT)

    def complete(**prompt):
        request = inference.CompleteRequest(
            model=model, max_tokens=12, sampling=inference.Sampling(temperature=1, seed=7), **prompt)
        events = list(stub.Complete(request, timeout=TIMEOUT))
        kinds = [event.WhichOneof("event") for event in events]
        expect(f"started, deltas, finished; found {kinds}",
               kinds[0] == "started" and kinds[-1] == "finished" and set(kinds[1:-1]) <= {"delta"})
        found = [token for event in events for token in event.delta.token_ids]
        expect("as many ids as the usage tells",
               len(found) == events[-1].finished.usage.completion_tokens)
        return found, events

    cold, _ = complete(text=PROMPT)
    warm, events = complete(tokens=inference.TokensPrompt(ids=ids))
    expect("the same answer from what is remembered", cold == warm)
    expect("something is remembered", events[0].started.cache.resumed_tokens > 0)
    complete(chat=inference.ChatPrompt(messages=[inference.ChatMessage(role="user", content="Light?")]))
    error = refused(grpc.StatusCode.NOT_FOUND, lambda: stub.Tokenize(
        inference.TokenizeRequest(model="nobody", text="x"), timeout=TIMEOUT))
    expect("errors carry details", any(key == "grpc-status-details-bin" for key, _ in error.trailing_metadata()))
    refused(grpc.StatusCode.INVALID_ARGUMENT, lambda: stub.Complete(
        inference.CompleteRequest(model=model), timeout=TIMEOUT))


def check_models(channel, model):
    """A model comes, is told, and goes."""
    stub = models_rpc.ModelServiceStub(channel)
    estimate = stub.EstimateLoad(models.EstimateLoadRequest(path="sim:"), timeout=TIMEOUT)
    expect("an estimate is a sum", estimate.total_bytes == estimate.weights_bytes
           + estimate.workspace_bytes + estimate.state_bytes)
    events = list(stub.Load(models.LoadRequest(model="second", path="sim:"), timeout=TIMEOUT))
    expect("a load ends with the model", events[-1].model_info.model == "second")
    names = [found.model for found in stub.ListModels(models.ListModelsRequest(), timeout=TIMEOUT).models]
    expect(f"both models, found {names}", {"second", model} <= set(names))
    status = stub.GetStatus(models.GetStatusRequest(), timeout=TIMEOUT)
    ready = {found.model for found in status.models if found.state == models.MODEL_STATE_READY}
    expect(f"both are ready, found {ready}", {"second", model} <= ready and not status.draining)
    stub.Unload(models.UnloadRequest(model="second"), timeout=TIMEOUT)
    refused(grpc.StatusCode.NOT_FOUND, lambda: stub.Unload(
        models.UnloadRequest(model="second"), timeout=TIMEOUT))


def check_state(channel, model):
    """A snapshot is made, found, carried out and in, and dropped."""
    stub = state_rpc.StateServiceStub(channel)
    kept = stub.Snapshot(state.SnapshotRequest(
        model=model, text=PROMPT, name="check", pinned=True), timeout=TIMEOUT).snapshot
    match = stub.MatchPrefix(state.MatchPrefixRequest(model=model, text=PROMPT + "And?"), timeout=TIMEOUT)
    expect("what is kept would be resumed", match.cache.resumed_tokens > 0)
    cache = stub.DescribeCache(state.DescribeCacheRequest(model=model), timeout=TIMEOUT)
    expect("the tree has a pinned node", any(node.pinned for node in cache.nodes))

    parts = list(stub.ExportSnapshot(state.ExportSnapshotRequest(id=kept.id), timeout=TIMEOUT))
    content = b"".join(part.chunk for part in parts)
    expect("the digest holds", parts[-1].trailer.sha256 == hashlib.sha256(content).digest())
    stub.DropSnapshot(state.DropSnapshotRequest(id=kept.id), timeout=TIMEOUT)
    requests = [state.ImportSnapshotRequest(model=model, header=parts[0].header)]
    requests += [state.ImportSnapshotRequest(chunk=part.chunk) for part in parts[1:-1]]
    requests.append(state.ImportSnapshotRequest(trailer=parts[-1].trailer))
    again = stub.ImportSnapshot(iter(requests), timeout=TIMEOUT).snapshot
    expect("as many tokens as before", again.token_count == kept.token_count)
    listed = stub.ListSnapshots(state.ListSnapshotsRequest(model=model, name="check"), timeout=TIMEOUT)
    expect("it is listed", [found.id for found in listed.snapshots] == [again.id])
    stub.DropSnapshot(state.DropSnapshotRequest(id=again.id), timeout=TIMEOUT)


def check_health(channel):
    """Check and Watch of the names that probes and clients ask for, and of one that is not there."""
    stub = health_pb2_grpc.HealthStub(channel)
    serving = health_pb2.HealthCheckResponse.SERVING
    for service in ("", "liveness", "readiness", *SERVICES):
        request = health_pb2.HealthCheckRequest(service=service)
        expect(f"{service} serves", stub.Check(request, timeout=TIMEOUT).status == serving)
        watch = stub.Watch(request, timeout=TIMEOUT)
        expect(f"{service} is told to serve", next(watch).status == serving)
        watch.cancel()
    request = health_pb2.HealthCheckRequest(service="nobody")
    refused(grpc.StatusCode.NOT_FOUND, lambda: stub.Check(request, timeout=TIMEOUT))
    watch = stub.Watch(request, timeout=TIMEOUT)
    expect("a name that is not there is unknown",
           next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
    watch.cancel()


def check_reflection(channel):
    """The server describes its services as the files of the repository do."""
    database = ProtoReflectionDescriptorDatabase(channel)
    expect(f"all services, found {database.get_services()}",
           set(SERVICES) | {"grpc.health.v1.Health"} <= set(database.get_services()))
    pool = descriptor_pool.DescriptorPool(database)
    for name, module in SERVICES.items():
        described = pool.FindServiceByName(name)
        ours = module.DESCRIPTOR.services_by_name[name.rpartition(".")[2]]
        expect(f"{name} as in the repository",
               {method.name: method.input_type.full_name for method in described.methods}
               == {method.name: method.input_type.full_name for method in ours.methods})


def main(address, model):
    """Everything, and that nothing was left out."""
    recorder = Recorder()
    with grpc.insecure_channel(address) as plain:
        channel = grpc.intercept_channel(plain, recorder)
        check_inference(channel, model)
        check_models(channel, model)
        check_state(channel, model)
        check_health(plain)
        check_reflection(plain)
    every = {
        f"{name}/{method.name}" for name, module in SERVICES.items()
        for method in module.DESCRIPTOR.services_by_name[name.rpartition(".")[2]].methods
    }
    expect(f"calls of {sorted(every - recorder.called)}", every == recorder.called)
    print(f"check_all.py: {len(every)} RPCs of {len(SERVICES)} services, health and reflection answer")


if __name__ == "__main__":
    main(*sys.argv[1:])
