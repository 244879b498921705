//! A panic in a handler, or in the stream it answers with, becomes INTERNAL for that request; the
//! connection and the other requests go on.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::FutureExt as _;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;
use tower_layer::Layer;
use tower_service::Service;

use super::{HttpRequest, HttpResponse};
use crate::error::CallError;

/// See the module.
#[derive(Debug, Clone, Copy, Default)]
pub struct PanicLayer;

impl<S> Layer<S> for PanicLayer {
    type Service = PanicService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        PanicService { inner }
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct PanicService<S> {
    inner: S,
}

impl<S> Service<HttpRequest> for PanicService<S>
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

    fn call(&mut self, request: HttpRequest) -> Self::Future {
        // Unwind safety: what a request shares with others is behind locks that do not poison and
        // are not held across calls that may panic.
        let response = AssertUnwindSafe(self.inner.call(request)).catch_unwind();
        Box::pin(async move {
            match response.await {
                Ok(response) => {
                    Ok(response?.map(|inner| Body::new(PanicBody { inner: Some(inner) })))
                }
                Err(panic) => Ok(status(&*panic).into_http()),
            }
        })
    }
}

fn status(panic: &(dyn Any + Send)) -> Status {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    tracing::error!(panic = text, "a request handler panicked");
    // The text may hold what must not leave the process; the log has it.
    CallError::Internal { problem: "a request handler panicked; see the server's log".into() }
        .into()
}

struct PanicBody {
    /// `None` once it panicked or ended.
    inner: Option<Body>,
}

impl HttpBody for PanicBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(inner) = self.inner.as_mut() else { return Poll::Ready(None) };
        let polled = catch_unwind(AssertUnwindSafe(|| Pin::new(inner).poll_frame(context)));
        polled.unwrap_or_else(|panic| {
            self.inner = None;
            let mut trailers = HeaderMap::new();
            Poll::Ready(Some(match status(&*panic).add_header(&mut trailers) {
                Ok(()) => Ok(Frame::trailers(trailers)),
                Err(status) => Err(status),
            }))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;
    use std::convert::Infallible;
    use tonic::Code;
    use tower::{ServiceExt as _, service_fn};

    #[tokio::test]
    async fn a_panic_in_the_handler_is_internal() {
        let service = PanicLayer.layer(service_fn(|_: HttpRequest| async {
            if true {
                panic!("secret");
            }
            Ok::<_, Infallible>(HttpResponse::default())
        }));
        let response = service.oneshot(HttpRequest::default()).await.expect("answered");
        let status = Status::from_header_map(response.headers()).expect("a status");
        assert_eq!(status.code(), Code::Internal);
        assert!(!status.message().contains("secret"));
    }

    #[tokio::test]
    async fn a_panic_in_the_stream_is_internal_in_its_trailers() {
        struct Panics;
        impl HttpBody for Panics {
            type Data = Bytes;
            type Error = Status;
            fn poll_frame(
                self: Pin<&mut Self>,
                _: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
                panic!("in the stream")
            }
        }
        let service = PanicLayer.layer(service_fn(|_: HttpRequest| async {
            Ok::<_, Infallible>(HttpResponse::new(Body::new(Panics)))
        }));
        let response = service.oneshot(HttpRequest::default()).await.expect("answered");
        let body = response.into_body().collect().await.expect("ends");
        let status = Status::from_header_map(body.trailers().expect("trailers")).expect("a status");
        assert_eq!(status.code(), Code::Internal);
    }
}
