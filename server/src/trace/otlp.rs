//! Spans over OTLP: what a request's spans are called, what they say, and how they leave.
//!
//! Names follow OpenTelemetry's conventions for RPC, a release candidate: as of July 2026 they call the
//! code `rpc.status_code`, which was `rpc.response.status_code` until then, and take the server's
//! address from `:authority`. What its conventions for generative AI add, which may change still, comes
//! with `gen_ai_latest_experimental` in `OTEL_SEMCONV_STABILITY_OPT_IN`. Names of our own begin with
//! `sconce.`.

use std::net::SocketAddr;
use std::str::FromStr as _;
use std::time::{Duration, Instant, SystemTime};

use http::HeaderMap;
use http::uri::Authority;
use opentelemetry::trace::{
    Span as _, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags, TraceId,
    TraceState, Tracer as _, TracerProvider as _,
};
use opentelemetry::{Array, Context, KeyValue, StringValue, Value};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Config, SdkTracer, SdkTracerProvider};
use sconce_engine::TraceMark;
use tonic::Code;

use super::steps::KeepLinked;
use super::{ENDPOINT_VARIABLES, TraceContext, TracePlan};
use crate::grpc::status::code_name;
use crate::layer::access_log::Facts;

/// Longest that the end of the server waits for the collector to take what is left.
pub(super) const FLUSH_TIME_MAX: Duration = Duration::from_secs(3);

/// Longest `grpc-timeout` that is told: what the protocol allows.
const TIMEOUT_BYTES_MAX: usize = 9;

/// Longest name of the server that is told, as callers call it: what the domain name system allows.
const ADDRESS_BYTES_MAX: usize = 253;

/// Makes spans and sends them. They wait in a queue of `OTEL_BSP_MAX_QUEUE_SIZE` (2048) and are
/// dropped beyond it, so that a collector that is slow or gone costs spans and nothing else.
#[derive(Debug, Clone)]
pub(super) struct Spans {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    gen_ai: bool,
}

/// Who is at the two ends of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ends<'a> {
    /// The other end of the TCP connection, if it is one.
    pub(super) peer: Option<SocketAddr>,
    /// This server, as the caller calls it.
    pub(super) authority: Option<&'a Authority>,
}

/// The span of a request that is not over.
#[derive(Debug)]
pub(super) struct RpcSpan {
    tracer: SdkTracer,
    context: Context,
    began: (Instant, SystemTime),
    gen_ai: bool,
}

impl Spans {
    /// Begins to send spans, if there is somewhere to send them.
    ///
    /// # Errors
    /// An endpoint that is none.
    pub(super) fn start(plan: &TracePlan) -> Result<Option<Self>, String> {
        let is_named = plan.endpoint.is_some()
            || ENDPOINT_VARIABLES.into_iter().any(|name| set(name).is_some());
        let is_off = set("OTEL_SDK_DISABLED").is_some_and(|off| off.eq_ignore_ascii_case("true"));
        if !is_named || is_off {
            return Ok(None);
        }
        let mut exporter = SpanExporter::builder().with_tonic();
        if let Some(endpoint) = &plan.endpoint {
            exporter = exporter.with_endpoint(endpoint);
        }
        let exporter = exporter.build().map_err(|error| error.to_string())?;
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource())
            // The default's is that of the environment.
            .with_sampler(KeepLinked(Config::default().sampler))
            .build();
        let opted = set("OTEL_SEMCONV_STABILITY_OPT_IN").unwrap_or_default();
        let gen_ai = opted.split(',').any(|one| one.trim() == "gen_ai_latest_experimental");
        Ok(Some(Self { tracer: provider.tracer("sconce"), provider, gen_ai }))
    }

    /// A request begins.
    pub(super) fn begin(
        &self,
        rpc: &str,
        headers: &HeaderMap,
        caller: Option<&TraceContext>,
        ends: Ends<'_>,
    ) -> RpcSpan {
        let began = (Instant::now(), SystemTime::now());
        let mut attributes = vec![
            KeyValue::new("rpc.system.name", "grpc"),
            KeyValue::new("rpc.method", rpc.to_owned()),
        ];
        attributes.extend(ends.attributes());
        let timeout = headers.get("grpc-timeout").and_then(|value| value.to_str().ok());
        if let Some(timeout) = timeout.filter(|text| text.len() <= TIMEOUT_BYTES_MAX) {
            attributes.push(KeyValue::new("sconce.grpc_timeout", timeout.to_owned()));
        }
        let parent = caller.map_or_else(Context::new, remote);
        let builder = self
            .tracer
            .span_builder(rpc.to_owned())
            .with_kind(SpanKind::Server)
            .with_start_time(began.1)
            .with_attributes(attributes);
        let span = self.tracer.build_with_context(builder, &parent);
        let context = Context::new().with_span(span);
        RpcSpan { tracer: self.tracer.clone(), context, began, gen_ai: self.gen_ai }
    }

    /// What makes spans.
    pub(super) fn tracer(&self) -> &SdkTracer {
        &self.tracer
    }

    /// Sends what is left.
    pub(super) async fn stop(self) {
        let provider = self.provider;
        let flush =
            tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH_TIME_MAX));
        // The thread may be in the middle of an export that takes longer.
        let problem = match tokio::time::timeout(2 * FLUSH_TIME_MAX, flush).await {
            Ok(Ok(Ok(()))) => return,
            Ok(Ok(Err(error))) => error.to_string(),
            Ok(Err(error)) => error.to_string(),
            Err(elapsed) => elapsed.to_string(),
        };
        tracing::warn!(problem, "the last spans were not sent");
    }
}

