//! Entries of pools to the memory of the host and back, many at once. On a GPU they are packed into
//! one of two buffers while the other is copied; where the host can touch the GPU's memory, and on
//! the CPU, they are copied as they lie.

use std::ops::Range;

use candle_core::Tensor;

use super::{Packing, check_pool, entry_len, gather_entries, is_floats, scatter_entries};
use crate::access::{View, check, write};
use crate::error::{Error, Result};
use crate::gpu::{Gpu, scratch, step};

/// Bytes of a word.
const WORD: usize = 4;
/// Buffers on a GPU that packed entries go through: one is packed while another is copied.
pub(crate) const LANES: usize = 2;
/// Words of each, 16 MiB, unless an entry of one pool has more: long enough for copies to be quick.
/// Emulated they are short, so that small tests take both of them, and both again.
const LANE_WORDS: usize = if cfg!(feature = "emulate") { 4 << 10 } else { 4 << 20 };

/// How a copy ended: well, or with what the driver says.
pub(crate) type Done = std::result::Result<(), String>;

/// Copies of a GPU between its memory and that of the host, which are made beside kernels.
pub(crate) trait Copies {
    /// Kernels that are started from now on may write to a lane.
    fn before_packing(&mut self, lane: usize) -> Done;

    /// Copies parts of a lane, when the kernels that were started have packed it, to where each is to
    /// be. They are there when [`finish`](Self::finish) has returned.
    fn copy_out(
        &mut self,
        lane: usize,
        staging: &Tensor,
        parts: &mut [(Range<usize>, &mut [u8])],
    ) -> Done;

    /// Copies the other way, when the kernels that were started are done with the lane; those started
    /// from then on find it there.
    fn copy_in(&mut self, lane: usize, staging: &Tensor, parts: &[(Range<usize>, &[u8])]) -> Done;

    /// Kernels that read a lane were started.
    fn after_unpacking(&mut self, lane: usize) -> Done;

    /// Waits for all copies.
    fn finish(&mut self) -> Done;
}

/// Reads entries of pools, all on one device: block `i` gets entry `entries[i]` of each pool, one pool
/// after another, in little-endian words. What was called before on the device is done first.
///
/// # Errors
/// An entry that is not there, blocks of another number or length, pools that are not f32 or u32 and
/// contiguous, a device that fails; what the blocks hold is unspecified then.
pub fn read_entries(pools: &[&Tensor], entries: &[u32], blocks: &mut [&mut [u8]]) -> Result<()> {
    const OP: &str = "read_entries";
    let lens = blocks.iter().map(|block| block.len());
    let Some(plan) = Plan::new(OP, pools, entries, lens)? else { return Ok(()) };
    match Gpu::of(pools[0]) {
        None => read_here(OP, pools, entries, blocks),
        Some(gpu) if gpu.is_open_to_host(pools) => {
            // SAFETY: `Plan` has checked the types, the entries and the blocks.
            unsafe { gpu.read_openly(pools, entries, blocks) }
        }
        Some(gpu) => gpu.copying(OP, |copies| plan.read(copies, pools, entries, blocks)),
    }
}

/// Writes entries of pools: the counterpart of [`read_entries`]. No entry may be listed twice. The
/// blocks can be let go when this returns; operators that are called then find what was written.
///
/// # Errors
/// As for [`read_entries`]; what the entries hold is unspecified then.
pub fn write_entries(pools: &[&Tensor], entries: &[u32], blocks: &[&[u8]]) -> Result<()> {
    const OP: &str = "write_entries";
    let lens = blocks.iter().map(|block| block.len());
    let Some(plan) = Plan::new(OP, pools, entries, lens)? else { return Ok(()) };
    match Gpu::of(pools[0]) {
        None => write_here(OP, pools, entries, blocks),
        Some(gpu) if gpu.is_open_to_host(pools) => {
            // SAFETY: `Plan` has checked the types, the entries and the blocks.
            unsafe { gpu.write_openly(pools, entries, blocks) }
        }
        Some(gpu) => gpu.copying(OP, |copies| plan.write(copies, pools, entries, blocks)),
    }
}

/// How entries are cut into batches, each of which fits a lane.
struct Plan {
    op: &'static str,
    batches: Vec<Batch>,
    /// Words of a lane.
    words: usize,
}

/// Some of the pools for some of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Batch {
    pools: Range<usize>,
    entries: Range<usize>,
    /// What the pools have of each block.
    bytes: Range<usize>,
}

impl Batch {
    fn stride(&self) -> usize {
        self.bytes.len() / WORD
    }

