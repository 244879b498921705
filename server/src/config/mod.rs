//! What can be set, and what it is when it is not. Where settings come from is in `layers.rs`; what
//! they mean to the server is in `plan.rs`. The table in `docs/OPERATIONS.md` is checked against
//! these structs.

mod cache;
mod layers;
mod machine;
mod model;
mod plan;
mod security;
mod size;
#[cfg(test)]
mod tests;
mod value;

use std::collections::BTreeMap;

use crate::serve::{ListenAddress, Precision, ServePlan};
use sconce_models::DeviceChoice;
use serde::{Deserialize, Serialize};

pub use self::cache::{CacheConfig, PolicyChoice};
pub use self::layers::{ConfigError, Flag, Layers, Origin, default_file, to_toml};
pub use self::machine::Machine;
pub use self::model::ModelConfig;
pub use self::security::{AuthConfig, ClientAuthChoice, ExemptChoice, TlsConfig};
pub use self::size::{Amount, Share};
pub use self::value::{Auto, ByteSize, FromScalar, Span};

/// Every setting, merged and typed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The edges: where and how requests come in.
    pub server: ServerConfig,
    /// The device thread: how much runs at once.
    pub engine: EngineConfig,
    /// What is remembered between requests, and where.
    pub cache: CacheConfig,
    /// Protocols of others, for what is there already.
    pub compat: CompatConfig,
    /// Models loaded at start, by the name each is served under.
    pub models: BTreeMap<String, ModelConfig>,
    /// Logs and traces.
    pub telemetry: TelemetryConfig,
}

/// `[server]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerConfig {
    /// Addresses to listen on.
    #[serde(with = "value::addresses")]
    pub listen: Vec<ListenAddress>,
    /// Addresses of the admin port.
    #[serde(with = "value::addresses_or_none")]
    pub admin: Vec<ListenAddress>,
    /// Most open connections.
    pub connections_max: usize,
    /// Most open connections from one address.
    pub connections_per_address_max: usize,
    /// Most open streams of one connection.
    pub streams_per_connection_max: u32,
    /// When a TCP connection is asked to go; never if zero.
    pub connection_age_max: Span,
    /// Longest a request may take.
    pub request_time_max: Span,
    /// Whether gRPC reflection is served.
    pub reflection: bool,
    /// At shutdown: how long work is still accepted, for balancers to notice.
    pub withdrawal: Span,
    /// At shutdown: how long running requests may take to finish.
    pub drain: Span,
    /// Whether RPCs that change what the server has are served.
    pub admin_rpcs: bool,
    /// What a request may have loaded.
    pub model_roots: Vec<String>,
    /// TLS of the TCP addresses.
    pub tls: TlsConfig,
    /// Who may ask.
    pub auth: AuthConfig,
}

/// `[engine]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineConfig {
    /// What computes.
    #[serde(with = "value::device")]
    pub device: DeviceChoice,
    /// How exactly a model computes.
    pub precision: PrecisionChoice,
    /// Threads of the CPU backend.
    pub threads: Auto<usize>,
    /// Most bytes of weights, workspace and sequence state together.
    pub memory_budget: Auto<Amount>,
    /// Most sequences that run at once on one model.
    pub sequences_max: usize,
    /// Most requests that wait on one model.
    pub waiting_max: usize,
    /// Most prompt tokens that one step takes.
    pub prefill_chunk_tokens: usize,
    /// Most tokens a sequence may hold unless a load asks otherwise.
    pub context_length_max: usize,
    /// Longest step that is believed in.
    pub step_time_max: Span,
}

/// `[compat]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompatConfig {
    /// Whether `vllm.grpc.engine.VllmEngine` is served.
    pub vllm: bool,
    /// The model that it is about, by name; empty for the only one that is ready.
    pub vllm_model: String,
}

/// `[telemetry]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TelemetryConfig {
    /// Which log lines are written.
    pub log: String,
    /// How they look.
    pub log_format: LogFormat,
    /// Whether prompts are logged.
    pub log_prompts: bool,
    /// Where spans are sent; empty is what the environment says.
    pub otlp: String,
}

/// How exactly a model computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum PrecisionChoice {
    /// 8-bit activations, as other engines have
    Fast,
    /// 15-bit activations
    Fine,
    /// f32 throughout, for comparison with references
    Exact,
}

impl From<Precision> for PrecisionChoice {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::Fast => Self::Fast,
            Precision::Fine => Self::Fine,
            Precision::Exact => Self::Exact,
        }
    }
}

impl From<PrecisionChoice> for Precision {
    fn from(choice: PrecisionChoice) -> Self {
        match choice {
            PrecisionChoice::Fast => Self::Fast,
            PrecisionChoice::Fine => Self::Fine,
            PrecisionChoice::Exact => Self::Exact,
        }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// `human` on a terminal, `json` elsewhere.
    Auto,
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

impl Default for Config {
    /// The server's own defaults, written as settings.
    fn default() -> Self {
        let plan = ServePlan::default();
        Self {
            server: ServerConfig {
                listen: plan.listen,
                admin: plan.admin,
                connections_max: plan.limits.connections_max,
                connections_per_address_max: plan.security.connections_per_address_max,
                streams_per_connection_max: plan.limits.streams_per_connection_max,
                connection_age_max: Span(plan.limits.connection_age_max),
                request_time_max: Span(plan.limits.request_seconds_max),
                reflection: plan.reflection,
                withdrawal: Span(plan.drain.withdrawal),
                drain: Span(plan.drain.drain),
                admin_rpcs: plan.security.admin_rpcs,
                model_roots: plan.security.model_roots,
                tls: TlsConfig::default(),
                auth: AuthConfig::default(),
            },
            engine: EngineConfig {
                device: DeviceChoice::Auto,
                precision: plan.precision.into(),
                threads: plan.engine.threads.into(),
                memory_budget: Auto::Auto,
                sequences_max: plan.engine.sequences_max,
                waiting_max: plan.engine.waiting_max,
                prefill_chunk_tokens: plan.engine.prefill_chunk_tokens,
                context_length_max: plan.engine.context_length_max,
                step_time_max: Span(plan.engine.step_time_max),
            },
            cache: CacheConfig::default(),
            compat: CompatConfig {
                vllm: plan.compat.vllm,
                vllm_model: plan.compat.vllm_model.unwrap_or_default(),
            },
            models: BTreeMap::new(),
            telemetry: TelemetryConfig {
                log: "info".to_owned(),
                log_format: LogFormat::Auto,
                log_prompts: false,
                otlp: plan.trace.endpoint.unwrap_or_default(),
            },
        }
    }
}
