//! Checkpoints on disk to a model you can step.
//!
//! A checkpoint (`checkpoint`) is read into layers (`layers`) of an architecture (`llama`), which
//! steps ragged batches over paged sequence state (`state`). Serving, sampling and caching are not
//! here: this crate knows no request.

// Only the checkpoint's memory map may; it says why.
#![deny(unsafe_code)]

pub mod checkpoint;
mod error;
mod gemma3;
mod glm4_moe_lite;
mod hybrid;
mod layers;
mod llama;
pub mod load;
mod logits;
pub mod model;
pub mod quantize;
mod qwen3;
mod qwen3_5;
mod qwen3_moe;
mod qwen3_next;
pub mod sim;
pub mod state;
pub mod threads;
mod work;

pub use checkpoint::Checkpoint;
pub use error::{Blame, Error};
pub use load::{LoadOptions, LoadProgress, LoadStage, MemoryEstimate, estimate, load, load_random};
pub use logits::{Logits, TopRow};
pub use model::{Batch, Model, ModelFootprint, ModelInfo, PointEmit, Precision, RowUse, Segment};
pub use quantize::QuantizeFormat;
pub use sconce_kernels::Isa;
pub use sconce_kernels::KvType;
pub use sconce_kernels::draw_tokens::{Draw, Drawn};
pub use sconce_kernels::gpu::{DeviceChoice, DeviceError, GpuDescription};
pub use state::{
    PAGE_TOKENS, PointId, Prefix, PrefixPoint, SequenceId, StateError, StateLayout, StatePool,
};
pub use work::{StepShape, StepWork, TokenWork};
