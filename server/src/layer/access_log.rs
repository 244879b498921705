//! One line about each request when it ends: which RPC, which code, how long, and of a completion
//! what it took. The request is counted then too. Prompts and completions are never in it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;
use sconce_cache::Tier;
use sconce_engine::CacheReport;
use tonic::body::Body;
use tonic::{Code, Status};
use tower_layer::Layer;
use tower_service::Service;

use super::recent::{RecentRequest, RecentRequests};
use super::request_id::RequestId;
use super::{HttpRequest, HttpResponse};
use crate::grpc::status::code_name;
use crate::metrics::CallMeter;

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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
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
    /// Why no more of it was resumed, as in the protocol.
    pub cache_reason: Option<&'static str>,
    /// Tokens generated.
    pub completion_tokens: Option<usize>,
    /// From arrival to the first token.
    pub first_token: Option<Duration>,
}

impl Facts {
    /// Adds what the prefix cache did; `reason` is the report's, as the protocol spells it.
    pub fn tell_cache(&mut self, report: &CacheReport, reason: &'static str) {
        self.matched_tokens = Some(report.matched);
        self.cached_tokens = Some(report.resumed);
        self.cache_tier = report.tier;
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
}

impl AccessLogLayer {
    /// One that leaves what it writes in `recent` too, and counts requests in `calls`.
    pub fn new(recent: RecentRequests, calls: Arc<CallMeter>) -> Self {
        Self { recent, calls }
    }
}

impl<S> Layer<S> for AccessLogLayer {
    type Service = AccessLogService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        AccessLogService { inner, recent: self.recent.clone(), calls: self.calls.clone() }
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct AccessLogService<S> {
    inner: S,
    recent: RecentRequests,
    calls: Arc<CallMeter>,
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
        let mut line = Line {
            facts,
            recent: self.recent.clone(),
            calls: self.calls.clone(),
            rpc: rpc_of(request.uri().path()),
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
    rpc: String,
    id: RequestId,
    began: Instant,
    code: Code,
}

impl Line {
    fn see(&mut self, headers: &HeaderMap) {
        if let Some(status) = Status::from_header_map(headers) {
            self.code = status.code();
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let time = self.began.elapsed();
        self.calls.ended(&self.rpc, self.code, time);
        let ms = milliseconds(time);
        let (rpc, code, request_id) = (&self.rpc, code_name(self.code), self.id.as_str());
        if is_look(&self.rpc) {
            // They come every second or so and say nothing new.
            tracing::debug!(rpc, code, request_id, ms, "request");
            return;
        }
        let facts = self.facts.0.lock();
        tracing::info!(
            rpc,
            code,
            request_id,
            identity = facts.identity.as_deref(),
            model = facts.model.as_deref(),
            prompt_tokens = facts.prompt_tokens,
            matched_tokens = facts.matched_tokens,
            cached_tokens = facts.cached_tokens,
            cache_tier = facts.cache_tier.map(tracing::field::display),
            cache_reason = facts.cache_reason,
            completion_tokens = facts.completion_tokens,
            first_token_ms = facts.first_token.map(milliseconds),
            ms,
            "request"
        );
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
fn is_look(rpc: &str) -> bool {
    rpc.starts_with("grpc.") || LOOKS.contains(&rpc)
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
    }

    #[test]
    fn a_path_is_told_up_to_a_bound() {
        assert_eq!(rpc_of("/sconce.v1.ModelService/Load"), "sconce.v1.ModelService/Load");
        assert_eq!(rpc_of(&format!("/{}", "x".repeat(10_000))), "x".repeat(RPC_BYTES_MAX));
    }
}