    /// Where the batch's entry `index` lies in its lane.
    fn place(&self, index: usize) -> Range<usize> {
        index * self.bytes.len()..(index + 1) * self.bytes.len()
    }
}

impl Plan {
    /// None where there is nothing to copy.
    fn new(
        op: &'static str,
        pools: &[&Tensor],
        entries: &[u32],
        lens: impl ExactSizeIterator<Item = usize>,
    ) -> Result<Option<Self>> {
        let mut pool_words = Vec::with_capacity(pools.len());
        for pool in pools {
            is_floats(op, pool)?;
            pool_words.push(check_pool(op, pool, entries)?);
            let device = pool.device();
            if !device.same_device(pools[0].device()) {
                let device = device.location();
                return Err(Error::Elsewhere { op, operand: "pools", device });
            }
        }
        check(op, "blocks", lens.len() == entries.len(), || {
            (format!("one for each of {} entries", entries.len()), lens.len().to_string())
        })?;
        let expected = pool_words.iter().sum::<usize>() * WORD;
        for found in lens {
            check(op, "blocks", found == expected, || {
                (format!("{expected} bytes each"), found.to_string())
            })?;
        }
        if entries.is_empty() || expected == 0 {
            return Ok(None);
        }
        let words = pool_words.iter().copied().fold(LANE_WORDS, usize::max);
        Ok(Some(Self { op, batches: batches(&pool_words, entries.len(), words), words }))
    }

    /// The lanes, in memory that operators share.
    fn lanes(&self, pool: &Tensor) -> Result<[Tensor; LANES]> {
        // No more than the largest batch takes, where there are few.
        let needed = self.batches.iter().map(|batch| batch.stride() * batch.entries.len()).max();
        let words = needed.unwrap_or(0).min(self.words).next_multiple_of(4);
        let all = scratch(self.op, pool.device(), words * LANES)?;
        Ok([all.narrow(0, 0, words)?, all.narrow(0, words, words)?])
    }

    fn read(
        &self,
        copies: &mut dyn Copies,
        pools: &[&Tensor],
        entries: &[u32],
        blocks: &mut [&mut [u8]],
    ) -> Result<()> {
        let lanes = self.lanes(pools[0])?;
        for (number, batch) in self.batches.iter().enumerate() {
            let (lane, staging) = (number % LANES, &lanes[number % LANES]);
            self.said(copies.before_packing(lane))?;
            self.pack(batch, pools, |pool, packing| {
                gather_entries(staging, pool, &entries[batch.entries.clone()], packing)
            })?;
            let blocks = blocks[batch.entries.clone()].iter_mut().enumerate();
            let mut parts: Vec<_> = blocks
                .map(|(index, block)| (batch.place(index), &mut block[batch.bytes.clone()]))
                .collect();
            self.said(copies.copy_out(lane, staging, &mut parts))?;
        }
        Ok(())
    }

    fn write(
        &self,
        copies: &mut dyn Copies,
        pools: &[&Tensor],
        entries: &[u32],
        blocks: &[&[u8]],
    ) -> Result<()> {
        let lanes = self.lanes(pools[0])?;
        for (number, batch) in self.batches.iter().enumerate() {
            let (lane, staging) = (number % LANES, &lanes[number % LANES]);
            let blocks = blocks[batch.entries.clone()].iter().enumerate();
            let parts: Vec<_> = blocks
                .map(|(index, block)| (batch.place(index), &block[batch.bytes.clone()]))
                .collect();
            self.said(copies.copy_in(lane, staging, &parts))?;
            self.pack(batch, pools, |pool, packing| {
                scatter_entries(pool, staging, &entries[batch.entries.clone()], packing)
            })?;
            self.said(copies.after_unpacking(lane))?;
        }
        Ok(())
    }

    /// Starts a kernel for each pool of a batch.
    fn pack(
        &self,
        batch: &Batch,
        pools: &[&Tensor],
        mut start: impl FnMut(&Tensor, Packing) -> Result<()>,
    ) -> Result<()> {
        step(pools[0].device(), || {
            let mut packing = Packing { stride: batch.stride(), offset: 0 };
            for pool in &pools[batch.pools.clone()] {
                start(pool, packing)?;
                packing.offset += entry_len(pool);
            }
            Ok(())
        })
    }

    fn said(&self, result: Done) -> Result<()> {
        result.map_err(|what| Error::Device { op: self.op, what })
    }
}

