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
pub mod embedding;
mod error;
pub mod gather_rows;
pub mod isa;
pub mod matmul;
pub mod pool;
pub mod rms_norm;
pub mod rope;
pub mod silu_mul;
mod simd;

pub use access::{read_rows, write_rows};
pub use add::{add, add_bias};
pub use attention::{AttentionOptions, KvPages, PageTable, Segment, paged_attention, write_kv};
pub use embedding::embedding;
pub use error::{Error, Result};
pub use gather_rows::gather_rows;
pub use isa::Isa;
pub use matmul::{
    ActivationBuffer, ActivationType, Activations, AffineFormat, AffineRows, DenseRows, DenseType,
    Matrix, MatrixFormat, Mode, ScaleType, matmul,
};
pub use pool::Pool;
pub use rms_norm::rms_norm;
pub use rope::{RopeLayout, rope};
pub use silu_mul::silu_mul;
