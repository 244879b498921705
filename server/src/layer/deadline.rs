//! Bounds a request by the caller's `grpc-timeout` and the server's own limit: the wait for the
//! response and the response's stream alike.
//!
//! Handlers find the [`Deadline`] in the request's extensions and end in order when it passes, with
//! an account of what was done; this layer is the backstop for those that do not.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::{Body as HttpBody, Frame, SizeHint};
use pin_project_lite::pin_project;
use sconce_proto::names;
use tokio::time::{Sleep, sleep_until, timeout_at};
use tonic::Status;
use tonic::body::Body;
use tower_layer::Layer;
use tower_service::Service;

use super::{HttpRequest, HttpResponse};
use crate::error::CallError;

/// Header with the caller's bound.
const HEADER: &str = "grpc-timeout";

/// The limit of a watch: longer than a connection lives.
const WATCH_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// How long after its deadline a request may take to end in order before it is cut off.
const GRACE: Duration = Duration::from_secs(1);

/// When the caller stops waiting; in the extensions of every request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(pub Instant);

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct DeadlineLayer {
    max: Duration,
}

impl DeadlineLayer {
    /// A layer that lets no request take longer than `max`.
    pub fn new(max: Duration) -> Self {
        Self { max }
    }
}

impl<S> Layer<S> for DeadlineLayer {
    type Service = DeadlineService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        DeadlineService { inner, max: self.max }
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct DeadlineService<S> {
    inner: S,
    max: Duration,
}

impl<S> Service<HttpRequest> for DeadlineService<S>
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
        let max = if is_watch(request.uri().path()) { WATCH_MAX } else { self.max };
        let timeout = match request.headers().get(HEADER).map(parse).transpose() {
            Ok(timeout) => timeout.unwrap_or(max).min(max),
            Err(error) => return Box::pin(async { Ok(Status::from(error).into_http()) }),
        };
        let deadline = Instant::now() + timeout;
        let cut_off = tokio::time::Instant::from_std(deadline + GRACE);
        request.extensions_mut().insert(Deadline(deadline));
        let response = self.inner.call(request);
        Box::pin(async move {
            match timeout_at(cut_off, response).await {
                Ok(response) => Ok(response?.map(|inner| {
                    let sleep = sleep_until(cut_off);
                    Body::new(DeadlineBody { inner: Some(inner), sleep })
                })),
                Err(_) => Ok(passed("before the response").into_http()),
            }
        })
    }
}

/// Whether a stream goes on for as long as somebody looks, so that the server's own limit is not for it:
/// health, reflection, and events of the cache, which end when the server drains.
fn is_watch(path: &str) -> bool {
    let path = path.strip_prefix('/').unwrap_or(path);
    path.starts_with("grpc.") || path.strip_prefix(names::VLLM_ENGINE) == Some("/SubscribeKvEvents")
}

fn passed(place: &'static str) -> Status {
    CallError::DeadlineExceeded { place }.into()
}

/// Reads a `grpc-timeout`: at most eight digits and a unit.
fn parse(value: &HeaderValue) -> Result<Duration, CallError> {
    let invalid = || CallError::InvalidMetadata {
        key: HEADER,
        problem: format!(
            "expected 1 to 8 digits and one of H, M, S, m, u, n, found {:?}",
            String::from_utf8_lossy(value.as_bytes())
        ),
    };
    let text = value.to_str().map_err(|_| invalid())?;
    let (digits, unit) = text.split_at_checked(text.len().wrapping_sub(1)).ok_or_else(invalid)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(invalid());
    }
    let amount: u64 = digits.parse().map_err(|_| invalid())?;
    match unit {
        "H" => Ok(Duration::from_secs(amount * 3600)),
        "M" => Ok(Duration::from_secs(amount * 60)),
        "S" => Ok(Duration::from_secs(amount)),
        "m" => Ok(Duration::from_millis(amount)),
        "u" => Ok(Duration::from_micros(amount)),
        "n" => Ok(Duration::from_nanos(amount)),
        _ => Err(invalid()),
    }
}

pin_project! {
    struct DeadlineBody {
        // `None` once it was cut off; dropping it frees what it holds.
        inner: Option<Body>,
        #[pin]
        sleep: Sleep,
    }
}

