//! Spans of requests, as a collector receives them: the whole tree, its ids, names and times; and spans of
//! the steps that they were in.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use sconce_proto::compat::vllm::grpc::engine::generate_request::Input;
use sconce_proto::compat::vllm::grpc::engine::vllm_engine_client::VllmEngineClient;
use sconce_proto::compat::vllm::grpc::engine::{GenerateRequest, SamplingParams};
use sconce_proto::v1::complete_request::Prompt;
use sconce_proto::v1::inference_service_client::InferenceServiceClient;
use sconce_proto::v1::{CompleteRequest, TokenizeRequest};
use sconce_server::serve::{
    DrainPlan, ListenAddress, ModelPlan, ServeError, ServePlan, Server, ServerHandle, TracePlan,
};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

/// Longest that anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

/// Most exports that wait for a test.
const EXPORTS_MAX: usize = 256;

/// A collector that hands every export on.
struct Collector(mpsc::Sender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let kept = self.0.try_send(request.into_inner());
        kept.map_err(|_| Status::unavailable("the test is over, or had too many exports"))?;
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

async fn collector() -> (SocketAddr, mpsc::Receiver<ExportTraceServiceRequest>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("has an address");
    let (sender, exports) = mpsc::channel(EXPORTS_MAX);
    let service = TraceServiceServer::new(Collector(sender));
    let incoming = TcpListenerStream::new(listener);
    tokio::spawn(
        tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming),
    );
    (address, exports)
}

struct Running {
    address: SocketAddr,
    handle: ServerHandle,
    task: JoinHandle<Result<(), ServeError>>,
    channel: Channel,
    client: InferenceServiceClient<Channel>,
}

/// A server with the simulated model that sends its spans to `collector`.
async fn serve(collector: SocketAddr) -> Running {
    let plan = ServePlan {
        listen: vec![ListenAddress::Tcp(([127, 0, 0, 1], 0).into())],
        models: vec![ModelPlan {
            name: "sim".to_owned(),
            path: "sim:decode_us=1000,prefill_us=100,fail_at=40".to_owned(),
            context_length: None,
            keep_alive: None,
        }],
        drain: DrainPlan { withdrawal: Duration::ZERO, drain: PATIENCE },
        trace: TracePlan { endpoint: Some(format!("http://{collector}")) },
        ..ServePlan::default()
    };
    let server = Server::bind(plan).await.expect("binds");
    let handle = server.handle();
    let task = tokio::spawn(server.run(std::future::pending()));
    let ListenAddress::Tcp(address) = handle.local_addrs()[0] else { panic!("expected TCP") };
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    let channel = endpoint.connect().await.expect("connects");
    let client = InferenceServiceClient::new(channel.clone());
    while !handle.models().status().models.iter().any(|model| model.pages_max > 0) {
        tokio::task::yield_now().await;
    }
    Running { address, handle, task, channel, client }
}

