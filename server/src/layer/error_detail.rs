//! Completes the details of every error, in headers or trailers: the request's id, and the reason
//! where the transport made the status.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use pin_project_lite::pin_project;
use tonic::body::Body;
use tonic::{Code, Status};
use tower_layer::Layer;
use tower_service::Service;

use super::request_id::RequestId;
use super::{HttpRequest, HttpResponse};
use crate::grpc::status;

/// See the module.
#[derive(Debug, Clone, Copy, Default)]
pub struct ErrorDetailLayer;

impl<S> Layer<S> for ErrorDetailLayer {
    type Service = ErrorDetailService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ErrorDetailService { inner }
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct ErrorDetailService<S> {
    inner: S,
}

impl<S> Service<HttpRequest> for ErrorDetailService<S>
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
        let id = RequestId::of(request.extensions());
        let response = self.inner.call(request);
        Box::pin(async move {
            let mut response = response.await?;
            complete(response.headers_mut(), &id);
            Ok(response.map(|inner| Body::new(DetailBody { inner, id })))
        })
    }
}

/// Rewrites the status in `headers`, if there is one and it is an error.
fn complete(headers: &mut HeaderMap, id: &RequestId) {
    let Some(status) = Status::from_header_map(headers) else { return };
    if status.code() == Code::Ok {
        return;
    }
    let status = status::completed(status, id.as_str());
    // Whatever could not be encoded leaves the headers as they were: still an error, less told.
    let mut completed = HeaderMap::new();
    if status.add_header(&mut completed).is_ok() {
        for name in ["grpc-status", "grpc-message", "grpc-status-details-bin"] {
            if let Some(value) = completed.remove(name) {
                headers.insert(name, value);
            }
        }
    }
}

pin_project! {
    struct DetailBody {
        #[pin]
        inner: Body,
        id: RequestId,
    }
}

impl HttpBody for DetailBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.project();
        let frame = ready!(this.inner.poll_frame(context));
        Poll::Ready(frame.map(|frame| {
            frame.map(|frame| match frame.into_trailers() {
                Ok(mut trailers) => {
                    complete(&mut trailers, this.id);
                    Frame::trailers(trailers)
                }
                Err(frame) => frame,
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
