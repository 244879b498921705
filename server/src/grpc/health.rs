//! `grpc.health.v1.Health`: which services answer, for probes, balancers and clients.
//!
//! The states live in one watch channel, so that `Watch` sees each change and a slow watcher only
//! the latest. Who sets them is [`serve`](crate::serve)'s subject.

use std::collections::BTreeMap;
use std::pin::Pin;

use futures::{Stream, StreamExt as _};
use sconce_proto::health::health_check_response::ServingStatus;
use sconce_proto::health::health_server::Health;
use sconce_proto::health::{
    HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
};
use sconce_proto::names;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::status::CallError;

/// Whether the process lives: its event loops turn, and so does the device thread. Stays SERVING
/// while models load and drain, and while the engine restarts.
pub const LIVENESS: &str = "liveness";
/// Whether completions are answered: a model is ready and the server does not drain.
pub const READINESS: &str = "readiness";

/// Names that serve as soon as the server listens, until it drains.
const FROM_THE_START: &[&str] = &[names::MODEL_SERVICE, names::HEALTH_SERVICE];
/// Names that serve once the models planned are ready, until the server drains.
const WITH_A_MODEL: &[&str] = &["", READINESS, names::INFERENCE_SERVICE, names::STATE_SERVICE];

type Statuses = BTreeMap<&'static str, ServingStatus>;

/// The states of all registered names; clones share them.
#[derive(Debug, Clone)]
pub struct HealthBoard {
    statuses: watch::Sender<Statuses>,
    /// Further names that serve once the models planned are ready.
    others: Vec<&'static str>,
    closed: CancellationToken,
}

/// What decides the states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vitals {
    /// The device thread turns, or is inside a step of a believable length.
    pub alive: bool,
    /// Completions can be answered.
    pub ready: bool,
    /// The server shuts down.
    pub draining: bool,
}

impl HealthBoard {
    /// A board of a server that has no model yet.
    pub fn new() -> Self {
        let statuses = watch::Sender::new(Statuses::new());
        let board = Self { statuses, others: Vec::new(), closed: CancellationToken::new() };
        board.set(Vitals { alive: true, ready: false, draining: false });
        board
    }

    /// The same of a new server that also serves `name`, with a model.
    #[must_use]
    pub fn with(mut self, name: &'static str) -> Self {
        self.others.push(name);
        self.set(Vitals { alive: true, ready: false, draining: false });
        self
    }

    /// Sets every name; watchers hear of it only if a state changed.
    pub fn set(&self, vitals: Vitals) {
        let status = |serving| {
            if serving { ServingStatus::Serving } else { ServingStatus::NotServing }
        };
        let mut new = Statuses::new();
        new.insert(LIVENESS, status(vitals.alive));
        new.extend(FROM_THE_START.iter().map(|&name| (name, status(!vitals.draining))));
        let ready = vitals.ready && !vitals.draining;
        new.extend(WITH_A_MODEL.iter().chain(&self.others).map(|&name| (name, status(ready))));
        self.statuses.send_if_modified(|current| {
            let changed = *current != new;
            *current = new;
            changed
        });
    }

    /// Ends every `Watch`, which would otherwise hold its connection open.
    pub fn close(&self) {
        self.closed.cancel();
    }

    /// Every name with its state, sorted.
    pub fn all(&self) -> Vec<(&'static str, ServingStatus)> {
        self.statuses.borrow().iter().map(|(&name, &status)| (name, status)).collect()
    }

    /// The state of `name`, if it is registered.
    pub fn get(&self, name: &str) -> Option<ServingStatus> {
        self.statuses.borrow().get(name).copied()
    }
}

impl Default for HealthBoard {
    fn default() -> Self {
        Self::new()
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Health for HealthBoard {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let name = request.into_inner().service;
        let status = self.get(&name).ok_or(CallError::UnknownService { name })?;
        Ok(Response::new(response(status)))
    }

    async fn list(
        &self,
        _request: Request<HealthListRequest>,
    ) -> Result<Response<HealthListResponse>, Status> {
        let statuses = self.statuses.borrow();
        let statuses =
            statuses.iter().map(|(&name, &status)| (name.to_owned(), response(status))).collect();
        Ok(Response::new(HealthListResponse { statuses }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let name = request.into_inner().service;
        let mut last = None;
        let statuses = WatchStream::new(self.statuses.subscribe());
        let changes = statuses.filter_map(move |statuses| {
            let status =
                statuses.get(name.as_str()).copied().unwrap_or(ServingStatus::ServiceUnknown);
            let news = (last.replace(status) != Some(status)).then(|| Ok(response(status)));
            std::future::ready(news)
        });
        Ok(Response::new(Box::pin(changes.take_until(self.closed.clone().cancelled_owned()))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_server_lives_but_is_not_ready() {
        let board = HealthBoard::new();
        assert_eq!(board.get(LIVENESS), Some(ServingStatus::Serving));
        assert_eq!(board.get(READINESS), Some(ServingStatus::NotServing));
        assert_eq!(board.get(""), Some(ServingStatus::NotServing));
        assert_eq!(board.get(names::MODEL_SERVICE), Some(ServingStatus::Serving));
        assert_eq!(board.get("other"), None);
    }

    #[test]
    fn a_draining_server_lives_and_serves_nothing() {
        let board = HealthBoard::new();
        board.set(Vitals { alive: true, ready: true, draining: true });
        for (name, status) in board.statuses.borrow().iter() {
            let expected =
                if *name == LIVENESS { ServingStatus::Serving } else { ServingStatus::NotServing };
            assert_eq!(*status, expected, "{name}");
        }
    }

    #[tokio::test]
    async fn a_watcher_hears_changes_of_its_own_service_only() {
        let board = HealthBoard::new();
        let request = Request::new(HealthCheckRequest { service: LIVENESS.to_owned() });
        let mut live = board.watch(request).await.expect("watch").into_inner();
        let request = Request::new(HealthCheckRequest { service: READINESS.to_owned() });
        let mut ready = board.watch(request).await.expect("watch").into_inner();
        let mut next = async || ready.next().await.expect("open").expect("ok").status();

        assert_eq!(next().await, ServingStatus::NotServing);
        board.set(Vitals { alive: true, ready: true, draining: false });
        assert_eq!(next().await, ServingStatus::Serving);
        board.set(Vitals { alive: true, ready: true, draining: true });
        assert_eq!(next().await, ServingStatus::NotServing);

        board.set(Vitals { alive: false, ready: false, draining: false });
        let first = live.next().await.expect("open").expect("ok").status();
        assert_eq!(first, ServingStatus::NotServing, "only the latest is told");
        board.set(Vitals { alive: true, ready: false, draining: false });
        let second = live.next().await.expect("open").expect("ok").status();
        assert_eq!(second, ServingStatus::Serving);
        board.set(Vitals { alive: true, ready: true, draining: false });
        board.close();
        assert!(live.next().await.is_none(), "liveness did not change, so nothing more was said");
    }
}
