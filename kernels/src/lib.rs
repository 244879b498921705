//! Operators of a language model: contract, slow reference and fast backends, one folder each.
//!
//! Every operator writes into tensors that the caller allocated, so that a step allocates nothing
//! of its size and a CUDA graph can be captured over fixed buffers. Models, sequences and layers
//! are not known here; `docs/KERNELS.md` has the layouts, `docs/NUMERICS.md` the tolerances.

#![allow(
    clippy::needless_range_loop,
    reason = "kernels and their definitions index several operands alike"
)]

mod access;
pub mod add;
pub mod attention;
pub mod draw_tokens;
pub mod embedding;
pub mod entries;
mod error;
pub mod gate_mul;
pub mod gated_delta;
pub mod gated_delta_step;
pub mod gather_rows;
pub mod gpu;
pub mod head_matmul;
pub mod isa;
pub mod latent_attention;
pub mod matmul;
pub mod memory;
pub mod moe;
pub mod peaks;
pub mod pool;
pub mod prepare_attention;
pub mod random_words;
mod recurrence;
pub mod rms_norm;
pub mod rms_norm_gated;
pub mod rope;
mod rounding;
pub mod scale;
pub mod short_conv;
mod simd;
pub mod top_logits;

pub use access::{read_rows, read_words, storage_mut, write_rows};
pub use add::{add, add_bias, add_gated};
pub use attention::{
    AttentionOptions, BlockOrder, KvPages, KvSide, KvType, PageTable, Segment, paged_attention,
    write_kv,
};
pub use draw_tokens::{Draw, Drawn, DrawnTokens};
pub use embedding::embedding;
pub use entries::{
    Packing, clear_entry, copy_entry, gather_entries, read_entries, scatter_entries, write_entries,
};
pub use error::{Error, Result};
pub use gate_mul::{Activation, GateProduct, gate_mul, gate_muls};
pub use gated_delta::{Form, GatedDeltaInputs, GatedDeltaOptions, KeyHeads, gated_delta};
pub use gated_delta_step::{
    GatedDeltaStates, GatedDeltaStepInputs, GatedDeltaStepOptions, gated_delta_step,
};
pub use gather_rows::gather_rows;
pub use head_matmul::head_matmul;
pub use isa::Isa;
pub use latent_attention::latent_attention;
pub use matmul::{
    ActivationBuffer, ActivationType, Activations, AffineFormat, AffineRows, Code, CodedFormat,
    CodedRows, DenseRows, DenseType, Matrix, MatrixFormat, Mode, Product, RandomRows, ScaleType,
    matmul, matmuls,
};
pub use moe::{
    Choices, ExpertProduct, PairInput, RouterOptions, Routing, Scoring, combine_experts,
    expert_matmul, expert_matmuls,
};
pub use peaks::{PeakOptions, Peaks};
pub use pool::Pool;
pub use prepare_attention::{AttentionRows, HeadNorms, prepare_attention};
pub use recurrence::{Emit, Recurrence, RecurrentSegment};
pub use rms_norm::rms_norm;
pub use rms_norm_gated::rms_norm_gated;
pub use rope::{RopeLayout, rope};
pub use scale::scale;
pub use short_conv::short_conv;
pub use top_logits::{TopLogits, Wanted};
