//! One line about each request when it ends: which RPC, which code, how long, and of a completion
//! what it took. The request is counted then too. Prompts and completions are never in it.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;
use sconce_cache::Tier;
use sconce_engine::{CacheReport, Timings};
use tonic::body::Body;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use tower_layer::Layer;
use tower_service::Service;

use super::auth::Peer;
use super::recent::{RecentRequest, RecentRequests};
use super::request_id::RequestId;
use super::{HttpRequest, HttpResponse};
use crate::grpc::status::code_name;
use crate::metrics::CallMeter;
use crate::trace::{RequestSpan, Tracer};

/// Longest path told, in bytes; no RPC of ours has one that long.
const RPC_BYTES_MAX: usize = 128;

/// RPCs that only look, which watchers and gateways repeat all the time.
const LOOKS: [&str; 4] = [
    "sconce.v1.ModelService/GetStatus",
    "sconce.v1.StateService/DescribeCache",
    "vllm.grpc.engine.VllmEngine/GetLoads",
    "vllm.grpc.engine.VllmEngine/HealthCheck",
];

/// What a handler knows of its request and the line should tell.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// Who asked, where that is known.
    pub identity: Option<Arc<str>>,
    /// Name of the model.
    pub model: Option<String>,
    /// Length of the prompt.
    pub prompt_tokens: Option<usize>,
    /// Of these, leading tokens found in the cache.
    pub matched_tokens: Option<usize>,
    /// Of these, tokens whose state came from the cache.
    pub cached_tokens: Option<usize>,
    /// The slowest tier where that state was.
    pub cache_tier: Option<Tier>,
    /// Bytes of it that were brought to the device.
    pub restored_bytes: Option<u64>,
    /// Why no more of it was resumed, as in the protocol.
    pub cache_reason: Option<&'static str>,
    /// Tokens generated.
    pub completion_tokens: Option<usize>,
    /// From arrival to the first token.
    pub first_token: Option<Duration>,
    /// Id of the request.
    pub request_id: Option<String>,
    /// Reason of the error that ended the request.
    pub error_reason: Option<String>,
    /// Priority of a completion, if it is not the usual one.
    pub priority: Option<i32>,
    /// Why a completion ended, as in the protocol but in lower case.
    pub finish_reason: Option<&'static str>,
    /// When a completion went from one phase to the next, as the edge saw it.
    pub phases: Option<Phases>,
    /// The engine's account of the time.
    pub timings: Option<Timings>,
    /// What traces tell of the completion that was asked for, and the log does not.
    pub asked: Option<Asked>,
    /// Where a checkpoint lies.
    pub path: Option<String>,
    /// Name or id of a snapshot.
    pub snapshot: Option<String>,
    /// Bytes that were loaded, kept or moved.
    pub bytes: Option<u64>,
}

/// Phases of a completion before the engine's own account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Phases {
    /// When it arrived.
    pub arrived: Instant,
    /// From then until its prompt was tokens.
    pub encode: Duration,
    /// When it was admitted, if it was.
    pub admitted: Option<Instant>,
}

/// Options of a completion, where they were set.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// `chat` or `text_completion`.
    pub operation: &'static str,
    /// As in the request.
    pub max_tokens: Option<usize>,
    /// As in the request.
    pub temperature: Option<f32>,
    /// As in the request.
    pub top_p: Option<f32>,
    /// As in the request.
    pub top_k: Option<usize>,
}

impl Facts {
    /// Adds what the prefix cache did; `reason` is the report's, as the protocol spells it.
    pub fn tell_cache(&mut self, report: &CacheReport, reason: &'static str) {
        self.matched_tokens = Some(report.matched);
        self.cached_tokens = Some(report.resumed);
        self.cache_tier = report.tier;
        self.restored_bytes = Some(report.restored_bytes);
        self.cache_reason = Some(reason);
    }
}

/// Where a handler leaves [`Facts`]; in the extensions of every request.
#[derive(Debug, Clone, Default)]
pub struct RequestFacts(Arc<Mutex<Facts>>);

