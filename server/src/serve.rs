//! The life of a server: bind, load what was planned, serve, drain, stop.
//!
//! Connections are accepted and spoken here, over hyper, because tonic's own server would answer an
//! expired deadline with CANCELLED and cannot tell "withdraw" from "close".

pub(crate) mod accept;
mod connection;
mod door;
mod guard;
pub(crate) mod listener;
mod plan;
mod security;
pub(crate) mod stall;
mod tls;
mod tokens;
mod watch;
mod watched;

use std::future::Future;
use std::io;
use std::time::Duration;

use sconce_proto::names;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::{Admin, AdminPort, Dashboard};
use crate::compat::vllm;
use crate::error::CallError;
use crate::grpc;
use crate::grpc::health::{HealthBoard, Vitals};
use crate::layer::access_log::AccessLogLayer;
use crate::layer::recent::RecentRequests;
use crate::metrics::Metrics;
use crate::models::Models;
use crate::trace::Tracer;
use connection::{Acceptor, Edge};
use guard::Guard;
pub use guard::check_guards;
use listener::Listener;
pub use plan::{
    CachePlan, CachePolicy, CompatPlan, DrainPlan, EnginePlan, Limits, ListenAddress, ModelPlan,
    Precision, ServePlan, TracePlan,
};
pub use security::{AuthPlan, ClientAuth, Exempt, SecurityPlan, TlsPlan};
pub use tokens::Tokens;
pub use watched::{SecretStatus, Secrets, Watched};

/// How long requests cut off at the end of the drain may take to send their last message.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How long a device thread that has ended for good may take to let go of what it has. Where a GPU is lost
/// the driver may never answer, and what there was to save is lost too.
const LOST_THREAD: Duration = Duration::from_secs(10);

/// A server could not start, or ended in disorder.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// No address was given.
    #[error("expected at least one address to listen on, found none")]
    NoAddress,
    /// An address could not be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Which.
        address: ListenAddress,
        /// Why.
        source: io::Error,
    },
    /// A file of the settings for TLS or tokens, or a root of models, cannot be used.
    #[error("setting `{setting}`: {problem}")]
    Setting {
        /// Which.
        setting: &'static str,
        /// What was expected and what was found.
        problem: String,
    },
    /// Spans cannot be sent as planned.
    #[error("telemetry.otlp: {0}")]
    Trace(String),
    /// The device thread could not start.
    #[error("cannot start the engine: {0}")]
    Engine(CallError),
    /// The device thread panicked too often, its models did not come back, or its GPU is lost.
    #[error("the device thread has ended for good, after {restarts} panics; the log tells how")]
    EngineLost {
        /// Panics since the start.
        restarts: u64,
    },
    /// A model of the plan could not be loaded.
    #[error("cannot load model `{name}` from {path}: {source}")]
    Load {
        /// Its name.
        name: String,
        /// Its path.
        path: String,
        /// Why.
        source: CallError,
    },
}

/// A server that listens and does not answer yet.
#[derive(Debug)]
pub struct Server {
    plan: ServePlan,
    listeners: Vec<Listener>,
    admin_listeners: Vec<Listener>,
    guard: Guard,
    tracer: Tracer,
    handle: ServerHandle,
}

/// A view into a running server, for the process around it; clones are the same server.
#[derive(Debug, Clone)]
pub struct ServerHandle {
    addresses: Vec<ListenAddress>,
    admin_addresses: Vec<ListenAddress>,
    models: Models,
    health: HealthBoard,
    metrics: Metrics,
    secrets: Secrets,
    shutdown: CancellationToken,
    close: CancellationToken,
}

impl ServerHandle {
    /// Where the server listens, with the ports that were taken for port 0.
    pub fn local_addrs(&self) -> &[ListenAddress] {
        &self.addresses
    }

    /// Where the admin port listens, likewise; empty if there is none.
    pub fn admin_addrs(&self) -> &[ListenAddress] {
        &self.admin_addresses
    }

    /// The models, ready or loading.
    pub fn models(&self) -> &Models {
        &self.models
    }

    /// Reads certificates, keys and tokens again if their files have changed, as the server does now
    /// and then by itself.
    pub async fn reload(&self) {
        self.secrets.refresh().await;
    }

    /// Begins the drain, as the future given to [`Server::run`] does.
    pub fn shut_down(&self) {
        self.shutdown.cancel();
    }

    /// Ends the withdrawal that [`shut_down`](Self::shut_down) began before its time: closes to
    /// new requests at once.
    pub fn close(&self) {
        self.close.cancel();
    }
}

