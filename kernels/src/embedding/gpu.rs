//! `embedding` on GPUs: a block for each row asked for.

use candle_core::Tensor;

use crate::error::Result;
use crate::gpu::{Call, Gpu, Grid, threads_for};
use crate::matmul::{DeviceWeight, format_word};

/// Threads of a block, each of which decodes 8 columns at a time.
const THREADS_MAX: u32 = 256;

/// Writes rows `ids` of a table of `dim` columns.
pub(super) fn embedding(
    gpu: Gpu,
    out: &Tensor,
    table: &DeviceWeight,
    ids: &[u32],
    dim: usize,
) -> Result<()> {
    let mut call = Call::new("embedding", gpu);
    call.write::<f32>("out", out)?;
    call.read::<u32>("table", &table.codes)?.read::<u32>("table", &table.scales)?;
    call.list(ids)?;
    call.size("table", table.layout.row_words)?.size("table", table.layout.scale_words)?;
    call.word(format_word(table.format)).size("out", dim)?;
    let threads = threads_for(dim.div_ceil(8), THREADS_MAX);
    // SAFETY: the parameters of the kernel; `out` has a row for each id, and ids are rows of the table.
    unsafe { call.launch("embedding", Grid::row(ids.len(), threads)) }
}
