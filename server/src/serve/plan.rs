//! What a server is asked to be: addresses, models, limits and times, validated by the caller.
//!
//! Plain data; where the values come from (file, environment, flags) is `config`'s subject.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::security::SecurityPlan;
use sconce_models::DeviceChoice;
pub use sconce_models::model::Precision;

pub use crate::trace::TracePlan;

/// Everything [`Server::bind`](super::Server::bind) needs to know.
#[derive(Debug, Clone, PartialEq)]
pub struct ServePlan {
    /// Where to listen, at least one address.
    pub listen: Vec<ListenAddress>,
    /// Where the admin port listens; none if empty.
    pub admin: Vec<ListenAddress>,
    /// Models to load at start; a failure ends the server.
    pub models: Vec<ModelPlan>,
    /// Bounds of the device thread.
    pub engine: EnginePlan,
    /// What is remembered between requests.
    pub cache: CachePlan,
    /// How activations are computed.
    pub precision: Precision,
    /// Bounds of the edge.
    pub limits: Limits,
    /// How the server stops.
    pub drain: DrainPlan,
    /// Whether gRPC reflection is served.
    pub reflection: bool,
    /// Protocols of others.
    pub compat: CompatPlan,
    /// Who may connect, who may ask, what may be loaded.
    pub security: SecurityPlan,
    /// Where spans go.
    pub trace: TracePlan,
}

impl Default for ServePlan {
    /// Port 50051 on loopback, no model, and nothing that depends on the machine: no memory budget,
    /// and state remembered where the models keep theirs only.
    fn default() -> Self {
        Self {
            listen: vec![ListenAddress::Tcp(SocketAddr::from(([127, 0, 0, 1], 50051)))],
            admin: Vec::new(),
            models: Vec::new(),
            engine: EnginePlan::default(),
            cache: CachePlan::default(),
            precision: Precision::Fast,
            limits: Limits::default(),
            drain: DrainPlan::default(),
            reflection: true,
            compat: CompatPlan::default(),
            security: SecurityPlan::default(),
            trace: TracePlan::default(),
        }
    }
}

/// Which protocols of others are spoken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompatPlan {
    /// Whether `vllm.grpc.engine.VllmEngine` is served.
    pub vllm: bool,
    /// The model that it is about; `None` for the only one that is ready.
    pub vllm_model: Option<String>,
}

impl Default for CompatPlan {
    fn default() -> Self {
        Self { vllm: true, vllm_model: None }
    }
}

/// An address to listen on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ListenAddress {
    /// TCP; port 0 takes a free one.
    Tcp(SocketAddr),
    /// A Unix socket at this path; spelled `unix:PATH`.
    Unix(PathBuf),
}

impl FromStr for ListenAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return match path {
                "" => Err(format!("expected a path after `unix:`, found `{text}`")),
                path => Ok(Self::Unix(path.into())),
            };
        }
        text.parse().map(Self::Tcp).map_err(|_| {
            format!("expected IP:PORT (such as 127.0.0.1:50051 or [::]:50051) or unix:PATH, found `{text}`")
        })
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl ListenAddress {
    /// Whether nobody but this machine can connect.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Self::Unix(_) => true,
        }
    }
}

/// A model to load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelPlan {
    /// Name to serve it under.
    pub name: String,
    /// A directory, a `.gguf` file, or `sim:` (see [`sconce_models::sim`] for its options).
    pub path: String,
    /// Most tokens a sequence may hold; `None` for [`EnginePlan::context_length_max`] or what the
    /// checkpoint was trained for, whichever is less.
    pub context_length: Option<usize>,
    /// Unloads the model after it was idle this long; `None` for never.
    pub keep_alive: Option<Duration>,
}

/// Bounds of the device thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnginePlan {
    /// What computes.
    pub device: DeviceChoice,
    /// Most bytes of weights, workspace and sequence state together; `None` for no limit.
    pub memory_budget: Option<u64>,
    /// Most sequences that run at once on one model.
    pub sequences_max: usize,
    /// Most requests that wait, over all models.
    pub waiting_max: usize,
    /// Most tokens of one step; a longer prompt is taken in chunks.
    pub prefill_chunk_tokens: usize,
    /// Most tokens a sequence may hold unless a load asks otherwise.
    pub context_length_max: usize,
    /// Threads that compute; `None` for one per core.
    pub threads: Option<usize>,
    /// Longest step that is believed in: after that the device thread counts as dead.
    pub step_time_max: Duration,
}

