//! `sconce serve`: the server, until it is told to stop.

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum as _;
use figment::value::Value;
use sconce_engine::{ModelState, ModelStatus};
use sconce_models::DeviceChoice;
use sconce_proto::v1::{LoadProgress, LoadStage};
use sconce_server::serve::{ListenAddress, ServeError, Server, ServerHandle};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use super::error::CliError;
use super::output;
use super::precision::PrecisionArgs;
use super::progress::LoadDisplay;
use crate::config::{Flag, Layers};
use crate::telemetry;

/// How often the loads of the first models are looked at.
const SHOW_INTERVAL: Duration = Duration::from_millis(100);

/// Arguments of `sconce serve`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Listen here: IP:PORT or unix:PATH; may be repeated [default: 127.0.0.1:50051]
    #[arg(long, value_name = "ADDR")]
    listen: Vec<ListenAddress>,
    /// Answer health and metrics in plain HTTP here: IP:PORT or unix:PATH; may be repeated
    #[arg(long, value_name = "ADDR")]
    admin: Vec<ListenAddress>,
    /// Load the checkpoint at PATH and serve it as NAME; may be repeated
    #[arg(long, value_name = "NAME=PATH", value_parser = parse_model)]
    model: Vec<(String, String)>,
    #[command(flatten)]
    cache: CacheArgs,
    #[command(flatten)]
    security: SecurityArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

/// Who may connect, and who may ask.
#[derive(Debug, clap::Args)]
struct SecurityArgs {
    /// Speak TLS on TCP addresses with the certificate (and those above it) in this PEM file
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<String>,
    /// Key of the certificate, a PEM file
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<String>,
    /// Have clients show certificates of the authorities in this PEM file
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_client_ca: Option<String>,
    /// Let in those alone who show a token of this file, which has lines NAME:TOKEN
    #[arg(long, value_name = "FILE")]
    auth_tokens: Option<String>,
}

impl SecurityArgs {
    /// The flags that are on the command line, as settings.
    fn flags(&self) -> impl Iterator<Item = Flag> {
        let flags = [
            ("--tls-cert", ["tls", "certificate"], &self.tls_cert),
            ("--tls-key", ["tls", "key"], &self.tls_key),
            ("--tls-client-ca", ["tls", "client_ca"], &self.tls_client_ca),
            ("--auth-tokens", ["auth", "tokens"], &self.auth_tokens),
        ];
        let flag = |(name, [section, key], value): (_, [&str; 2], &Option<String>)| {
            let key = ["server", section, key].map(str::to_owned).to_vec();
            Some(Flag { name, key, value: Value::from(value.as_deref()?) })
        };
        flags.into_iter().filter_map(flag)
    }
}

/// What is remembered between requests, and where.
#[derive(Debug, clap::Args)]
struct CacheArgs {
    /// Remember on disk too, in this directory; a server that starts again finds it there
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<String>,
    /// Most remembered state on disk: bytes, or a share of what is free [default: 10%]
    #[arg(long, value_name = "SIZE")]
    cache_disk: Option<String>,
    /// Most remembered state in main memory: bytes, or a share of it [default: 10%]
    #[arg(long, value_name = "SIZE")]
    cache_host: Option<String>,
    /// Most remembered state on the device: bytes, or a share of the memory budget [default: 50%]
    #[arg(long, value_name = "SIZE")]
    cache_device: Option<String>,
}

impl CacheArgs {
    /// The flags that are on the command line, as settings.
    fn flags(&self) -> impl Iterator<Item = Flag> {
        let flags = [
            ("--cache-dir", "directory", &self.cache_dir),
            ("--cache-disk", "disk", &self.cache_disk),
            ("--cache-host", "host", &self.cache_host),
            ("--cache-device", "device", &self.cache_device),
        ];
        let flag = |(name, key, value): (_, _, &Option<String>)| {
            Some(Flag::new(name, ("cache", key), value.as_deref()?))
        };
        flags.into_iter().filter_map(flag)
    }
}

/// What computes and how, for a server and for commands that run a model in process.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct EngineArgs {
    /// What computes: auto, cpu, cuda, cuda:N (the GPU of that number, from 0) or metal
    #[arg(long, value_name = "DEVICE")]
    device: Option<DeviceChoice>,
    #[command(flatten)]
    precision: PrecisionArgs,
    /// Threads that compute [default: one for each physical core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Read settings from this file instead of /etc/sconce/config.toml
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

impl EngineArgs {
    /// Whether any of them is on the command line.
    pub(crate) fn is_given(&self) -> bool {
        let precision = self.precision.given().is_some();
        self.device.is_some() || precision || self.threads.is_some() || self.config.is_some()
    }