impl Running {
    async fn complete(
        &mut self,
        text: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<(), Status> {
        let mut request = Request::new(CompleteRequest {
            model: "sim".to_owned(),
            prompt: Some(Prompt::Text(text.to_owned())),
            max_tokens: Some(5),
            ignore_eos: true,
            ..CompleteRequest::default()
        });
        for (name, value) in headers {
            request.metadata_mut().insert(*name, value.parse().expect("ascii"));
        }
        let mut stream = self.client.complete(request).await?.into_inner();
        while stream.message().await?.is_some() {}
        Ok(())
    }

    /// Ends in order, which sends what is left.
    async fn end(self) {
        self.handle.shut_down();
        drop((self.client, self.channel));
        let ended = tokio::time::timeout(PATIENCE, self.task).await.expect("ends in time");
        ended.expect("does not panic").expect("ends in order");
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attributes(attributes: &[KeyValue]) -> HashMap<&str, String> {
    let text = |value: &AnyValue| match value.value.as_ref().expect("a value") {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        Value::BoolValue(flag) => flag.to_string(),
        Value::DoubleValue(number) => number.to_string(),
        other => format!("{other:?}"),
    };
    let pair = |one: &'_ KeyValue| text(one.value.as_ref().expect("a value"));
    attributes.iter().map(|one| (one.key.as_str(), pair(one))).collect()
}

/// What a collector received so far.
struct Received {
    /// Spans of requests.
    spans: Vec<Span>,
    /// Spans of steps.
    steps: Vec<Span>,
    /// Attributes of what sent them.
    sender: HashMap<String, String>,
}

fn received(exports: &mut mpsc::Receiver<ExportTraceServiceRequest>) -> Received {
    let (mut spans, mut sender) = (Vec::new(), HashMap::new());
    while let Ok(export) = exports.try_recv() {
        for of_resource in export.resource_spans {
            let resource = of_resource.resource.expect("a resource");
            let told = attributes(&resource.attributes);
            sender.extend(told.into_iter().map(|(key, value)| (key.to_owned(), value)));
            spans.extend(of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
    }
    let (steps, spans) = spans.into_iter().partition(|span| span.name == "step");
    Received { spans, steps, sender }
}

fn named<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let mut all = spans.iter().filter(|span| span.name == name);
    let first = all.next().unwrap_or_else(|| panic!("no span {name} in {spans:#?}"));
    assert!(all.next().is_none(), "two spans {name}");
    first
}

fn nanos(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).expect("after 1970").as_nanos() as u64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_completion_is_a_tree_of_spans_in_the_callers_trace() {
    let (address, mut exports) = collector().await;
    let mut server = serve(address).await;
    let before = nanos(SystemTime::now());
    let headers = [
        ("traceparent", PARENT),
        ("tracestate", "vendor=1"),
        ("x-request-id", "r-1"),
        ("grpc-timeout", "30S"),
    ];
    server.complete("a prompt of thirty-one letters.", &headers).await.expect("ends in order");
    let after = nanos(SystemTime::now());
    let listens = server.address;
    server.end().await;

    let Received { spans, steps, sender } = received(&mut exports);
    assert_eq!(sender["service.name"], "sconce");
    assert_eq!(sender["service.version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(spans.len(), 5, "{spans:#?}");
    assert!(spans.iter().all(|span| hex(&span.trace_id) == TRACE));
    let rpc = named(&spans, "sconce.v1.InferenceService/Complete");
    assert_eq!(hex(&rpc.parent_span_id), CALLER);
    assert_eq!(rpc.trace_state, "vendor=1");
    assert_eq!(rpc.kind(), SpanKind::Server);
    assert!(rpc.status.as_ref().is_none_or(|status| status.code() == StatusCode::Unset));
    let told = attributes(&rpc.attributes);
    assert_eq!(told["rpc.system.name"], "grpc");
    assert_eq!(told["rpc.method"], "sconce.v1.InferenceService/Complete");
    assert_eq!(told["rpc.status_code"], "OK");
    assert_eq!(told["network.peer.address"], "127.0.0.1");
    assert_eq!(told["server.address"], "127.0.0.1");
    assert_eq!(told["server.port"], listens.port().to_string());
    assert_eq!(told["sconce.request_id"], "r-1");
    assert_eq!(told["sconce.finish_reason"], "length");
    assert_eq!(told["sconce.grpc_timeout"], "30S");
    assert!(!told.keys().any(|key| key.starts_with("gen_ai.")), "nobody opted in: {told:?}");
    assert!(!told.contains_key("error.type"));

    let phases = ["encode", "queue", "prefill", "decode"].map(|name| named(&spans, name));
    for phase in phases {
        assert_eq!(phase.parent_span_id, rpc.span_id, "{}", phase.name);
        assert_eq!(phase.kind(), SpanKind::Internal);
    }
    for pair in phases.windows(2) {
        assert_eq!(pair[0].end_time_unix_nano, pair[1].start_time_unix_nano);
    }
    assert!(before <= rpc.start_time_unix_nano && rpc.end_time_unix_nano <= after);
    assert!(rpc.start_time_unix_nano <= phases[0].start_time_unix_nano);
    assert!(phases[3].end_time_unix_nano <= rpc.end_time_unix_nano);
    let took = |span: &Span| span.end_time_unix_nano - span.start_time_unix_nano;
    assert!(took(phases[2]) >= 31 * 100_000, "each prompt token takes 100 us");
    assert!(took(phases[3]) >= 4 * 1_000_000, "each token after the first takes a millisecond");
    let prefill = attributes(&phases[2].attributes);
    assert_eq!(prefill["sconce.prompt_tokens"], "31");
    assert_eq!(prefill["sconce.resumed_tokens"], "0");
    assert_eq!(prefill["sconce.matched_tokens"], "0");
    assert_eq!(prefill["sconce.restored_bytes"], "0");
    assert_eq!(attributes(&phases[3].attributes)["sconce.completion_tokens"], "5");

    // The prompt's step is one kind, those of the other four tokens another.
    for (phase, tokens, of, nanos_min) in
        [("prefill", "31", "1", 31 * 100_000), ("decode", "1", "4", 1_000_000)]
    {
        let told = |step: &&Span| attributes(&step.attributes)["sconce.step.phase"] == phase;
        let step = steps.iter().find(told).unwrap_or_else(|| panic!("no {phase} in {steps:#?}"));
        let told = attributes(&step.attributes);
        assert_eq!(told["sconce.model"], "sim");
        assert_eq!(told["sconce.step.tokens"], tokens);
        assert_eq!(told["sconce.step.sequences"], "1");
        assert_eq!(told["sconce.step.slowest_of"], of);
        let links = step.links.iter().map(|link| (hex(&link.trace_id), link.span_id.clone()));
        assert_eq!(links.collect::<Vec<_>>(), [(TRACE.to_owned(), rpc.span_id.clone())]);
        assert!(step.parent_span_id.is_empty() && hex(&step.trace_id) != TRACE);
        assert!(before <= step.start_time_unix_nano && took(step) >= nanos_min, "{step:#?}");
    }
    assert_eq!(steps.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_gateway_asks_is_the_same_tree() {
    let (address, mut exports) = collector().await;
    let server = serve(address).await;
    let params =
        SamplingParams { max_tokens: Some(5), ignore_eos: true, ..SamplingParams::default() };
    let asked = GenerateRequest {
        request_id: "g-1".to_owned(),
        input: Some(Input::Text("hello".to_owned())),
        sampling_params: Some(params),
        stream: true,
        ..GenerateRequest::default()
    };
    let mut gateway = VllmEngineClient::new(server.channel.clone());
    let mut stream = gateway.generate(asked).await.expect("is accepted").into_inner();
    while stream.message().await.expect("goes on").is_some() {}
    drop((stream, gateway));
    server.end().await;

    let Received { spans, steps, .. } = received(&mut exports);
    assert_eq!(spans.len(), 5, "{spans:#?}");
    let rpc = named(&spans, "vllm.grpc.engine.VllmEngine/Generate");
    assert_eq!(attributes(&rpc.attributes)["sconce.finish_reason"], "length");
    for name in ["encode", "queue", "prefill", "decode"] {
        assert_eq!(named(&spans, name).parent_span_id, rpc.span_id, "{name}");
    }
    assert_eq!(attributes(&named(&spans, "prefill").attributes)["sconce.prompt_tokens"], "5");
    assert_eq!(attributes(&named(&spans, "decode").attributes)["sconce.completion_tokens"], "5");
    assert_eq!(steps.len(), 2, "{steps:#?}");
    assert!(steps.iter().flat_map(|step| &step.links).all(|link| link.span_id == rpc.span_id));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_what_is_not_sampled_and_what_has_no_caller() {
    let (address, mut exports) = collector().await;
    let mut server = serve(address).await;
    // Malformed, so that it has a trace of its own.
    server.complete("hello", &[("traceparent", "00-x-y-z")]).await.expect("ends in order");
    let not_sampled = PARENT.replace("-01", "-00");
    server.complete("hello", &[("traceparent", &not_sampled)]).await.expect("ends in order");
    let refused = server.complete("", &[("traceparent", PARENT)]).await;
    refused.expect_err("an empty prompt");
    let failed = server.complete(&"x".repeat(50), &[("traceparent", PARENT)]).await;
    failed.expect_err("its step fails");
    let mut tokenize = Request::new(TokenizeRequest::default());
    tokenize.metadata_mut().insert("traceparent", PARENT.parse().expect("ascii"));
    server.client.tokenize(tokenize).await.expect_err("names no model");
    server.end().await;

    let Received { spans, steps, .. } = received(&mut exports);
    let (called, own): (Vec<Span>, Vec<Span>) =
        spans.into_iter().partition(|span| hex(&span.trace_id) == TRACE);
    assert_eq!(own.len(), 5);
    let root = named(&own, "sconce.v1.InferenceService/Complete");
    assert!(root.parent_span_id.is_empty());
    let of_tokenize = named(&called, "sconce.v1.InferenceService/Tokenize");
    let code = |span: &Span| attributes(&span.attributes)["rpc.status_code"].clone();
    assert_eq!(code(of_tokenize), "INVALID_ARGUMENT");
    // The caller's fault is no error of ours.
    assert!(of_tokenize.status.as_ref().is_none_or(|status| status.code() == StatusCode::Unset));
    let completions: Vec<&Span> =
        called.iter().filter(|span| span.name.ends_with("/Complete")).collect();
    let mut codes: Vec<String> = completions.iter().map(|span| code(span)).collect();
    codes.sort_unstable();
    assert_eq!(codes, ["INTERNAL", "INVALID_ARGUMENT"], "what was not sampled is not there");
    assert!(steps.iter().flat_map(|step| &step.links).all(|link| link.span_id == root.span_id));
    assert_eq!(steps.len(), 2, "nor are its steps: {steps:#?}");
    let failed = completions.iter().find(|span| code(span) == "INTERNAL").expect("has failed");
    assert_eq!(attributes(&failed.attributes)["error.type"], "INTERNAL");
    assert_eq!(attributes(&failed.attributes)["sconce.error_reason"], "INTERNAL");
    assert_eq!(failed.status.as_ref().map(|status| status.code()), Some(StatusCode::Error));
    // Nobody has an account of it, and it was admitted.
    for name in ["encode", "queue"] {
        assert_eq!(named(&called, name).parent_span_id, failed.span_id);
    }
    assert_eq!(called.len(), 5, "{called:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_down_fails_and_holds_up_nothing() {
    // A port that was free, and that nobody listens on.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let nowhere = listener.local_addr().expect("has an address");
    drop(listener);
    let mut server = serve(nowhere).await;
    for number in 0..100 {
        server.complete(&format!("hello {number}"), &[]).await.expect("ends in order");
    }
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_never_answers_holds_up_the_end_for_a_bounded_time() {
    // Connections wait to be accepted, and nobody does.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let mut server = serve(listener.local_addr().expect("has an address")).await;
    server.complete("hello", &[]).await.expect("ends in order");
    server.end().await;
}

#[tokio::test]
async fn an_endpoint_that_is_none_is_refused() {
    let trace = TracePlan { endpoint: Some("https://127.0.0.1:1".to_owned()) };
    let listen = vec![ListenAddress::Tcp(([127, 0, 0, 1], 0).into())];
    let error = Server::bind(ServePlan { listen, trace, ..ServePlan::default() }).await;
    let error = error.expect_err("has no TLS");
    assert!(matches!(error, ServeError::Trace(_)), "{error}");
    assert!(error.to_string().contains("telemetry.otlp"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_opts_in_is_told_what_was_asked_of_the_model() {
    let (address, mut exports) = collector().await;
    // Variables are of a process, so this one has its own.
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_sconce"));
    command
        .args([
            "complete",
            "--path",
            "sim:",
            "-n",
            "3",
            "--ignore-eos",
            "--temperature",
            "0.5",
            "hello",
        ])
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{address}"))
        .env("OTEL_SEMCONV_STABILITY_OPT_IN", "http,gen_ai_latest_experimental")
        .env("OTEL_SERVICE_NAME", "named")
        // Only callers decide: nobody keeps what has no parent, as a step.
        .env("OTEL_TRACES_SAMPLER", "parentbased_always_off")
        .env("TRACEPARENT", PARENT)
        .stdin(std::process::Stdio::null());
    let run = tokio::task::spawn_blocking(move || command.output()).await.expect("does not panic");
    let output = run.expect("starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let Received { spans, steps, sender } = received(&mut exports);
    assert_eq!(sender["service.name"], "named");
    let rpc = named(&spans, "sconce.v1.InferenceService/Complete");
    assert_eq!(hex(&rpc.trace_id), TRACE, "the client passes on whose trace it is part of");
    assert_eq!(steps.len(), 2, "steps are kept with their requests: {steps:#?}");
    let told = attributes(&rpc.attributes);
    assert_eq!(told["gen_ai.operation.name"], "text_completion");
    assert_eq!(told["gen_ai.provider.name"], "sconce");
    assert_eq!(told["gen_ai.request.model"], "local");
    assert_eq!(told["gen_ai.request.max_tokens"], "3");
    assert_eq!(told["gen_ai.request.temperature"], "0.5");
    assert_eq!(told["gen_ai.usage.input_tokens"], "5");
    assert_eq!(told["gen_ai.usage.output_tokens"], "3");
    assert!(told["gen_ai.response.finish_reasons"].contains("length"));
}