impl Ends<'_> {
    fn attributes(self) -> Vec<KeyValue> {
        let mut attributes = Vec::new();
        if let Some(peer) = self.peer {
            attributes.push(KeyValue::new("network.peer.address", peer.ip().to_string()));
            attributes.push(KeyValue::new("network.peer.port", i64::from(peer.port())));
        }
        let Some(authority) = self.authority else { return attributes };
        // Brackets are of the URL, and no part of an address.
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        if (1..=ADDRESS_BYTES_MAX).contains(&host.len()) {
            attributes.push(KeyValue::new("server.address", host.to_owned()));
            let port = authority.port_u16().map(i64::from);
            attributes.extend(port.map(|port| KeyValue::new("server.port", port)));
        }
        attributes
    }
}

impl RpcSpan {
    /// The trace it belongs to.
    pub(super) fn trace_id(&self) -> String {
        self.context.span().span_context().trace_id().to_string()
    }

    /// Which span it is, if that is kept.
    pub(super) fn mark(&self) -> Option<TraceMark> {
        let span = self.context.span();
        let context = span.span_context();
        let mark = || TraceMark {
            trace: context.trace_id().to_bytes(),
            span: context.span_id().to_bytes(),
        };
        context.is_sampled().then(mark)
    }

    /// The request is over: tells what is known of it, and where its time went.
    pub(super) fn end(self, facts: &Facts, code: Code) {
        let span = self.context.span();
        if !span.is_recording() {
            return;
        }
        let now = Instant::now();
        self.phases(facts, now);
        span.set_attributes(outcome(facts, code));
        if self.gen_ai {
            span.set_attributes(gen_ai(facts));
        }
        if is_our_fault(code) {
            span.set_status(Status::error(""));
        }
        span.end_with_timestamp(self.at(now));
    }

    /// Spans of what the engine has accounted for; of a request that ended before its account, of
    /// what is known.
    fn phases(&self, facts: &Facts, now: Instant) {
        let Some(phases) = facts.phases else { return };
        let encoded = phases.arrived + phases.encode;
        self.child("encode", phases.arrived, encoded, Vec::new());
        let Some(timings) = &facts.timings else {
            self.child("queue", encoded, phases.admitted.unwrap_or(now), Vec::new());
            return;
        };
        let admitted = (phases.arrived + timings.queue).max(encoded);
        self.child("queue", encoded, admitted, Vec::new());
        let prompt_done = admitted + timings.prefill;
        let tier =
            facts.cache_tier.map(|tier| KeyValue::new("sconce.cache_tier", tier.to_string()));
        let found = vec![
            count("sconce.prompt_tokens", facts.prompt_tokens),
            count("sconce.matched_tokens", facts.matched_tokens),
            count("sconce.resumed_tokens", facts.cached_tokens),
            facts.restored_bytes.map(|bytes| {
                KeyValue::new("sconce.restored_bytes", i64::try_from(bytes).unwrap_or(i64::MAX))
            }),
            tier,
            facts.cache_reason.map(|reason| KeyValue::new("sconce.cache_reason", reason)),
        ];
        self.child("prefill", admitted, prompt_done, found);
        let generated = vec![count("sconce.completion_tokens", facts.completion_tokens)];
        self.child("decode", prompt_done, prompt_done + timings.decode, generated);
    }

    fn child(
        &self,
        name: &'static str,
        from: Instant,
        to: Instant,
        attributes: Vec<Option<KeyValue>>,
    ) {
        let builder = self
            .tracer
            .span_builder(name)
            .with_kind(SpanKind::Internal)
            .with_start_time(self.at(from))
            .with_attributes(attributes.into_iter().flatten());
        let mut span = self.tracer.build_with_context(builder, &self.context);
        span.end_with_timestamp(self.at(to));
    }

    /// The moment on the calendar.
    fn at(&self, moment: Instant) -> SystemTime {
        self.began.1 + moment.saturating_duration_since(self.began.0)
    }
}

