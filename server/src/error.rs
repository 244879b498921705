//! Why a call fails, in the words of the domain; `grpc::status` decides what that is on the wire.

use std::time::Duration;

use sconce_engine::{EngineError, ModelState};

/// A call that failed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CallError {
    /// A field of the request has a value it must not have.
    #[error("{field}: {problem}")]
    InvalidField {
        /// Path of the field in the request, such as `sampling.top_p`.
        field: String,
        /// What was expected and what was found.
        problem: String,
    },
    /// The request's metadata is malformed.
    #[error("metadata {key}: {problem}")]
    InvalidMetadata {
        /// Key of the header.
        key: &'static str,
        /// What was expected and what was found.
        problem: String,
    },
    /// A field of the protocol, or a whole RPC, that this server does not serve.
    #[error("{feature} is not served by this server")]
    NotOffered {
        /// Path of the field, or name of the RPC.
        feature: String,
    },
    /// No model is loaded, or loading, under this name.
    #[error("no model named `{name}` is loaded; Load makes one ready, ListModels tells which are")]
    UnknownModel {
        /// The name asked for.
        name: String,
    },
    /// Health was asked of a service that is not registered.
    #[error("no service named `{name}` is registered for health checks")]
    UnknownService {
        /// The name asked for.
        name: String,
    },
    /// No snapshot is kept under this identity.
    #[error("no snapshot has the id `{id}`; ListSnapshots tells which are kept")]
    UnknownSnapshot {
        /// The identity asked for.
        id: String,
    },
    /// A snapshot's state cannot be used any more.
    #[error("{problem}")]
    SnapshotDamaged {
        /// What was expected and what was found.
        problem: String,
    },
    /// A snapshot belongs to another model.
    #[error("{problem}")]
    SnapshotForeign {
        /// The fingerprints of both.
        problem: String,
    },
    /// The files to load do not exist.
    #[error("path: {problem}")]
    CheckpointNotFound {
        /// The path asked for.
        path: String,
        /// What was looked for.
        problem: String,
    },
    /// Who asks is not known.
    #[error("{problem}")]
    Unauthenticated {
        /// What was expected and what was found; never what was given.
        problem: &'static str,
    },
    /// Who asks may not ask this.
    #[error("{rpc}: expected an identity with the role `{role}`")]
    RoleRequired {
        /// The role that may.
        role: &'static str,
        /// What was asked.
        rpc: String,
    },
    /// The path to load is not one that requests may name. Says nothing of what is there.
    #[error("path: expected a path under one of the server's model roots")]
    PathRefused,
    /// The model is known and does not answer yet, or any more.
    #[error("model `{name}` is {state}")]
    ModelNotReady {
        /// Its name.
        name: String,
        /// What it is doing instead.
        state: &'static str,
    },
    /// A protocol for one model is spoken, and there is none.
    #[error("{problem}")]
    NothingServed {
        /// What is missing.
        problem: String,
    },
    /// A protocol for one model is spoken, and there are several.
    #[error(
        "expected one model, found {names}; the setting compat.vllm_model says which is served here"
    )]
    SeveralServed {
        /// Their names.
        names: String,
    },
    /// A reader of events goes on from a place that is not known, or no more.
    #[error(
        "start_sequence_number: expected 0 for all that is remembered, or the number of a batch from {} to \
         {newest} that was not read as a part of that, found {cursor}",
        oldest - 1
    )]
    EventsUnknown {
        /// Where it wants to go on.
        cursor: u64,
        /// The oldest batch that is kept.
        oldest: u64,
        /// The newest.
        newest: u64,
    },
    /// A reader of events is so slow that some are gone.
    #[error("batch {behind} was read last and {oldest} is the oldest kept; begin again with 0")]
    EventsLost {
        /// The batch that it read last.
        behind: u64,
        /// The oldest batch that is kept.
        oldest: u64,
    },
    /// Something is to be remembered, and every tier is turned off.
    #[error("nothing is remembered for model `{name}`: every tier of the cache is turned off")]
    CacheOff {
        /// Its name.
        name: String,
    },
    /// The name is taken by a model with other settings.
    #[error("model `{name}` is already loaded with other settings: {difference}; Unload it first")]
    ModelExists {
        /// The name asked for.
        name: String,
        /// Which setting differs, and its two values.
        difference: String,
    },
    /// The load ended because it was cancelled or the model was unloaded meanwhile.
    #[error("the load of model `{name}` was cancelled")]
    LoadCancelled {
        /// Its name.
        name: String,
    },
    /// A queue is full.
    #[error("{what} is full: it holds at most {bound}")]
    QueueFull {
        /// Which queue.
        what: String,
        /// How many it holds.
        bound: usize,
        /// When there may be room.
        retry_after: Duration,
    },
    /// Memory does not suffice.
    #[error("{problem}")]
    MemoryExhausted {
        /// What was needed and what is there.
        problem: String,
    },
    /// The server shuts down.
    #[error("the server is shutting down")]
    Draining,
    /// The engine has stopped, or restarts.
    #[error("the device thread does not answer: {problem}")]
    EngineGone {
        /// Why, as far as known.
        problem: String,
    },
    /// The request took longer than it may.
    #[error("the deadline passed {place}")]
    DeadlineExceeded {
        /// Where it was met: `in the queue`, `while the answer was streamed`, ...
        place: &'static str,
    },
    /// A bug, or a computation that went wrong.
    #[error("internal error: {problem}")]
    Internal {
        /// What happened.
        problem: String,
    },
}

