//! `GET /metrics` on the gRPC port, in HTTP/2 and HTTP/1.1: the pickers of gateways scrape a worker
//! where they send it requests. All else that comes over HTTP/1 is refused, since gRPC needs HTTP/2;
//! a `GET /health` too, for whom it answered would take this for an HTTP worker.

use std::future::{Ready, ready};
use std::task::{Context, Poll};

use futures::future::Either;
use http::header::{CONNECTION, CONTENT_TYPE};
use http::{HeaderValue, Method, StatusCode, Version};
use tonic::body::Body;
use tower_layer::Layer;
use tower_service::Service;

use super::auth::{self, Gate, Peer};
use super::{HttpRequest, HttpResponse};
use crate::metrics::Metrics;

/// Where the metrics are.
const PATH: &str = "/metrics";

/// See the module.
#[derive(Debug, Clone)]
pub struct ScrapeLayer {
    metrics: Metrics,
    gate: Gate,
}

impl ScrapeLayer {
    /// Answers scrapes from `metrics` for whom `gate` lets in.
    pub fn new(metrics: Metrics, gate: Gate) -> Self {
        Self { metrics, gate }
    }
}

impl<S> Layer<S> for ScrapeLayer {
    type Service = ScrapeService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ScrapeService { inner, metrics: self.metrics.clone(), gate: self.gate.clone() }
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct ScrapeService<S> {
    inner: S,
    metrics: Metrics,
    gate: Gate,
}

impl<S> Service<HttpRequest> for ScrapeService<S>
where
    S: Service<HttpRequest, Response = HttpResponse>,
{
    type Response = HttpResponse;
    type Error = S::Error;
    type Future = Either<Ready<Result<HttpResponse, S::Error>>, S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: HttpRequest) -> Self::Future {
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        if reads && request.uri().path() == PATH {
            let peer = request.extensions().get::<Peer>();
            let page = match self.gate.admit(PATH, request.headers(), peer) {
                Ok(_) => self.metrics.page(),
                Err(error) => {
                    // It is no RPC, so that no other line tells of it.
                    let peer = peer.and_then(|peer| peer.address).map(tracing::field::display);
                    tracing::info!(%error, peer, "a scrape was refused");
                    auth::refusal(&request, error)
                }
            };
            return Either::Left(ready(Ok(page)));
        }
        if request.version() < Version::HTTP_2 {
            return Either::Left(ready(Ok(refusal())));
        }
        Either::Right(self.inner.call(request))
    }
}

fn refusal() -> HttpResponse {
    let text = "expected gRPC over HTTP/2, or GET /metrics\n";
    let mut response = HttpResponse::new(Body::new(text.to_owned()));
    *response.status_mut() = StatusCode::HTTP_VERSION_NOT_SUPPORTED;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    // What follows on this connection would be refused too; nor is the body read.
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    response
}