impl Server {
    /// Starts the engine and takes the addresses of `plan`. Connections wait until
    /// [`run`](Self::run).
    ///
    /// # Errors
    /// An address that cannot be listened on, or an engine that cannot start.
    pub async fn bind(plan: ServePlan) -> Result<Self, ServeError> {
        if plan.listen.is_empty() {
            return Err(ServeError::NoAddress);
        }
        let (guard, secrets) = Guard::new(&plan)?;
        let listeners = bind_all(&plan.listen).await?;
        let admin_listeners = bind_all(&plan.admin).await?;
        let addresses_of = |listeners: &[Listener]| {
            listeners.iter().map(|listener| listener.address().clone()).collect()
        };
        let tracer = Tracer::start(&plan.trace).map_err(ServeError::Trace)?;
        let models =
            Models::start_guarded(&plan.engine, &plan.cache, plan.precision, guard.models.clone())
                .map_err(ServeError::Engine)?;
        let mut health = HealthBoard::new();
        if plan.compat.vllm {
            health = health.with(names::VLLM_ENGINE);
        }
        let metrics =
            Metrics::new(models.clone(), health.clone(), secrets.clone(), plan.engine.device);
        let handle = ServerHandle {
            addresses: addresses_of(&listeners),
            admin_addresses: addresses_of(&admin_listeners),
            models,
            health,
            metrics,
            secrets,
            shutdown: CancellationToken::new(),
            close: CancellationToken::new(),
        };
        Ok(Self { plan, listeners, admin_listeners, guard, tracer, handle })
    }

    /// Where the server listens, with the ports that were taken for port 0.
    pub fn local_addrs(&self) -> &[ListenAddress] {
        self.handle.local_addrs()
    }

    /// A view that stays valid while the server runs.
    pub fn handle(&self) -> ServerHandle {
        self.handle.clone()
    }

    /// Serves until `shutdown` completes (or [`ServerHandle::shut_down`] is called), then drains
    /// and returns.
    ///
    /// # Errors
    /// A model of the plan that cannot be loaded, a device thread that keeps panicking or has lost its
    /// GPU; the server has drained when this returns.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), ServeError> {
        let Self { plan, listeners, admin_listeners, guard, tracer, handle } = self;
        let ServerHandle { models, health, metrics, secrets, shutdown: asked, close, .. } = handle;
        let steps = tracer.follow(|| models.step_samples());
        let recent = RecentRequests::default();
        let admin = Admin {
            health: health.clone(),
            metrics: metrics.clone(),
            dashboard: Dashboard::new(models.clone(), recent.clone()),
            closing: CancellationToken::new(),
        };
        let admin = AdminPort::open(admin_listeners, &admin);
        let vllm = plan.compat.vllm.then(|| vllm::Settings {
            model: plan.compat.vllm_model.clone(),
            sequences_max: plan.engine.sequences_max,
        });
        let routes = grpc::routes(&models, &health, &secrets, plan.reflection, vllm);
        let Guard { door, gate, .. } = guard;
        let log = AccessLogLayer::new(recent, metrics.calls(), tracer.clone());
        let edge = Edge::new(routes, metrics.clone(), log, &plan.limits, gate);
        let (closing, abort) = (CancellationToken::new(), CancellationToken::new());
        let connections = TaskTracker::new();
        let acceptor = Acceptor::new(edge, door, &plan.limits, closing.clone(), abort.clone());
        for listener in listeners {
            connections.spawn(acceptor.clone().accept(listener, connections.clone()));
        }

        let outcome = tokio::select! {
            failed = watch::over(&plan, &models, &health) => Err(failed),
            never = secrets.watch() => match never {},
            never = metrics.publish_always() => match never {},
            () = asked.cancelled() => Ok(()),
            () = shutdown => Ok(()),
        };

        tracing::info!(withdrawal = ?plan.drain.withdrawal, "draining: withdrawn from balancers");
        health.set(Vitals { alive: true, ready: false, draining: true });
        models.withdraw();
        if outcome.is_ok() {
            // Its end and an early close are the same.
            drop(tokio::time::timeout(plan.drain.withdrawal, close.cancelled()).await);
        }
        tracing::info!(drain = ?plan.drain.drain, "draining: closed to new requests");
        models.close();
        health.close();
        closing.cancel();
        connections.close();
        if tokio::time::timeout(plan.drain.drain, connections.wait()).await.is_err() {
            tracing::warn!("draining: time is up, cutting off what still runs");
            models.cut_off();
            if tokio::time::timeout(LAST_WORDS, connections.wait()).await.is_err() {
                abort.cancel();
                connections.wait().await;
            }
        }
        let patience = match outcome {
            // It writes what it remembers, unless its driver holds it up.
            Err(ServeError::EngineLost { .. }) if plan.cache.directory.is_some() => {
                LOST_THREAD.saturating_add(plan.cache.save_time_max)
            }
            Err(ServeError::EngineLost { .. }) => LOST_THREAD,
            _ => Duration::MAX,
        };
        if tokio::time::timeout(patience, models.stop()).await.is_err() {
            tracing::error!("the device thread does not end; leaving it behind");
        }
        tracer.stop(steps).await;
        // Last, so that all of the above can be watched.
        admin.close().await;
        tracing::info!("stopped");
        outcome
    }
}

/// Listens on each of `addresses`.
async fn bind_all(addresses: &[ListenAddress]) -> Result<Vec<Listener>, ServeError> {
    let mut listeners = Vec::new();
    for address in addresses {
        let bound = Listener::bind(address).await;
        let listener =
            bound.map_err(|source| ServeError::Listen { address: address.clone(), source })?;
        listeners.push(listener);
    }
    Ok(listeners)
}