impl CallError {
    /// A field with a wrong value.
    pub fn field(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::InvalidField { field: field.into(), problem: problem.into() }
    }

    /// A field or RPC that is not served.
    pub fn not_offered(feature: impl Into<String>) -> Self {
        Self::NotOffered { feature: feature.into() }
    }

    /// When a caller may try again, where trying again can help.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::QueueFull { retry_after, .. } => Some(*retry_after),
            Self::MemoryExhausted { .. } => Some(Duration::from_secs(1)),
            Self::Draining | Self::EngineGone { .. } | Self::NothingServed { .. } => {
                Some(Duration::from_secs(2))
            }
            _ => None,
        }
    }
}

impl From<EngineError> for CallError {
    fn from(error: EngineError) -> Self {
        let problem = error.to_string();
        match error {
            EngineError::QueueFull { limit, retry_after } => Self::QueueFull {
                what: "the queue of completions".into(),
                bound: limit,
                retry_after,
            },
            EngineError::Busy { operations, limit } => Self::QueueFull {
                what: format!("the queue of {operations}"),
                bound: limit,
                retry_after: Duration::from_secs(1),
            },
            EngineError::EmptyPrompt
            | EngineError::UnknownTokenId { .. }
            | EngineError::ContextExceeded { .. } => Self::field("prompt", problem),
            EngineError::InvalidOption { option, expected, found } => {
                let problem = format!("expected {expected}, found {found}");
                match option {
                    "max_tokens" | "logprobs" | "name" => Self::field(option, problem),
                    "restore_points" | "bypass" => Self::field(format!("cache.{option}"), problem),
                    _ => Self::field(format!("sampling.{option}"), problem),
                }
            }
            EngineError::ModelNotFound { model } => Self::UnknownModel { name: model },
            EngineError::ModelNotReady { model, state } => {
                let state = match state {
                    ModelState::Loading => "loading",
                    ModelState::Ready => "ready",
                    ModelState::Unloading => "unloading",
                    ModelState::Failed => "broken; unload it and load it again",
                };
                Self::ModelNotReady { name: model, state }
            }
            EngineError::ModelUnloaded { model } => {
                Self::ModelNotReady { name: model, state: "unloaded" }
            }
            EngineError::AlreadyLoaded { model, difference } => {
                Self::ModelExists { name: model, difference }
            }
            EngineError::LoadFailed { message, .. } => Self::field("path", message),
            EngineError::LoadCancelled { model } => Self::LoadCancelled { name: model },
            EngineError::OutOfMemory(_)
            | EngineError::OutOfPages { .. }
            | EngineError::SnapshotTooLarge { .. } => Self::MemoryExhausted { problem },
            EngineError::CacheOff { model } => Self::CacheOff { name: model },
            EngineError::DeadlineExceeded { .. } => {
                Self::DeadlineExceeded { place: "in the queue" }
            }
            EngineError::NonFiniteLogits { .. }
            | EngineError::Forward { .. }
            | EngineError::Panicked => Self::Internal { problem },
            EngineError::SnapshotNotFound { id } => Self::UnknownSnapshot { id },
            EngineError::SnapshotDamaged { .. } => Self::SnapshotDamaged { problem },
            EngineError::SnapshotForeign { .. } => Self::SnapshotForeign { problem },
            EngineError::Draining => Self::Draining,
            EngineError::Restarting | EngineError::Stopped => Self::EngineGone { problem },
        }
    }
}
