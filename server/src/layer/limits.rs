//! Bounds how many requests of one identity are open at once, so that no identity takes all there is.
//! Requests without an identity are bounded by connections and their streams alone.

use std::future::{Future, Ready, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::Either;
use http_body::{Body as HttpBody, Frame, SizeHint};
use pin_project_lite::pin_project;
use tonic::Status;
use tonic::body::Body;
use tower_layer::Layer;
use tower_service::Service;

use super::{HttpRequest, HttpResponse};
use crate::caller::Caller;
use crate::error::CallError;
use crate::quota::{Place, Quota};

/// When one of an identity's open requests may have ended.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug, Clone)]
pub struct LimitsLayer {
    open: Quota<Arc<str>>,
}

impl LimitsLayer {
    /// At most `requests_max` open requests for each identity.
    pub fn new(requests_max: usize) -> Self {
        Self { open: Quota::new(requests_max) }
    }
}

impl<S> Layer<S> for LimitsLayer {
    type Service = LimitsService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        LimitsService { inner, open: self.open.clone() }
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct LimitsService<S> {
    inner: S,
    open: Quota<Arc<str>>,
}

type Response<E> = Result<HttpResponse, E>;

impl<S> Service<HttpRequest> for LimitsService<S>
where
    S: Service<HttpRequest, Response = HttpResponse>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = HttpResponse;
    type Error = S::Error;
    type Future =
        Either<Pin<Box<dyn Future<Output = Response<S::Error>> + Send>>, Ready<Response<S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: HttpRequest) -> Self::Future {
        let place = match Caller::of(request.extensions()).name() {
            None => None,
            Some(name) => match self.open.enter(name.clone()) {
                Some(place) => Some(place),
                None => {
                    let error = CallError::QueueFull {
                        what: format!("the open requests of `{name}`"),
                        bound: self.open.max(),
                        retry_after: RETRY_AFTER,
                    };
                    return Either::Right(ready(Ok(Status::from(error).into_http())));
                }
            },
        };
        let response = self.inner.call(request);
        Either::Left(Box::pin(async move {
            let response = response.await?;
            Ok(match place {
                Some(place) => response.map(|inner| Body::new(HeldBody { inner, _place: place })),
                None => response,
            })
        }))
    }
}

pin_project! {
    /// A response that keeps its request's place until it ends.
    struct HeldBody {
        #[pin]
        inner: Body,
        _place: Place<Arc<str>>,
    }
}

impl HttpBody for HeldBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.project().inner.poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
