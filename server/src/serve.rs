//! The life of a server: bind, load what was planned, serve, drain, stop.
//!
//! Connections are accepted and spoken here, over hyper, because tonic's own server would answer an
//! expired deadline with CANCELLED and cannot tell "withdraw" from "close".

mod connection;
mod listener;
mod plan;

use std::future::Future;
use std::io;
use std::time::Duration;

use sconce_engine::LoadSettings;
use sconce_proto::names;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::compat::vllm;
use crate::error::CallError;
use crate::grpc;
use crate::grpc::health::{HealthBoard, Vitals};
use crate::models::Models;
use connection::{Acceptor, Edge};
use listener::Listener;
pub use plan::{
    CachePlan, CachePolicy, CompatPlan, DrainPlan, EnginePlan, Limits, ListenAddress, ModelPlan, Precision,
    ServePlan,
};

/// How long requests cut off at the end of the drain may take to send their last message.
const LAST_WORDS: Duration = Duration::from_secs(2);

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
    /// The device thread could not start.
    #[error("cannot start the engine: {0}")]
    Engine(CallError),
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
    handle: ServerHandle,
}

/// A view into a running server, for the process around it; clones are the same server.
#[derive(Debug, Clone)]
pub struct ServerHandle {
    addresses: Vec<ListenAddress>,
    models: Models,
    health: HealthBoard,
    shutdown: CancellationToken,
    close: CancellationToken,
}

impl ServerHandle {
    /// Where the server listens, with the ports that were taken for port 0.
    pub fn local_addrs(&self) -> &[ListenAddress] {
        &self.addresses
    }

    /// The models, ready or loading.
    pub fn models(&self) -> &Models {
        &self.models
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
        let mut listeners = Vec::new();
        for address in &plan.listen {
            let bound = Listener::bind(address).await;
            let listener =
                bound.map_err(|source| ServeError::Listen { address: address.clone(), source })?;
            listeners.push(listener);
        }
        let addresses = listeners.iter().map(|l| l.address().clone()).collect();
        let models =
            Models::start(&plan.engine, &plan.cache, plan.precision).map_err(ServeError::Engine)?;
        let handle = ServerHandle {
            addresses,
            models,
            health: if plan.compat.vllm {
                HealthBoard::new().with(names::VLLM_ENGINE)
            } else {
                HealthBoard::new()
            },
            shutdown: CancellationToken::new(),
            close: CancellationToken::new(),
        };
        Ok(Self { plan, listeners, handle })
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
    /// A model of the plan that cannot be loaded; the server has drained when this returns.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), ServeError> {
        let Self { plan, listeners, handle } = self;
        let ServerHandle { models, health, shutdown: asked, close, .. } = handle;
        let vllm = plan.compat.vllm.then(|| vllm::Settings {
            model: plan.compat.vllm_model.clone(),
            sequences_max: plan.engine.sequences_max,
        });
        let routes = grpc::routes(&models, &health, plan.reflection, vllm);
        let edge = Edge::new(routes, &plan.limits);
        let (closing, abort) = (CancellationToken::new(), CancellationToken::new());
        let connections = TaskTracker::new();
        let acceptor = Acceptor::new(edge, &plan.limits, closing.clone(), abort.clone());
        for listener in listeners {
            connections.spawn(acceptor.clone().accept(listener, connections.clone()));
        }

        let outcome = tokio::select! {
            failed = watch_over(&plan.models, &models, &health) => Err(failed),
            () = asked.cancelled() => Ok(()),
            () = shutdown => Ok(()),
        };

        tracing::info!(withdrawal = ?plan.drain.withdrawal, "draining: withdrawn from balancers");
        health.set(Vitals { ready: false, draining: true });
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
        models.stop().await;
        tracing::info!("stopped");
        outcome
    }
}

/// Loads what was planned and keeps `health` true from then on; ends only if a load fails.
async fn watch_over(planned: &[ModelPlan], models: &Models, health: &HealthBoard) -> ServeError {
    let mut loads = JoinSet::new();
    for plan in planned {
        let (plan, models) = (plan.clone(), models.clone());
        loads.spawn(async move {
            let settings = LoadSettings {
                path: plan.path.clone(),
                quantize: None,
                context_length: plan.context_length,
                keep_alive: plan.keep_alive,
                precision: models.precision(),
            };
            let loaded = async { models.load(&plan.name, settings).await?.finished().await };
            loaded.await.map_err(|source| ServeError::Load {
                name: plan.name,
                path: plan.path,
                source,
            })
        });
    }
    while let Some(joined) = loads.join_next().await {
        match joined {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return error,
            // A load that panicked took its task with it; the registry reports the load as failed.
            Err(error) => tracing::error!(%error, "a load ended in disorder"),
        }
    }
    let mut ready = false;
    loop {
        ready = models.readiness_other_than(ready).await;
        health.set(Vitals { ready, draining: false });
    }
}