/// A variable that is set to something.
fn set(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// What sends the spans: as `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` say, which the builder
/// reads.
fn resource() -> Resource {
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let builder = Resource::builder().with_attribute(version);
    let attributes = set("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    let is_named = attributes.split(',').any(|one| one.trim().starts_with("service.name="));
    if set("OTEL_SERVICE_NAME").is_some() || is_named {
        builder.build()
    } else {
        builder.with_service_name("sconce").build()
    }
}

fn remote(caller: &TraceContext) -> Context {
    let flags = if caller.sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
    Context::new().with_remote_span_context(SpanContext::new(
        TraceId::from_bytes(caller.trace),
        SpanId::from_bytes(caller.parent),
        flags,
        true,
        // As the specification asks, a malformed state is dropped and the parent kept.
        TraceState::from_str(&caller.state).unwrap_or_default(),
    ))
}

/// Codes by which a server says that it has failed, and not the caller.
fn is_our_fault(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}

pub(super) fn count(name: &'static str, count: Option<usize>) -> Option<KeyValue> {
    count.map(|count| KeyValue::new(name, i64::try_from(count).unwrap_or(i64::MAX)))
}

/// Attributes of the RPC that are known at its end.
fn outcome(facts: &Facts, code: Code) -> Vec<KeyValue> {
    let mut attributes = vec![KeyValue::new("rpc.status_code", code_name(code))];
    if is_our_fault(code) {
        attributes.push(KeyValue::new("error.type", code_name(code)));
    }
    let texts = [
        ("sconce.request_id", facts.request_id.clone()),
        ("sconce.model", facts.model.clone()),
        ("sconce.error_reason", facts.error_reason.clone()),
        ("sconce.finish_reason", facts.finish_reason.map(str::to_owned)),
    ];
    attributes
        .extend(texts.into_iter().filter_map(|(name, text)| Some(KeyValue::new(name, text?))));
    attributes.extend(facts.priority.map(|one| KeyValue::new("sconce.priority", i64::from(one))));
    attributes
}

/// Attributes of the conventions for generative AI.
fn gen_ai(facts: &Facts) -> Vec<KeyValue> {
    let Some(asked) = &facts.asked else { return Vec::new() };
    let mut attributes = vec![
        KeyValue::new("gen_ai.operation.name", asked.operation),
        KeyValue::new("gen_ai.provider.name", "sconce"),
        KeyValue::new("gen_ai.request.stream", true),
    ];
    for name in ["gen_ai.request.model", "gen_ai.response.model"] {
        attributes.extend(facts.model.clone().map(|model| KeyValue::new(name, model)));
    }
    let fractions =
        [("gen_ai.request.temperature", asked.temperature), ("gen_ai.request.top_p", asked.top_p)];
    for (name, fraction) in fractions {
        attributes.extend(fraction.map(|fraction| KeyValue::new(name, f64::from(fraction))));
    }
    let counts = [
        count("gen_ai.request.max_tokens", asked.max_tokens),
        count("gen_ai.request.top_k", asked.top_k),
        count("gen_ai.usage.input_tokens", facts.prompt_tokens),
        count("gen_ai.usage.output_tokens", facts.completion_tokens),
        count("gen_ai.usage.cache_read.input_tokens", facts.cached_tokens),
    ];
    attributes.extend(counts.into_iter().flatten());
    if let Some(first) = facts.first_token {
        let name = "gen_ai.response.time_to_first_chunk";
        attributes.push(KeyValue::new(name, first.as_secs_f64()));
    }
    if let Some(reason) = facts.finish_reason {
        let reasons = Value::Array(Array::String(vec![StringValue::from(reason)]));
        attributes.push(KeyValue::new("gen_ai.response.finish_reasons", reasons));
    }
    attributes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(authority: &str) -> Vec<(String, String)> {
        let authority: Authority = authority.parse().expect("an authority");
        let ends = Ends { peer: None, authority: Some(&authority) };
        let pair = |one: KeyValue| (one.key.to_string(), one.value.to_string());
        ends.attributes().into_iter().map(pair).collect()
    }

    #[test]
    fn the_server_is_called_as_the_caller_calls_it_within_bounds() {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let address = |host| pair("server.address", host);
        assert_eq!(told("host.example:1"), [address("host.example"), pair("server.port", "1")]);
        assert_eq!(told("[::1]:50051"), [address("::1"), pair("server.port", "50051")]);
        assert_eq!(told("localhost"), [address("localhost")]);
        assert_eq!(told("user@host"), [address("host")]);
        assert_eq!(told(&"a".repeat(253)).len(), 1);
        assert_eq!(told(&"a".repeat(254)), []);
        assert!(Ends { peer: None, authority: None }.attributes().is_empty());
    }
}
