//! Gives each request an id: the caller's `x-request-id`, or a new one; the response carries it.

use std::future::Future;
use std::hash::{BuildHasher as _, RandomState};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use http::HeaderValue;
use tower_layer::Layer;
use tower_service::Service;

use super::{HttpRequest, HttpResponse};

/// Header in both directions.
pub const HEADER: &str = "x-request-id";

/// Longest id taken from a caller, in bytes; a longer one is replaced.
const CALLER_ID_MAX: usize = 128;

/// The id, in the extensions of every request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId(Arc<str>);

impl RequestId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id of `extensions`; empty if the layer is not there.
    pub fn of(extensions: &http::Extensions) -> Self {
        extensions.get::<Self>().cloned().unwrap_or_else(|| Self("".into()))
    }
}

impl From<&str> for RequestId {
    fn from(id: &str) -> Self {
        Self(id.into())
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct RequestIdLayer {
    // Keys that differ in each process, so that ids of two servers do not meet.
    hasher: RandomState,
    count: Arc<AtomicU64>,
}

impl RequestIdLayer {
    /// A layer with its own series of ids.
    pub fn new() -> Self {
        Self { hasher: RandomState::new(), count: Arc::default() }
    }

    fn id_for(&self, request: &HttpRequest) -> RequestId {
        let given = request.headers().get(HEADER).and_then(|value| value.to_str().ok());
        match given {
            Some(id) if !id.is_empty() && id.len() <= CALLER_ID_MAX => id.into(),
            _ => {
                let count = self.count.fetch_add(1, Ordering::Relaxed);
                format!("{:016x}", self.hasher.hash_one(count)).as_str().into()
            }
        }
    }
}

impl Default for RequestIdLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Layer<S> for RequestIdLayer {
    type Service = RequestIdService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        RequestIdService { inner, layer: self.clone() }
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct RequestIdService<S> {
    inner: S,
    layer: RequestIdLayer,
}

impl<S> Service<HttpRequest> for RequestIdService<S>
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
        let id = self.layer.id_for(&request);
        request.extensions_mut().insert(id.clone());
        let response = self.inner.call(request);
        Box::pin(async move {
            let mut response = response.await?;
            if let Ok(value) = HeaderValue::from_str(id.as_str()) {
                response.headers_mut().insert(HEADER, value);
            }
            Ok(response)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::body::Body;

    fn request(id: Option<&str>) -> HttpRequest {
        let mut request = http::Request::new(Body::empty());
        if let Some(id) = id {
            request.headers_mut().insert(HEADER, id.parse().expect("a header value"));
        }
        request
    }

    #[test]
    fn the_callers_id_is_kept() {
        let layer = RequestIdLayer::new();
        assert_eq!(layer.id_for(&request(Some("abc"))).as_str(), "abc");
    }

    #[test]
    fn absent_empty_and_huge_ids_are_replaced_by_distinct_ones() {
        let layer = RequestIdLayer::new();
        let huge = "x".repeat(CALLER_ID_MAX + 1);
        let ids: std::collections::HashSet<_> = [None, Some(""), Some(huge.as_str()), None]
            .into_iter()
            .map(|id| layer.id_for(&request(id)).as_str().to_owned())
            .collect();
        assert_eq!(ids.len(), 4);
        assert!(ids.iter().all(|id| id.len() == 16));
    }
}
