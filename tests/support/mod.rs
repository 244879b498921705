//! A server in this process on a free port, clients for it, and the baseline it must return to.
#![allow(dead_code, reason = "each test file uses its own part of this")]

pub(crate) mod http;
pub(crate) mod identity;
pub(crate) mod patient;
pub(crate) mod prometheus;
pub(crate) mod raw;
pub(crate) mod tls;
pub(crate) mod vllm;

use std::future::Future;
use std::time::Duration;

use sconce_proto::health::health_client::HealthClient;
use sconce_proto::v1::complete_request::Prompt;
use sconce_proto::v1::complete_response::Event;
use sconce_proto::v1::inference_service_client::InferenceServiceClient;
use sconce_proto::v1::model_service_client::ModelServiceClient;
use sconce_proto::v1::state_service_client::StateServiceClient;
use sconce_proto::v1::{
    CompleteRequest, CompleteResponse, Delta, Finished, GetStatusRequest, GetStatusResponse,
    MemoryLedger, Started, Tier, TokensPrompt,
};
use sconce_server::models::Condition;
use sconce_server::serve::{
    DrainPlan, EnginePlan, ListenAddress, ModelPlan, ServeError, ServePlan, Server, ServerHandle,
};
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt as _};

/// Name of the model that every fixture has.
pub(crate) const MODEL: &str = "sim";

/// Longest a test may take; far above what any needs.
const PATIENCE: Duration = Duration::from_secs(120);

/// Longest a server may take to return to its baseline, in status calls.
const STATUS_CALLS_MAX: usize = 20_000;

/// Runs a test's body, bounded in time.
pub(crate) async fn within<T>(body: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, Box::pin(body)).await.expect("the test ends in time")
}

/// A plan for one simulated model, `options` being what follows `sim:`.
pub(crate) fn plan(options: &str) -> ServePlan {
    let model = ModelPlan {
        name: MODEL.to_owned(),
        path: format!("sim:{options}"),
        context_length: None,
        keep_alive: None,
    };
    // Long enough for completions that outlast whatever a test does meanwhile.
    let engine = EnginePlan { context_length_max: 100_000_000, ..EnginePlan::default() };
    ServePlan {
        listen: vec![ListenAddress::Tcp(([127, 0, 0, 1], 0).into())],
        models: vec![model],
        engine,
        drain: DrainPlan { withdrawal: Duration::ZERO, drain: Duration::from_secs(60) },
        ..ServePlan::default()
    }
}

/// A running server and a connection to it.
pub(crate) struct Fixture {
    pub(crate) handle: ServerHandle,
    pub(crate) channel: Channel,
    pub(crate) task: JoinHandle<Result<(), ServeError>>,
    baseline: (Vec<MemoryLedger>, usize),
}

impl Fixture {
    /// A server with the simulated model and defaults.
    pub(crate) async fn start() -> Self {
        Self::with(plan("")).await
    }

    /// A server as planned; its first address must be TCP.
    pub(crate) async fn with(plan: ServePlan) -> Self {
        let server = Server::bind(plan).await.expect("binds");
        let handle = server.handle();
        let task = tokio::spawn(server.run(std::future::pending()));
        let channel = connect(&handle).await;
        let mut fixture = Self { handle, channel, task, baseline: Default::default() };
        fixture.until_ready().await;
        let status = fixture.status().await;
        fixture.baseline = (status.memory, status.models.len());
        fixture
    }

    /// Waits, on a health watch, until the planned models are loaded.
    async fn until_ready(&self) {
        let request = sconce_proto::health::HealthCheckRequest { service: "readiness".to_owned() };
        let mut watch = self.health().watch(request).await.expect("watches").into_inner();
        loop {
            let news = watch.message().await.expect("is alive").expect("stays open");
            if news.status() == sconce_proto::health::health_check_response::ServingStatus::Serving
            {
                return;
            }
        }
    }

    pub(crate) fn inference(&self) -> InferenceServiceClient<Channel> {
        InferenceServiceClient::new(self.channel.clone()).max_decoding_message_size(64 << 20)
    }

    pub(crate) fn models(&self) -> ModelServiceClient<Channel> {
        ModelServiceClient::new(self.channel.clone())
    }

