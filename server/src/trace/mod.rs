//! Traces: which trace a request belongs to, and the spans that tell where its time went.
//!
//! A caller's W3C trace context is read in every build, so that a log line names its trace. Spans are
//! made and sent in builds with the feature `otlp`: one for the RPC, and under it `encode`, `queue`,
//! `prefill` and `decode`, made when the request is over from the times that the engine has kept. So
//! a request on its way costs nothing more than one span, and no span is made for each token. Of the
//! engine's steps the slowest are spans, which link to those of the requests in them.

mod context;
#[cfg(feature = "otlp")]
mod otlp;
#[cfg(feature = "otlp")]
mod steps;

use std::net::SocketAddr;

use http::{HeaderMap, Uri};
use sconce_engine::{StepSample, TraceMark};
use tokio::sync::mpsc;
use tonic::Code;

pub use self::context::TraceContext;
use crate::layer::access_log::Facts;
#[cfg(feature = "otlp")]
use crate::layer::access_log::is_look;

/// Whether this build can send spans.
pub const IS_BUILT: bool = cfg!(feature = "otlp");

/// Variables that name a collector where the plan does not, by the first that is set.
pub const ENDPOINT_VARIABLES: [&str; 2] =
    ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

/// Where spans go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TracePlan {
    /// URL of a collector that takes OTLP over gRPC, as `http://127.0.0.1:4317`; `None` for what
    /// [`ENDPOINT_VARIABLES`] say, and none if they say nothing.
    pub endpoint: Option<String>,
}

/// Makes spans, or none; clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Tracer {
    #[cfg(feature = "otlp")]
    spans: Option<otlp::Spans>,
}

/// Makes spans of steps for as long as the engine has some.
#[derive(Debug, Default)]
pub struct StepSpans {
    #[cfg(feature = "otlp")]
    task: Option<tokio::task::JoinHandle<()>>,
}

/// A request as a trace sees it.
#[derive(Debug)]
pub struct RequestSpan {
    trace_id: Option<String>,
    #[cfg(feature = "otlp")]
    span: Option<otlp::RpcSpan>,
}

impl Tracer {
    /// Begins to send spans as planned. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// In words: a build without the feature, an endpoint that is none.
    #[cfg(feature = "otlp")]
    pub fn start(plan: &TracePlan) -> Result<Self, String> {
        Ok(Self { spans: otlp::Spans::start(plan)? })
    }

    /// Begins to send spans as planned. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// In words: a build without the feature, an endpoint that is none.
    #[cfg(not(feature = "otlp"))]
    pub fn start(plan: &TracePlan) -> Result<Self, String> {
        match &plan.endpoint {
            None => Ok(Self::default()),
            Some(endpoint) => Err(format!(
                "expected no endpoint, for this build has no feature `otlp`, found `{endpoint}`"
            )),
        }
    }

    /// A request to `rpc` begins. What only looks comes every second or so and says nothing new: it
    /// has no span.
    pub fn begin(
        &self,
        rpc: &str,
        uri: &Uri,
        headers: &HeaderMap,
        peer: Option<SocketAddr>,
    ) -> RequestSpan {
        let context = TraceContext::of(headers);
        #[cfg(feature = "otlp")]
        if let Some(spans) = self.spans.as_ref().filter(|_| !is_look(rpc)) {
            let ends = otlp::Ends { peer, authority: uri.authority() };
            let span = spans.begin(rpc, headers, context.as_ref(), ends);
            return RequestSpan { trace_id: Some(span.trace_id()), span: Some(span) };
        }
        // Only a span would need them.
        let _ = (rpc, uri, peer);
        RequestSpan {
            trace_id: context.map(|context| context.trace_id()),
            #[cfg(feature = "otlp")]
            span: None,
        }
    }

    /// Begins to make spans of the steps that the engine tells of; `samples` is called only if spans are
    /// sent.
    pub fn follow(&self, samples: impl FnOnce() -> mpsc::Receiver<StepSample>) -> StepSpans {
        #[cfg(feature = "otlp")]
        if let Some(spans) = &self.spans {
            let task = tokio::spawn(steps::follow(spans.tracer().clone(), samples()));
            return StepSpans { task: Some(task) };
        }
        drop(samples);
        StepSpans::default()
    }

    /// Sends what is left, `steps` included, for a bounded time. The engine has ended.
    pub async fn stop(self, steps: StepSpans) {
        #[cfg(feature = "otlp")]
        if let Some(spans) = self.spans {
            if let Some(task) = steps.task {
                steps::end(task).await;
            }
            spans.stop().await;
        }
        #[cfg(not(feature = "otlp"))]
        let StepSpans {} = steps;
    }
}

impl RequestSpan {
    /// The trace it belongs to, as 32 hexadecimal digits: the caller's, or one of its own.
    pub fn trace_id(&self) -> Option<&str> {
        self.trace_id.as_deref()
    }

    /// Which span it is, if that is kept.
    pub fn mark(&self) -> Option<TraceMark> {
        #[cfg(feature = "otlp")]
        let mark = self.span.as_ref().and_then(otlp::RpcSpan::mark);
        #[cfg(not(feature = "otlp"))]
        let mark = None;
        mark
    }

    /// The request is over.
    pub fn end(&mut self, facts: &Facts, code: Code) {
        #[cfg(feature = "otlp")]
        if let Some(span) = self.span.take() {
            span.end(facts, code);
        }
        #[cfg(not(feature = "otlp"))]
        let _ = (facts, code);
    }
}