impl Default for EnginePlan {
    fn default() -> Self {
        Self {
            device: DeviceChoice::Cpu,
            memory_budget: None,
            sequences_max: 64,
            waiting_max: 256,
            prefill_chunk_tokens: 2048,
            context_length_max: 32_768,
            threads: None,
            step_time_max: Duration::from_secs(600),
        }
    }
}

/// What is remembered between requests, where and for how long. A tier with 0 bytes is off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachePlan {
    /// Most bytes of remembered state where the models compute, within
    /// [`EnginePlan::memory_budget`]; `u64::MAX` where no limit is known.
    pub device: u64,
    /// Most bytes of remembered state in main memory.
    pub host: u64,
    /// Most bytes of remembered state on disk; 0 without a directory.
    pub disk: u64,
    /// Where on disk.
    pub directory: Option<PathBuf>,
    /// What is forgotten first.
    pub policy: CachePolicy,
    /// Most tokens of a prompt between restore points; 0 for none in between.
    pub spacing: usize,
    /// By what the distances of restore points from the end of a prompt grow, at least 2; 0 for
    /// none there.
    pub tail_factor: usize,
    /// Longest that a server waits at its end until what is remembered is on disk.
    pub save_time_max: Duration,
}

impl Default for CachePlan {
    /// As much as the models' own pools of state hold, and nothing elsewhere.
    fn default() -> Self {
        Self {
            device: u64::MAX,
            host: 0,
            disk: 0,
            directory: None,
            policy: CachePolicy::CostToLose,
            spacing: 8192,
            tail_factor: 4,
            save_time_max: Duration::from_secs(60),
        }
    }
}

/// What is forgotten first when room is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CachePolicy {
    /// What is cheapest to compute again, for its bytes and its chance of being wanted.
    CostToLose,
    /// What was used longest ago.
    Lru,
    /// What was used longest ago, then deepest, then largest.
    OldestDeepestLargest,
}

/// Bounds of the edge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Longest a request may take; a later or absent client deadline is cut to it.
    pub request_seconds_max: Duration,
    /// Most open connections; further ones wait to be accepted.
    pub connections_max: usize,
    /// Most open streams of one connection.
    pub streams_per_connection_max: u32,
    /// When a TCP connection is asked to go, so that clients spread over the replicas there are by then;
    /// what it has asked for is still answered. Never if zero.
    pub connection_age_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_seconds_max: Duration::from_secs(3600),
            connections_max: 1024,
            streams_per_connection_max: 256,
            connection_age_max: Duration::from_secs(1800),
        }
    }
}

/// How the server stops: health says NOT_SERVING, work is still accepted for `withdrawal`, then no
/// more; what runs has `drain` to finish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrainPlan {
    /// Time for balancers to notice.
    pub withdrawal: Duration,
    /// Time for running requests to finish.
    pub drain: Duration,
}

impl Default for DrainPlan {
    fn default() -> Self {
        Self { withdrawal: Duration::from_secs(5), drain: Duration::from_secs(30) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listen_addresses_read_back_as_written() {
        for text in ["127.0.0.1:50051", "[::1]:0", "unix:/run/sconce.sock", "unix:relative.sock"] {
            assert_eq!(text.parse::<ListenAddress>().expect(text).to_string(), text);
        }
        assert_eq!(
            "unix:///run/sconce.sock".parse(),
            Ok(ListenAddress::Unix("/run/sconce.sock".into()))
        );
    }

    #[test]
    fn wrong_listen_addresses_say_what_was_expected() {
        for text in ["", "localhost", "50051", "unix:", "1.2.3.4:99999"] {
            let message = text.parse::<ListenAddress>().expect_err(text);
            assert!(message.contains("expected"), "{message}");
        }
    }
}
