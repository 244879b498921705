//! Spans of steps: each in a trace of its own, with links to the requests that were in the step.

use std::time::SystemTime;

use opentelemetry::trace::{
    Link, Span as _, SpanContext, SpanId, SpanKind, TraceFlags, TraceId, TraceState, Tracer as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{SamplingDecision, SamplingResult, SdkTracer, ShouldSample};
use sconce_engine::{StepSample, TraceMark};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::otlp::{FLUSH_TIME_MAX, count};

/// Keeps what links to a span that is kept, and leaves the rest to another. A step has no parent that could
/// decide of it, so that where a tenth of all requests is kept, a tenth of their steps would be.
#[derive(Debug, Clone)]
pub(super) struct KeepLinked(pub(super) Box<dyn ShouldSample>);

impl ShouldSample for KeepLinked {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        if links.iter().any(|link| link.span_context.is_sampled()) {
            return SamplingResult {
                decision: SamplingDecision::RecordAndSample,
                attributes: Vec::new(),
                trace_state: TraceState::default(),
            };
        }
        self.0.should_sample(parent, trace, name, kind, attributes, links)
    }
}

/// Makes a span of each sample, until there are no more.
pub(super) async fn follow(tracer: SdkTracer, mut samples: mpsc::Receiver<StepSample>) {
    while let Some(sample) = samples.recv().await {
        tell(&tracer, sample);
    }
}

/// Waits for the spans of an engine that has ended. One whose thread hangs is not waited for.
pub(super) async fn end(mut task: JoinHandle<()>) {
    if tokio::time::timeout(FLUSH_TIME_MAX, &mut task).await.is_err() {
        task.abort();
    }
}

fn tell(tracer: &SdkTracer, sample: StepSample) {
    let StepSample { model, step, requests, of } = sample;
    // Moments of a step are of another clock than the calendar's.
    let ago = step.began.elapsed();
    let began = SystemTime::now() - ago;
    let attributes = [
        Some(KeyValue::new("sconce.model", model)),
        Some(KeyValue::new("sconce.step.phase", step.phase.name())),
        count("sconce.step.tokens", Some(step.tokens)),
        count("sconce.step.sequences", Some(step.sequences)),
        Some(KeyValue::new("sconce.step.slowest_of", i64::from(of))),
    ];
    let builder = tracer
        .span_builder("step")
        .with_kind(SpanKind::Internal)
        .with_start_time(began)
        .with_attributes(attributes.into_iter().flatten())
        .with_links(requests.into_iter().map(link).collect());
    let mut span = tracer.build_with_context(builder, &Context::new());
    span.end_with_timestamp(began + step.time);
}

fn link(request: TraceMark) -> Link {
    let (trace, span) = (TraceId::from_bytes(request.trace), SpanId::from_bytes(request.span));
    // Only requests whose spans are kept have marks.
    let flags = TraceFlags::SAMPLED;
    Link::with_context(SpanContext::new(trace, span, flags, false, TraceState::default()))
}