    pub(crate) fn state(&self) -> StateServiceClient<Channel> {
        StateServiceClient::new(self.channel.clone())
    }

    pub(crate) fn health(&self) -> HealthClient<Channel> {
        HealthClient::new(self.channel.clone())
    }

    pub(crate) async fn status(&self) -> GetStatusResponse {
        self.models().get_status(GetStatusRequest {}).await.expect("tells its status").into_inner()
    }

    /// Asks for the status until `holds`.
    pub(crate) async fn until(&self, what: &str, holds: impl Fn(&GetStatusResponse) -> bool) {
        let mut last = None;
        for _ in 0..STATUS_CALLS_MAX {
            let status = self.status().await;
            if holds(&status) {
                return;
            }
            last = Some(status);
            tokio::task::yield_now().await;
        }
        panic!("{what}: not after {STATUS_CALLS_MAX} status calls; the last was {last:#?}");
    }

    /// Asserts that memory, sequences and models return to what they were at the start.
    pub(crate) async fn settled(&self) {
        let (memory, models) = &self.baseline;
        let memory = without_cache(memory);
        self.until("no sequence and the memory of the start", |status| {
            let counts = status.sequences.unwrap_or_default();
            counts.waiting == 0
                && counts.running == 0
                && without_cache(&status.memory) == memory
                && status.models.len() == *models
                && status.models.iter().map(|model| model.state_bytes_used).sum::<u64>()
                    <= cached_on_device(&status.memory)
        })
        .await;
    }

    /// Settles, shuts down and asserts an orderly end.
    pub(crate) async fn end(self) {
        self.settled().await;
        self.shut_down().await;
    }

    /// The same where the memory need not be that of the start; a shutdown may have begun.
    pub(crate) async fn shut_down(self) {
        self.handle.shut_down();
        drop(self.channel);
        self.task.await.expect("does not panic").expect("ends in order");
    }

    /// Opens a completion's stream.
    pub(crate) async fn open(
        &self,
        request: CompleteRequest,
    ) -> Result<Streaming<CompleteResponse>, Status> {
        self.inference().complete(request).await.map(tonic::Response::into_inner)
    }

    /// Runs a completion to its end.
    pub(crate) async fn complete(&self, request: CompleteRequest) -> Result<Completed, Status> {
        let completed = collect(self.open(request).await?).await;
        match completed.status {
            Some(status) => Err(status),
            None => Ok(completed),
        }
    }

    /// The refusal of a completion.
    pub(crate) async fn refused(&self, request: CompleteRequest) -> Status {
        self.complete(request).await.expect_err("is refused")
    }
}

/// The account of memory as if the cache kept nothing. On the device, what it keeps is a part of the
/// memory that a model set aside for sequences.
fn without_cache(memory: &[MemoryLedger]) -> Vec<MemoryLedger> {
    let tiers = memory.iter().cloned();
    tiers
        .map(|tier| MemoryLedger {
            live_state_bytes: match tier.tier() {
                Tier::Device => tier.live_state_bytes + tier.cached_state_bytes,
                _ => tier.live_state_bytes,
            },
            cached_state_bytes: 0,
            ..tier
        })
        .collect()
}

fn cached_on_device(memory: &[MemoryLedger]) -> u64 {
    let device = memory.iter().filter(|tier| tier.tier() == Tier::Device);
    device.map(|tier| tier.cached_state_bytes).sum()
}

/// A new connection to the server's first address.
pub(crate) async fn connect(handle: &ServerHandle) -> Channel {
    let ListenAddress::Tcp(address) = &handle.local_addrs()[0] else {
        panic!("expected a TCP address first, found {:?}", handle.local_addrs());
    };
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("a valid address");
    endpoint.connect().await.expect("connects")
}

/// What a completion's stream said.
#[derive(Debug, Default)]
pub(crate) struct Completed {
    pub(crate) started: Option<Started>,
    pub(crate) deltas: Vec<Delta>,
    pub(crate) finished: Option<Finished>,
    /// The error it ended with.
    pub(crate) status: Option<Status>,
}

impl Completed {
    pub(crate) fn text(&self) -> String {
        self.deltas.iter().map(|delta| delta.text.as_str()).collect()
    }

