//! The operators on entries on GPUs. What changes from call to call are lists, so that a step that
//! copies or clears the same slot of all layers is the same graph each time.

use candle_core::Tensor;

use super::Packing;
use crate::error::Result;
use crate::gpu::{Call, Gpu, Grid, in_fours};

/// Threads of a block.
const THREADS_MAX: u32 = 256;

/// A pool, and whether it holds f32.
type Pool<'a> = (&'a Tensor, bool);

pub(super) fn gather(
    gpu: Gpu,
    packed: &Tensor,
    pool: Pool<'_>,
    entries: &[u32],
    (len, packing): (usize, Packing),
) -> Result<()> {
    let mut call = Call::new("gather_entries", gpu);
    call.write::<u32>("packed", packed)?;
    match pool {
        (pool, true) => call.read::<f32>("pool", pool)?,
        (pool, false) => call.read::<u32>("pool", pool)?,
    };
    let grid = pack(&mut call, [packed, pool.0], entries, (len, packing))?;
    // SAFETY: the parameters of the kernel; the pool has the entries, `packed` has room for them.
    unsafe { call.launch("entries_gather", grid) }
}

pub(super) fn scatter(
    gpu: Gpu,
    pool: Pool<'_>,
    packed: &Tensor,
    entries: &[u32],
    (len, packing): (usize, Packing),
) -> Result<()> {
    let mut call = Call::new("scatter_entries", gpu);
    write_pool(&mut call, pool)?.read::<u32>("packed", packed)?;
    let grid = pack(&mut call, [pool.0, packed], entries, (len, packing))?;
    // SAFETY: the parameters of the kernel; the pool has the entries, and `packed` has them too.
    unsafe { call.launch("entries_scatter", grid) }
}

pub(super) fn copy(gpu: Gpu, pool: Pool<'_>, from_to: [u32; 2], len: usize) -> Result<()> {
    let mut call = Call::new("copy_entry", gpu);
    write_pool(&mut call, pool)?.list(&from_to)?;
    call.size("entry", len)?.flag(in_fours(len, &[pool.0]));
    // SAFETY: the parameters of the kernel; the pool has both entries.
    unsafe { call.launch("entries_copy", Grid::fours(len, THREADS_MAX)) }
}

pub(super) fn clear(gpu: Gpu, pool: Pool<'_>, entry: u32, len: usize) -> Result<()> {
    let mut call = Call::new("clear_entry", gpu);
    write_pool(&mut call, pool)?.list(&[entry])?;
    call.size("entry", len)?.flag(in_fours(len, &[pool.0]));
    // SAFETY: the parameters of the kernel; the pool has the entry.
    unsafe { call.launch("entries_clear", Grid::fours(len, THREADS_MAX)) }
}

fn write_pool<'c, 'a>(
    call: &'c mut Call<'a>,
    (pool, floats): Pool<'a>,
) -> Result<&'c mut Call<'a>> {
    match floats {
        true => call.write::<f32>("pool", pool),
        false => call.write::<u32>("pool", pool),
    }
}

/// The last arguments of `gather` and `scatter`, and their grid.
fn pack(
    call: &mut Call<'_>,
    tensors: [&Tensor; 2],
    entries: &[u32],
    (len, Packing { stride, offset }): (usize, Packing),
) -> Result<Grid> {
    let wide = [len, stride, offset].iter().all(|words| words.is_multiple_of(4));
    call.list(entries)?.size("entry", len)?.size("packing", stride)?.size("packing", offset)?;
    call.flag(wide && in_fours(len, &tensors));
    Ok(Grid::rows_of_fours(entries.len(), len, THREADS_MAX))
}
