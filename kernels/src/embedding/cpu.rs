//! `embedding` on the CPU: unpacks the rows asked for.

use crate::error::Result;
use crate::matmul::Matrix;

pub(super) fn embedding(out: &mut [f32], table: &Matrix, ids: &[u32]) -> Result<()> {
    let dim = table.cols();
    if dim == 0 {
        return Ok(());
    }
    for (out, id) in out.chunks_exact_mut(dim).zip(ids) {
        table.unpack_row(*id as usize, out)?;
    }
    Ok(())
}