impl RequestFacts {
    /// Those of `extensions`; without the layer they go nowhere.
    pub fn of(extensions: &http::Extensions) -> Self {
        extensions.get::<Self>().cloned().unwrap_or_default()
    }

    /// Adds to what is known.
    pub fn tell(&self, change: impl FnOnce(&mut Facts)) {
        change(&mut self.0.lock());
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct AccessLogLayer {
    recent: RecentRequests,
    calls: Arc<CallMeter>,
    tracer: Tracer,
}

impl AccessLogLayer {
    /// One that leaves what it writes in `recent` too, and counts requests in `calls`; they are spans
    /// of `tracer`, and its lines name their traces.
    pub fn new(recent: RecentRequests, calls: Arc<CallMeter>, tracer: Tracer) -> Self {
        Self { recent, calls, tracer }
    }
}

impl<S> Layer<S> for AccessLogLayer {
    type Service = AccessLogService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        AccessLogService {
            inner,
            recent: self.recent.clone(),
            calls: self.calls.clone(),
            tracer: self.tracer.clone(),
        }
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct AccessLogService<S> {
    inner: S,
    recent: RecentRequests,
    calls: Arc<CallMeter>,
    tracer: Tracer,
}

impl<S> Service<HttpRequest> for AccessLogService<S>
where
    S: Service<HttpRequest, Response = HttpResponse>,
    S::Future: Send + 'static,
{
    type Response = HttpResponse;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: HttpRequest) -> Self::Future {
        let facts = RequestFacts::default();
        request.extensions_mut().insert(facts.clone());
        let rpc = rpc_of(request.uri().path());
        let peer = request.extensions().get::<Peer>().and_then(|peer| peer.address);
        let span = self.tracer.begin(&rpc, request.uri(), request.headers(), peer);
        if let Some(mark) = span.mark() {
            request.extensions_mut().insert(mark);
        }
        let mut line = Line {
            facts,
            recent: self.recent.clone(),
            calls: self.calls.clone(),
            span,
            rpc,
            peer,
            id: RequestId::of(request.extensions()),
            began: Instant::now(),
            // Of a request whose future or body is dropped before it ends.
            code: Code::Cancelled,
        };
        let response = self.inner.call(request);
        Box::pin(async move {
            let response = response.await?;
            line.see(response.headers());
            Ok(response.map(|inner| Body::new(LoggedBody { inner, line })))
        })
    }
}

/// The line; written when dropped, which is when the request is over, however it ended.
struct Line {
    facts: RequestFacts,
    recent: RecentRequests,
    calls: Arc<CallMeter>,
    span: RequestSpan,
    rpc: String,
    peer: Option<SocketAddr>,
    id: RequestId,
    began: Instant,
    code: Code,
}

impl Line {
    fn see(&mut self, headers: &HeaderMap) {
        let Some(status) = Status::from_header_map(headers) else { return };
        self.code = status.code();
        if let Some(info) = status.get_details_error_info() {
            self.facts.tell(|facts| facts.error_reason = Some(info.reason));
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let time = self.began.elapsed();
        self.calls.ended(&self.rpc, self.code, time);
        let ms = milliseconds(time);
        let (rpc, code, request_id) = (&self.rpc, code_name(self.code), self.id.as_str());
        let peer = self.peer.map(tracing::field::display);
        if is_look(&self.rpc) && !is_news(self.code) {
            // They come every second or so and say nothing new.
            tracing::debug!(rpc, code, request_id, peer, ms, "request");
            return;
        }
        let mut facts = self.facts.0.lock();
        facts.request_id = Some(request_id.to_owned());
        let timings = facts.timings.as_ref();
        tracing::info!(
            rpc,
            code,
            error_reason = facts.error_reason.as_deref(),
            request_id,
            trace_id = self.span.trace_id(),
            peer,
            identity = facts.identity.as_deref(),
            model = facts.model.as_deref(),
            path = facts.path.as_deref(),
            snapshot = facts.snapshot.as_deref(),
            bytes = facts.bytes,
            priority = facts.priority,
            prompt_tokens = facts.prompt_tokens,
            matched_tokens = facts.matched_tokens,
            cached_tokens = facts.cached_tokens,
            cache_tier = facts.cache_tier.map(tracing::field::display),
            cache_reason = facts.cache_reason,
            completion_tokens = facts.completion_tokens,
            finish_reason = facts.finish_reason,
            queue_ms = timings.map(|timings| milliseconds(timings.queue)),
            prefill_ms = timings.map(|timings| milliseconds(timings.prefill)),
            decode_ms = timings.map(|timings| milliseconds(timings.decode)),
            first_token_ms = facts.first_token.map(milliseconds),
            tokens_per_second = tokens_per_second(&facts),
            ms,
            "request"
        );
        self.span.end(&facts, self.code);
        self.recent.push(RecentRequest {
            rpc: std::mem::take(&mut self.rpc),
            code,
            request_id: request_id.to_owned(),
            facts: facts.clone(),
            took: time,
            ended: Instant::now(),
        });
    }
}

/// Whether an RPC only looks: probes, reflection, and what `sconce top` asks.
pub fn is_look(rpc: &str) -> bool {
    rpc.starts_with("grpc.") || LOOKS.contains(&rpc)
}

/// Whether a look that ended so is told as other requests are: nobody should try tokens unseen, nor a
/// fault of ours stay hidden because it was met by a probe.
fn is_news(code: Code) -> bool {
    matches!(code, Code::Unauthenticated | Code::PermissionDenied | Code::Internal)
}

/// How fast a completion was decoded: the first token is the prompt's, and not counted.
fn tokens_per_second(facts: &Facts) -> Option<f64> {
    let tokens = facts.completion_tokens?.checked_sub(1)?;
    let time = facts.timings.as_ref()?.decode.as_secs_f64();
    // To one digit behind the point.
    (time > 0.0 && tokens > 0).then(|| (tokens as f64 / time * 10.0).round() / 10.0)
}

/// The name of the RPC at `path`. A caller can ask for any path, but not fill the log with it.
fn rpc_of(path: &str) -> String {
    let rpc = path.trim_start_matches('/');
    rpc[..rpc.floor_char_boundary(RPC_BYTES_MAX)].to_owned()
}

/// With microseconds as the last digits, which is as exact as it gets.
fn milliseconds(time: Duration) -> f64 {
    time.as_micros() as f64 / 1e3
}

struct LoggedBody {
    inner: Body,
    line: Line,
}

impl HttpBody for LoggedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(trailers) = frame.trailers_ref()
        {
            self.line.see(trailers);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_who_look_are_told_from_those_who_ask() {
        assert!(is_look("grpc.health.v1.Health/Check"));
        assert!(LOOKS.into_iter().all(is_look));
        assert!(!is_look("sconce.v1.InferenceService/Complete"));
        assert!(is_news(Code::Unauthenticated) && is_news(Code::Internal));
        assert!(!is_news(Code::Ok) && !is_news(Code::Unavailable) && !is_news(Code::Cancelled));
    }

    #[test]
    fn speed_is_that_of_tokens_after_the_first() {
        let timings = Timings { decode: Duration::from_secs(2), ..Timings::default() };
        let facts = |completion_tokens| Facts {
            completion_tokens: Some(completion_tokens),
            timings: Some(timings),
            ..Facts::default()
        };
        assert_eq!(tokens_per_second(&facts(11)), Some(5.0));
        assert_eq!(tokens_per_second(&facts(1)), None);
        assert_eq!(tokens_per_second(&facts(0)), None);
        assert_eq!(tokens_per_second(&Facts::default()), None);
    }

    #[test]
    fn a_path_is_told_up_to_a_bound() {
        assert_eq!(rpc_of("/sconce.v1.ModelService/Load"), "sconce.v1.ModelService/Load");
        assert_eq!(rpc_of(&format!("/{}", "x".repeat(10_000))), "x".repeat(RPC_BYTES_MAX));
    }
}
