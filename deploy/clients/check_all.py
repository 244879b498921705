"""Calls every RPC of a server from outside: the three services of sconce.v1, the engine protocol that
gateways speak, health and reflection, with the Python packages of gRPC. Ends with exit code 1 if an
answer is wrong, or an RPC that reflection lists was not called.

Usage: python deploy/clients/check_all.py ADDRESS MODEL, from the root of the repository. The server has
loaded MODEL and no other, and MODEL takes a while for the rest of its context; needs grpcio-tools,
grpcio-health-checking, grpcio-reflection.
"""
import hashlib
import io
import sys
import zipfile

import grpc
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

sys.path.append("proto")
inference, inference_rpc = grpc.protos_and_services("sconce/v1/inference.proto")
models, models_rpc = grpc.protos_and_services("sconce/v1/model.proto")
state, state_rpc = grpc.protos_and_services("sconce/v1/state.proto")
common = grpc.protos("compat/smg/grpc/common/common.proto")
engine, engine_rpc = grpc.protos_and_services("compat/vllm/grpc/engine/vllm_engine.proto")

# What this repository describes.
SERVICES = {
    "sconce.v1.InferenceService": inference,
    "sconce.v1.ModelService": models,
    "sconce.v1.StateService": state,
    "vllm.grpc.engine.VllmEngine": engine,
}
HEALTH = "grpc.health.v1.Health"
# What lists the others; a call of it is how they are known.
REFLECTION = {"grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"}
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


def generate(stub, ids, **options):
    """The one answer to a prompt of tokens, not streamed."""
    sampling = engine.SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, **options)
    answers = list(stub.Generate(engine.GenerateRequest(
        request_id="check", tokenized=engine.TokenizedInput(input_ids=ids),
        sampling_params=sampling), timeout=TIMEOUT))
    expect(f"one answer, found {answers}", [one.WhichOneof("response") for one in answers] == ["complete"])
    complete = answers[0].complete
    expect(f"8 tokens, found {complete}",
           len(complete.output_ids) == complete.completion_tokens == 8 and complete.finish_reason == "length")
    return complete


def check_engine_labels(stub, model):
    """What a gateway asks before it sends work: health, what is served, how busy it is, the tokenizer."""
    health = stub.HealthCheck(engine.HealthCheckRequest(), timeout=TIMEOUT)
    expect(f"it is healthy, found {health}", health.healthy)
    served = stub.GetModelInfo(engine.GetModelInfoRequest(), timeout=TIMEOUT)
    expect(f"the model {model}, found {served}", served.served_model_name == model
           and served.is_generation and 0 < served.max_req_input_len < served.max_context_length)
    server = stub.GetServerInfo(engine.GetServerInfoRequest(), timeout=TIMEOUT)
    expect(f"a server with blocks, found {server}", server.server_type == "sconce"
           and server.block_size > 0 and not server.is_paused)
    loads = stub.GetLoads(engine.GetLoadsRequest(), timeout=TIMEOUT).loads
    expect(f"one load, of nothing that runs; found {loads}",
           [(load.num_total_reqs, load.max_running_requests) for load in loads] == [(0, server.max_num_seqs)])
    chunks = list(stub.GetTokenizer(common.GetTokenizerRequest(), timeout=TIMEOUT))
    packed = b"".join(chunk.data for chunk in chunks)
    expect("the tokenizer's digest holds", chunks[-1].sha256 == hashlib.sha256(packed).hexdigest())
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        expect("the tokenizer is in its archive", "tokenizer.json" in archive.namelist())
    return server.block_size


def check_engine_events(stub, block_size):
    """What is remembered is told as blocks, and that it was forgotten."""
    events = stub.SubscribeKvEvents(common.SubscribeKvEventsRequest(), timeout=TIMEOUT)
    known = {}

    def until(what, holds):
        for batch in events:
            for event in batch.events:
                if event.HasField("cleared"):
                    known.clear()
                for found in event.removed.block_hashes:
                    known.pop(found)
                known.update((block.block_hash, list(block.token_ids)) for block in event.stored.blocks)
            if holds():
                return
        sys.exit(f"check_all.py: {what}: the events ended")

    ids = [1 + i * i % 199 for i in range(2 * block_size + 1)]
    blocks = [ids[:block_size], ids[block_size:2 * block_size]]
    cold = generate(stub, ids)
    until("both blocks are told", lambda: all(block in known.values() for block in blocks))
    warm = generate(stub, ids)
    expect("the same answer from what is remembered",
           cold.output_ids == warm.output_ids and cold.cached_tokens < 2 * block_size <= warm.cached_tokens)
    flushed = stub.FlushCache(common.FlushCacheRequest(), timeout=TIMEOUT)
    expect(f"it is flushed, found {flushed}", flushed.success)
    until("nothing is known", lambda: not known)
    events.cancel()
    expect("nothing is remembered", generate(stub, ids).cached_tokens == 0)
    unknown = common.SubscribeKvEventsRequest(start_sequence_number=(1 << 63) - 1)
    refused(grpc.StatusCode.OUT_OF_RANGE, lambda: stub.SubscribeKvEvents(unknown, timeout=TIMEOUT))