    pub(crate) fn token_ids(&self) -> Vec<u32> {
        self.deltas.iter().flat_map(|delta| delta.token_ids.iter().copied()).collect()
    }

    pub(crate) fn finished(&self) -> &Finished {
        self.finished.as_ref().expect("a last message")
    }
}

/// Reads a stream to its end and asserts the order of its messages.
pub(crate) async fn collect(mut stream: Streaming<CompleteResponse>) -> Completed {
    let mut completed = Completed::default();
    loop {
        let message = match stream.message().await {
            Ok(Some(message)) => message,
            Ok(None) => return completed,
            Err(status) => {
                completed.status = Some(status);
                return completed;
            }
        };
        assert!(completed.finished.is_none(), "a message after the last: {message:?}");
        match message.event.expect("an event") {
            Event::Started(started) => {
                assert!(completed.started.is_none() && completed.deltas.is_empty());
                completed.started = Some(started);
            }
            Event::Delta(delta) => {
                assert!(completed.started.is_some(), "a delta before the first message");
                completed.deltas.push(delta);
            }
            Event::Finished(finished) => {
                assert!(completed.started.is_some(), "the end before the first message");
                completed.finished = Some(finished);
            }
        }
    }
}

/// A completion of a text by the fixture's model, greedy.
pub(crate) fn text(text: &str, max_tokens: u32) -> CompleteRequest {
    request(Prompt::Text(text.to_owned()), max_tokens)
}

/// A completion of tokens by the fixture's model, greedy.
pub(crate) fn tokens(ids: Vec<u32>, max_tokens: u32) -> CompleteRequest {
    request(Prompt::Tokens(TokensPrompt { ids }), max_tokens)
}

fn request(prompt: Prompt, max_tokens: u32) -> CompleteRequest {
    CompleteRequest {
        model: MODEL.to_owned(),
        prompt: Some(prompt),
        max_tokens: Some(max_tokens),
        ignore_eos: true,
        ..CompleteRequest::default()
    }
}

/// Asserts the code, the reason and the request id of an error, and returns its details.
pub(crate) fn details(status: &Status, code: Code, reason: &str) -> ErrorDetails {
    assert_eq!(status.code(), code, "{status:?}");
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("no ErrorInfo in {status:?}"));
    assert_eq!((info.reason.as_str(), info.domain.as_str()), (reason, "sconce"), "{status:?}");
    let request = details.request_info().unwrap_or_else(|| panic!("no RequestInfo in {status:?}"));
    assert!(!request.request_id.is_empty());
    details
}

/// Asserts an INVALID_ARGUMENT that names `field`.
pub(crate) fn names_field(status: &Status, field: &str) {
    let details = details(status, Code::InvalidArgument, "INVALID_FIELD");
    let violations = &details.bad_request().expect("a BadRequest").field_violations;
    assert_eq!(violations.len(), 1, "{status:?}");
    assert_eq!(violations[0].field, field, "{status:?}");
    assert!(status.message().starts_with(field), "{}", status.message());
}

/// Asserts an UNIMPLEMENTED that names `feature`.
pub(crate) fn names_feature(status: &Status, feature: &str) {
    let details = details(status, Code::Unimplemented, "NOT_OFFERED");
    let violations = &details.bad_request().expect("a BadRequest").field_violations;
    assert_eq!(violations[0].field, feature, "{status:?}");
}

/// A server that asks who one is, so that a test brings its own connections.
pub(crate) struct Secured {
    pub(crate) handle: ServerHandle,
    task: JoinHandle<Result<(), ServeError>>,
}

impl Secured {
    /// A server as planned, with its models loaded.
    pub(crate) async fn start(plan: ServePlan) -> Self {
        let server = Server::bind(plan).await.expect("binds");
        let handle = server.handle();
        let task = tokio::spawn(server.run(std::future::pending()));
        assert!(handle.models().condition_other_than(Condition::default()).await.ready);
        Self { handle, task }
    }

    /// Shuts down and asserts an orderly end.
    pub(crate) async fn end(self) {
        self.handle.shut_down();
        self.task.await.expect("does not panic").expect("ends in order");
    }
}
