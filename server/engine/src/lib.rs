//! The device thread: admission, batching, sampling, and which models are loaded.
//!
//! [`EngineHandle`] is the whole of it from outside: submit a [`Request`], read a [`Generation`].
//! The engine sees tokens, never text, and a model only through [`sconce_models::Model`].
#![forbid(unsafe_code)]

mod cache;
mod checkpoint_loader;
mod config;
mod engine;
mod error;
mod event;
mod executor;
mod generation;
mod handle;
mod loader;
mod mailbox;
mod meter;
mod page_count;
mod remember;
mod request;
mod residency;
mod restart;
mod sampler;
mod scheduler;
mod sequence;
mod shared;
mod snapshot;
mod status;
mod steps;
#[cfg(test)]
mod tests;

pub use cache::{CacheEvents, CachePicture, CacheStatus, CacheTierStatus, Spacing};
pub use checkpoint_loader::CheckpointLoader;
pub use config::{CacheConfig, Clock, EngineConfig};
pub use error::EngineError;
pub use event::{
    CacheReport, Event, FinishReason, Finished, Started, Timings, Token, TokenLogprobs, Usage,
};
pub use generation::Generation;
pub use handle::EngineHandle;
pub use loader::{Estimate, LoadLimits, LoadProgress, LoadSettings, Loader};
pub use meter::{
    End, Histogram, HistogramReading, LoadReading, MODELS_METERED_MAX, ModelReading, OTHERS, Phase,
    Readings, bounds,
};
pub use request::{CacheUse, Request, Sampling, Stopping};
pub use residency::{LoadEvent, Loading};
pub use sampler::TOP_LOGPROBS_MAX;
pub use snapshot::{SnapshotFile, SnapshotInfo, SnapshotRequest};
pub use status::{Counters, DeviceStatus, LoadedModel, ModelState, ModelStatus, Status};
pub use steps::{Step, StepSample, TraceMark};