def check_engine_abort(stub):
    """A stream that would go on for long ends when somebody asks for that."""
    endless = engine.GenerateRequest(
        request_id="endless", stream=True, tokenized=engine.TokenizedInput(input_ids=[1, 2, 3]),
        sampling_params=engine.SamplingParams(temperature=0, ignore_eos=True))
    answers = stub.Generate(endless, timeout=TIMEOUT)
    expect("tokens come", next(answers).chunk.token_ids)
    stub.Abort(engine.AbortRequest(request_ids=["endless", "nobody"]), timeout=TIMEOUT)
    *_, last = answers
    expect(f"it was aborted, found {last}", last.complete.finish_reason == "abort")


def check_engine(channel, model):
    """The engine protocol, with what it has and sconce does not."""
    stub = engine_rpc.VllmEngineStub(channel)
    check_engine_events(stub, check_engine_labels(stub, model))
    check_engine_abort(stub)
    constrained = engine.SamplingParams(json_object=True)
    refused(grpc.StatusCode.UNIMPLEMENTED, lambda: stub.Generate(engine.GenerateRequest(
        request_id="check", text="x", sampling_params=constrained), timeout=TIMEOUT))
    refused(grpc.StatusCode.UNIMPLEMENTED, lambda: stub.Embed(engine.EmbedRequest(), timeout=TIMEOUT))
    refused(grpc.StatusCode.UNIMPLEMENTED,
            lambda: stub.StartProfile(common.StartProfileRequest(), timeout=TIMEOUT))
    refused(grpc.StatusCode.UNIMPLEMENTED,
            lambda: stub.StopProfile(common.StopProfileRequest(), timeout=TIMEOUT))


def check_health(channel):
    """Every name that probes and clients ask for serves; one that is not there does not."""
    stub = health_pb2_grpc.HealthStub(channel)
    serving = health_pb2.HealthCheckResponse.SERVING
    for service in ("", "liveness", "readiness", *SERVICES):
        request = health_pb2.HealthCheckRequest(service=service)
        expect(f"{service} serves", stub.Check(request, timeout=TIMEOUT).status == serving)
        watch = stub.Watch(request, timeout=TIMEOUT)
        expect(f"{service} is told to serve", next(watch).status == serving)
        watch.cancel()
    states = stub.List(health_pb2.HealthListRequest(), timeout=TIMEOUT).statuses
    expect(f"all of them are listed, found {sorted(states)}",
           all(states[service].status == serving for service in ("", "readiness", *SERVICES)))
    request = health_pb2.HealthCheckRequest(service="nobody")
    refused(grpc.StatusCode.NOT_FOUND, lambda: stub.Check(request, timeout=TIMEOUT))
    watch = stub.Watch(request, timeout=TIMEOUT)
    expect("a name that is not there is unknown",
           next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
    watch.cancel()


def check_reflection(channel):
    """The server describes its services as the files of the repository do; returns what it describes, as
    SERVICE/METHOD."""
    database = ProtoReflectionDescriptorDatabase(channel)
    listed = set(database.get_services()) - REFLECTION
    expect(f"services that are known here, found {listed}", listed == {*SERVICES, HEALTH})
    pool = descriptor_pool.DescriptorPool(database)
    for name, module in SERVICES.items():
        ours = module.DESCRIPTOR.services_by_name[name.rpartition(".")[2]]
        expect(f"{name} as in the repository", signatures(pool.FindServiceByName(name)) == signatures(ours))
    return {f"{name}/{method.name}" for name in listed for method in pool.FindServiceByName(name).methods}


def signatures(service):
    """Requests and responses of its methods."""
    return {method.name: (method.input_type.full_name, method.output_type.full_name)
            for method in service.methods}


def main(address, model):
    """Everything, and that nothing was left out."""
    recorder = Recorder()
    with grpc.insecure_channel(address) as plain:
        channel = grpc.intercept_channel(plain, recorder)
        every = check_reflection(plain)
        check_inference(channel, model)
        check_models(channel, model)
        check_state(channel, model)
        check_engine(channel, model)
        check_health(channel)
    expect(f"calls of {sorted(every ^ recorder.called)}", every == recorder.called)
    print(f"check_all.py: {len(every)} RPCs of {len(SERVICES) + 1} services, and reflection, answer")


if __name__ == "__main__":
    main(*sys.argv[1:])
