//! What the page of the admin port is fed from: the status as JSON, once or once a second, and the
//! tree of a model's cache. Read-only, and without a word of any prompt: tokens are counted alone.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::request::Parts;
use http::{HeaderValue, StatusCode};
use http_body::Frame;
use http_body_util::StreamBody;
use percent_encoding::percent_decode_str;
use sconce_engine::ModelState;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;

use super::routes::plain;
use super::snapshot;
use crate::caller::Namespace;
use crate::layer::HttpResponse;
use crate::layer::recent::RecentRequests;
use crate::models::Models;

/// Most pages that are sent events at once; a further one is refused with 503.
pub(super) const SUBSCRIBERS_MAX: usize = 16;

/// Most trees that are asked for at once: the device thread describes them between two steps.
const DESCRIPTIONS_MAX: usize = 2;

/// Most nodes of a tree that are told.
const NODES_MAX: usize = 500;

/// Between two events.
const EVENT_INTERVAL: Duration = Duration::from_secs(1);

/// See the module; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Dashboard {
    models: Models,
    recent: RecentRequests,
    subscribers: Arc<Semaphore>,
    descriptions: Arc<Semaphore>,
}

impl Dashboard {
    /// Of a server with these `models`, whose requests are in `recent`.
    pub(crate) fn new(models: Models, recent: RecentRequests) -> Self {
        Self {
            models,
            recent,
            subscribers: Arc::new(Semaphore::new(SUBSCRIBERS_MAX)),
            descriptions: Arc::new(Semaphore::new(DESCRIPTIONS_MAX)),
        }
    }

    /// Everything that the page shows but the tree.
    fn snapshot(&self) -> Value {
        snapshot::of(&self.models, &self.recent)
    }

    /// `GET /status.json`.
    pub(super) fn status(&self) -> HttpResponse {
        json_answer(Body::new(self.snapshot().to_string()))
    }

    /// `GET /events`: the same once a second, as server-sent events, until `closing`.
    pub(super) fn events(&self, closing: &CancellationToken) -> HttpResponse {
        let Ok(place) = self.subscribers.clone().try_acquire_owned() else {
            return busy(format!("expected at most {SUBSCRIBERS_MAX} pages with events at once\n"));
        };
        let mut ticks = interval(EVENT_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let dashboard = self.clone();
        let events = stream::unfold((ticks, place), move |(mut ticks, place)| {
            let dashboard = dashboard.clone();
            async move {
                ticks.tick().await;
                let event = format!("data: {}\n\n", dashboard.snapshot());
                Some((event, (ticks, place)))
            }
        });
        let mut response =
            HttpResponse::new(streamed(events.take_until(closing.clone().cancelled_owned())));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }

    /// `GET /cache.json?model=NAME`: the first nodes of the tree of a model that is ready.
    pub(super) fn cache(&self, head: &Parts) -> HttpResponse {
        let Some(model) = model_of(head.uri.query().unwrap_or_default()) else {
            let text = "expected `model=NAME` in the query\n".to_owned();
            return plain(StatusCode::BAD_REQUEST, text);
        };
        let is_it = |status: &sconce_engine::ModelStatus| {
            status.name == model && status.state == ModelState::Ready
        };
        if !self.models.status().models.iter().any(is_it) {
            return plain(
                StatusCode::NOT_FOUND,
                "expected the name of a model that is ready\n".into(),
            );
        }
        let Ok(place) = self.descriptions.clone().try_acquire_owned() else {
            return busy("others look at trees\n".to_owned());
        };
        let models = self.models.clone();
        let described = async move {
            // The page has no credentials, so that the trees of identities are not for it.
            let described = models.describe_cache(&model, &Namespace::default()).await;
            drop(place);
            match described {
                Ok((nodes, status)) => snapshot::tree(&nodes, NODES_MAX, &status).to_string(),
                // It went meanwhile.
                Err(error) => json!({ "error": error.to_string() }).to_string(),
            }
        };
        json_answer(streamed(stream::once(described)))
    }
}

/// The value of `model` in a query.
fn model_of(query: &str) -> Option<String> {
    let value = query.split('&').find_map(|pair| pair.strip_prefix("model="))?;
    let name = percent_decode_str(value).decode_utf8().ok()?.into_owned();
    (!name.is_empty()).then_some(name)
}

fn json_answer(body: Body) -> HttpResponse {
    let mut response = HttpResponse::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// 503, to be tried again soon.
fn busy(text: String) -> HttpResponse {
    let mut response = plain(StatusCode::SERVICE_UNAVAILABLE, text);
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("5"));
    response
}

fn streamed(texts: impl Stream<Item = String> + Send + 'static) -> Body {
    let frames = texts.map(|text| Ok::<_, tonic::Status>(Frame::data(Bytes::from(text))));
    Body::new(StreamBody::new(frames))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_of_a_query_is_decoded() {
        let found = |query| model_of(query);
        assert_eq!(found("model=a%2Fb%3A1").as_deref(), Some("a/b:1"));
        assert_eq!(found("x=1&model=m").as_deref(), Some("m"));
        for wrong in ["", "model=", "model", "models=m", "model=%ff"] {
            assert_eq!(found(wrong), None, "{wrong}");
        }
    }
}
