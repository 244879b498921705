//! The admin port: health, metrics and what else is for people and machines that watch the server,
//! in plain HTTP/1.1, read-only. It answers from before the first model is loaded until all else has
//! ended, so that a drain can be watched.
//!
//! It has no TLS and no credentials: it is for probes and scrapers, on an address that only they
//! reach. It is off unless an address is given, for a second port that nobody asked for would clash
//! where two servers share a machine; `GET /metrics` is on the gRPC port too.

mod connection;
mod dashboard;
mod page;
mod routes;
mod snapshot;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use self::dashboard::Dashboard;
use crate::grpc::health::HealthBoard;
use crate::metrics::Metrics;
use crate::serve::accept::accept;
use crate::serve::listener::{Accepted, Listener};

/// Most connections at once; further ones wait to be accepted. Probes and a scraper need a handful,
/// a page that shows events one each.
const CONNECTIONS_MAX: usize = 64;

/// How long answers that are being written may take when the server ends.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// What the routes answer from; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Admin {
    /// What is served.
    pub(crate) health: HealthBoard,
    /// What is counted.
    pub(crate) metrics: Metrics,
    /// What people look at.
    pub(crate) dashboard: Dashboard,
    /// Cancelled when the port closes: an answer without an end has to end then.
    pub(crate) closing: CancellationToken,
}

/// The port, answering.
pub(crate) struct AdminPort {
    closing: CancellationToken,
    abort: CancellationToken,
    tasks: TaskTracker,
}

impl AdminPort {
    /// Begins to answer on `listeners`.
    pub(crate) fn open(listeners: Vec<Listener>, admin: &Admin) -> Self {
        let (closing, abort) = (admin.closing.clone(), CancellationToken::new());
        let tasks = TaskTracker::new();
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        for listener in listeners {
            let (admin, abort) = (admin.clone(), abort.clone());
            let serve = move |accepted: Accepted, slot| {
                connection::serve(accepted.io, slot, admin.clone(), abort.clone())
            };
            let (slots, closing) = (slots.clone(), closing.clone());
            tasks.spawn(accept(listener, slots, closing, tasks.clone(), serve));
        }
        Self { closing, abort, tasks }
    }

    /// Ends in order: no new connection, and what is being answered is.
    pub(crate) async fn close(self) {
        self.closing.cancel();
        self.tasks.close();
        if tokio::time::timeout(LAST_ANSWERS, self.tasks.wait()).await.is_err() {
            self.abort.cancel();
            self.tasks.wait().await;
        }
    }
}
