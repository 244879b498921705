//! Token embedding: rows of a table, which may be quantized and shared with the head.

mod cpu;
mod gpu;
pub mod reference;

use candle_core::Tensor;

use crate::access::{check_dim, rows_of, write};
use crate::error::Result;
use crate::gather_rows::check_indices;
use crate::gpu::Gpu;
use crate::matmul::Matrix;

/// `out[i] = table[ids[i]]`, dequantized; `out` is `[at least ids.len(), dim]`, `table` is
/// `[vocab, dim]`.
///
/// # Errors
/// An id that is not a row of the table, shapes that do not fit, an output that is not f32 and
/// contiguous, a device without an implementation.
pub fn embedding(out: &Tensor, table: &Matrix, ids: &[u32]) -> Result<()> {
    const OP: &str = "embedding";
    let (_, dim) = rows_of(OP, "out", out, ids.len())?;
    check_dim(OP, "table", table.cols(), dim)?;
    check_indices(OP, "ids", ids, table.rows())?;
    let gpu = Gpu::of(out);
    table.check_place(OP, "table", gpu)?;
    if let (Some(gpu), Some(table)) = (gpu, table.on_device()) {
        return gpu::embedding(gpu, out, table, ids, dim);
    }
    write(OP, out, |out| cpu::embedding(out, table, ids))
}