    /// The flags that are on the command line, as settings.
    pub(crate) fn flags(&self) -> Vec<Flag> {
        let mut flags = Vec::new();
        if let Some(device) = self.device {
            flags.push(Flag::new("--device", ("engine", "device"), device.to_string()));
        }
        if let Some((flag, precision)) = self.precision.given() {
            let name = precision.to_possible_value().expect("no precision is hidden");
            flags.push(Flag::new(flag, ("engine", "precision"), name.get_name()));
        }
        if let Some(threads) = self.threads {
            flags.push(Flag::new("--threads", ("engine", "threads"), threads));
        }
        flags
    }
}

/// Runs `sconce serve`.
pub(crate) async fn run(args: Args) -> Result<(), CliError> {
    let layers = Layers::new(args.engine.config.as_deref(), flags(&args))?;
    let config = layers.extract()?;
    let plan = config.plan(&layers)?;
    telemetry::init_server(&config.telemetry).map_err(CliError::Settings)?;
    telemetry::announce(&plan);
    // Before the first connection, so that no signal is missed once the address is known.
    let signals = Signals::new()?;
    let names = plan.models.iter().map(|model| model.name.clone()).collect();
    let server = Server::bind(plan).await.map_err(serve_error)?;
    for address in server.local_addrs() {
        output::line(format_args!("listening on {address}"))?;
        tracing::info!(%address, "listening");
    }
    for address in server.handle().admin_addrs() {
        output::line(format_args!("admin on {address}"))?;
        tracing::info!(%address, "admin port listening");
    }
    let (first, told) = oneshot::channel::<()>();
    let loads = Loads::new(server.handle(), names);
    tokio::select! {
        never = loads.show() => match never {},
        // A dropped sender is the signal.
        ended = server.run(async { drop(told.await) }) => ended.map_err(serve_error),
        () = signals.twice(first) => {
            Err(CliError::Internal("told twice to stop, so the drain was cut short".to_owned()))
        }
    }
}

/// The loads of the models that a server starts with, as they are shown.
struct Loads {
    server: ServerHandle,
    /// Models that are not ready yet.
    waiting: Vec<String>,
    displays: HashMap<String, LoadDisplay>,
}

impl Loads {
    fn new(server: ServerHandle, models: Vec<String>) -> Self {
        Self { server, waiting: models, displays: HashMap::new() }
    }

    /// Shows how far the loads are, until the server ends.
    async fn show(mut self) -> Infallible {
        while !self.waiting.is_empty() {
            for status in self.server.models().status().models {
                if self.waiting.contains(&status.name) {
                    self.update(&status);
                }
            }
            tokio::time::sleep(SHOW_INTERVAL).await;
        }
        std::future::pending().await
    }

    fn update(&mut self, status: &ModelStatus) {
        if status.state == ModelState::Loading {
            let display = self.displays.entry(status.name.clone());
            let log = |line: &str| tracing::info!("{line}");
            display.or_insert_with(|| LoadDisplay::new(&status.name, log)).show(&LoadProgress {
                stage: LoadStage::Weights.into(),
                bytes_done: status.progress.done_bytes,
                bytes_total: status.progress.total_bytes,
                elapsed: None,
            });
            return;
        }
        self.waiting.retain(|name| *name != status.name);
        if let Some(display) = self.displays.remove(&status.name) {
            display.finish();
        }
    }
}

/// SIGTERM and SIGINT, which mean the same.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self, CliError> {
        let listen =
            |kind| signal(kind).map_err(|source| CliError::io("cannot listen for signals", source));
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    /// Drops `first` at the first signal and ends at the second.
    async fn twice(mut self, first: oneshot::Sender<()>) {
        self.next().await;
        drop(first);
        self.next().await;
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

fn flags(args: &Args) -> Vec<Flag> {
    let mut flags = args.engine.flags();
    flags.extend(args.cache.flags());
    flags.extend(args.security.flags());
    for (flag, key, addresses) in
        [("--listen", "listen", &args.listen), ("--admin", "admin", &args.admin)]
    {
        if !addresses.is_empty() {
            let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            flags.push(Flag::new(flag, ("server", key), addresses));
        }
    }
    for (name, path) in &args.model {
        let key = vec!["models".to_owned(), name.clone()];
        flags.push(Flag { name: "--model", key, value: Value::from(path.as_str()) });
    }
    flags
}

fn parse_model(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => {
            Ok((name.to_owned(), path.to_owned()))
        }
        _ => Err(format!("expected NAME=PATH, found `{text}`")),
    }
}

/// What ended a server, as the command line tells it.
pub(crate) fn serve_error(error: ServeError) -> CliError {
    match error {
        ServeError::Setting { .. } | ServeError::Trace(_) => CliError::Settings(error.to_string()),
        ServeError::Engine(_) | ServeError::EngineLost { .. } => {
            CliError::Internal(error.to_string())
        }
        ServeError::NoAddress | ServeError::Listen { .. } | ServeError::Load { .. } => {
            CliError::Unavailable(error.to_string())
        }
    }
}