impl HttpBody for DeadlineBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.project();
        let Some(inner) = this.inner.as_mut() else { return Poll::Ready(None) };
        // The clock first, so that a body which always has more is bounded too.
        if this.sleep.poll(context).is_pending() {
            return Pin::new(inner).poll_frame(context);
        }
        *this.inner = None;
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(match passed("while the answer was streamed").add_header(&mut trailers) {
            Ok(()) => Ok(Frame::trailers(trailers)),
            Err(status) => Err(status),
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        // Not the inner body's: it may be cut short.
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;
    use std::convert::Infallible;
    use tonic::Code;
    use tower::{ServiceExt as _, service_fn};

    fn parsed(text: &str) -> Result<Duration, CallError> {
        parse(&HeaderValue::from_str(text).expect("a header value"))
    }

    #[test]
    fn all_units_are_read() {
        assert_eq!(parsed("2H"), Ok(Duration::from_secs(7200)));
        assert_eq!(parsed("3M"), Ok(Duration::from_secs(180)));
        assert_eq!(parsed("4S"), Ok(Duration::from_secs(4)));
        assert_eq!(parsed("5m"), Ok(Duration::from_millis(5)));
        assert_eq!(parsed("6u"), Ok(Duration::from_micros(6)));
        assert_eq!(parsed("99999999n"), Ok(Duration::from_nanos(99_999_999)));
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "S", "1", "1s", "1.5S", "-1S", "+1S", "123456789S", "1 S", "1SS"] {
            assert!(matches!(parsed(text), Err(CallError::InvalidMetadata { .. })), "{text:?}");
        }
        assert!(parse(&HeaderValue::from_bytes(b"1\xff").expect("opaque")).is_err());
    }

    fn with_timeout(text: &str) -> HttpRequest {
        let mut request = HttpRequest::default();
        request.headers_mut().insert(HEADER, text.parse().expect("a header value"));
        request
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_that_does_not_come_is_cut_off() {
        let service =
            DeadlineLayer::new(Duration::from_secs(60)).layer(service_fn(|_: HttpRequest| {
                std::future::pending::<Result<HttpResponse, Infallible>>()
            }));
        let response = service.oneshot(with_timeout("1S")).await.expect("answered");
        let status = Status::from_header_map(response.headers()).expect("a status");
        assert_eq!(status.code(), Code::DeadlineExceeded);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_does_not_end_is_cut_off() {
        struct Never;
        impl HttpBody for Never {
            type Data = Bytes;
            type Error = Status;
            fn poll_frame(
                self: Pin<&mut Self>,
                _: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
                Poll::Pending
            }
        }
        let service =
            DeadlineLayer::new(Duration::from_secs(60)).layer(service_fn(|_: HttpRequest| async {
                Ok::<_, Infallible>(HttpResponse::new(Body::new(Never)))
            }));
        let response = service.oneshot(HttpRequest::default()).await.expect("answered");
        let body = response.into_body().collect().await.expect("ends");
        let status = Status::from_header_map(body.trailers().expect("trailers")).expect("a status");
        assert_eq!(status.code(), Code::DeadlineExceeded);
    }

    #[tokio::test]
    async fn the_servers_limit_caps_the_callers() {
        let max = Duration::from_secs(5);
        let service =
            DeadlineLayer::new(max).layer(service_fn(|request: HttpRequest| async move {
                let Deadline(at) = *request.extensions().get().expect("a deadline");
                assert!(at <= Instant::now() + Duration::from_secs(5));
                Ok::<_, Infallible>(HttpResponse::default())
            }));
        service.oneshot(with_timeout("99999999H")).await.expect("answered");
    }

    #[tokio::test]
    async fn a_watch_is_bounded_by_its_caller_alone() {
        let max = Duration::from_secs(5);
        let service =
            DeadlineLayer::new(max).layer(service_fn(|request: HttpRequest| async move {
                let Deadline(at) = *request.extensions().get().expect("a deadline");
                let hour = Duration::from_secs(3600);
                let expected =
                    if request.headers().contains_key(HEADER) { hour } else { WATCH_MAX };
                assert!(at > Instant::now() + expected - Duration::from_secs(60));
                assert!(at <= Instant::now() + expected);
                Ok::<_, Infallible>(HttpResponse::default())
            }));
        let events = "/vllm.grpc.engine.VllmEngine/SubscribeKvEvents";
        for path in ["/grpc.health.v1.Health/Watch", events] {
            for mut request in [HttpRequest::default(), with_timeout("1H")] {
                *request.uri_mut() = path.parse().expect("a path");
                service.clone().oneshot(request).await.expect("answered");
            }
        }
        assert!(!is_watch("/vllm.grpc.engine.VllmEngine/Generate"));
    }
}