/// Batches of as many entries as fit in `words`; of one entry and some pools each, where an entry of
/// all of them does not. No pool's entry has more words.
fn batches(pool_words: &[usize], entries: usize, words: usize) -> Vec<Batch> {
    let total: usize = pool_words.iter().sum();
    if total <= words {
        let step = words / total;
        let batch = |start: usize| Batch {
            pools: 0..pool_words.len(),
            entries: start..entries.min(start + step),
            bytes: 0..total * WORD,
        };
        return (0..entries).step_by(step).map(batch).collect();
    }
    let mut runs: Vec<(Range<usize>, Range<usize>)> = Vec::new();
    let mut end = 0;
    for (pool, len) in pool_words.iter().enumerate() {
        let after = end + len * WORD;
        match runs.last_mut() {
            Some((pools, bytes)) if after - bytes.start <= words * WORD => {
                (pools.end, bytes.end) = (pool + 1, after);
            }
            _ => runs.push((pool..pool + 1, end..after)),
        }
        end = after;
    }
    let of_entry = |entry: usize| {
        runs.iter().map(move |(pools, bytes)| Batch {
            pools: pools.clone(),
            entries: entry..entry + 1,
            bytes: bytes.clone(),
        })
    };
    (0..entries).flat_map(of_entry).collect()
}

/// The bytes of entry `entry` of a pool, among those of its memory.
fn entry_bytes(pool: &Tensor, entry: u32) -> Range<usize> {
    let bytes = entry_len(pool) * WORD;
    entry as usize * bytes..(entry as usize + 1) * bytes
}

fn read_here(
    op: &'static str,
    pools: &[&Tensor],
    entries: &[u32],
    blocks: &mut [&mut [u8]],
) -> Result<()> {
    let mut start = 0;
    for pool in pools {
        let len = entry_len(pool) * WORD;
        let view = View::new(op, "pools", pool)?;
        let bytes = match is_floats(op, pool)? {
            true => bytes_of(view.elements::<f32>()?),
            false => bytes_of(view.elements::<u32>()?),
        };
        for (entry, block) in entries.iter().zip(&mut *blocks) {
            block[start..start + len].copy_from_slice(&bytes[entry_bytes(pool, *entry)]);
        }
        start += len;
    }
    Ok(())
}

fn write_here(
    op: &'static str,
    pools: &[&Tensor],
    entries: &[u32],
    blocks: &[&[u8]],
) -> Result<()> {
    let mut start = 0;
    for pool in pools {
        let len = entry_len(pool) * WORD;
        let fill = |bytes: &mut [u8]| {
            for (entry, block) in entries.iter().zip(blocks) {
                bytes[entry_bytes(pool, *entry)].copy_from_slice(&block[start..start + len]);
            }
            Ok(())
        };
        match is_floats(op, pool)? {
            true => write::<f32, _>(op, pool, |all| fill(bytes_of_mut(all)))?,
            false => write::<u32, _>(op, pool, |all| fill(bytes_of_mut(all)))?,
        }
        start += len;
    }
    Ok(())
}

/// The memory of words.
pub(crate) fn bytes_of<T: super::Word>(words: &[T]) -> &[u8] {
    // SAFETY: f32 and u32 have no gaps, and every byte of them is one.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), size_of_val(words)) }
}

/// The memory of words, to be written.
pub(crate) fn bytes_of_mut<T: super::Word>(words: &mut [T]) -> &mut [u8] {
    // SAFETY: as above, and any bytes make up words.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), size_of_val(words)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(pools: Range<usize>, entries: Range<usize>, bytes: Range<usize>) -> Batch {
        Batch { pools, entries, bytes }
    }

    #[test]
    fn as_many_entries_as_fit_make_a_batch() {
        let expected =
            [batch(0..2, 0..3, 0..20), batch(0..2, 3..6, 0..20), batch(0..2, 6..7, 0..20)];
        assert_eq!(batches(&[2, 3], 7, 16), expected);
        assert_eq!(batches(&[2, 3], 1, 5), [batch(0..2, 0..1, 0..20)]);
    }

    #[test]
    fn an_entry_that_does_not_fit_is_cut_between_pools() {
        let expected = [
            batch(0..2, 0..1, 0..20),
            batch(2..3, 0..1, 20..40),
            batch(3..5, 0..1, 40..48),
            batch(0..2, 1..2, 0..20),
            batch(2..3, 1..2, 20..40),
            batch(3..5, 1..2, 40..48),
        ];
        assert_eq!(batches(&[2, 3, 5, 1, 1], 2, 5), expected);
    }
}
