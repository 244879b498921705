//! Entries of pools to the memory of the host and back. Memory is one: where the host may touch that of
//! a pool, it reads and writes entries as they lie, when the GPU is done.

use std::ops::Range;

use candle_core::{Storage, Tensor};

use super::Metal;
use super::copy::{at, finish, from_host, shared, to_host};
use crate::access::storage_mut;
use crate::entries::{Copies, bytes_of_mut};
use crate::error::Result;

/// How a copy ended.
type Done = std::result::Result<(), String>;

/// Bytes of a word.
const WORD: usize = 4;

/// Whether the host may touch a tensor's memory.
pub(crate) fn is_open_to_host(tensor: &Tensor) -> bool {
    match &*tensor.storage_and_layout().0 {
        Storage::Metal(storage) => shared(storage.buffer()),
        _ => false,
    }
}

impl Metal {
    /// Reads entries where they lie.
    ///
    /// # Safety
    /// As for [`Gpu::read_openly`](crate::gpu::Gpu).
    pub(crate) unsafe fn read_openly(
        self,
        pools: &[&Tensor],
        entries: &[u32],
        blocks: &mut [&mut [u8]],
    ) -> Result<()> {
        finish("read_entries", &self.0.device)?;
        let mut start = 0;
        for pool in pools {
            let (storage, layout) = pool.storage_and_layout();
            let Storage::Metal(storage) = &*storage else { continue };
            let (first, len) = (layout.start_offset() * WORD, entry_bytes(pool));
            for (entry, block) in entries.iter().zip(&mut *blocks) {
                let part = &mut block[start..start + len];
                let from = at(storage.buffer(), first + *entry as usize * len);
                // SAFETY: the caller's promise; the GPU has nothing to do.
                unsafe { from.copy_to_nonoverlapping(part.as_mut_ptr(), len) };
            }
            start += len;
        }
        Ok(())
    }

    /// Writes entries where they are to lie.
    ///
    /// # Safety
    /// As for [`Gpu::write_openly`](crate::gpu::Gpu).
    pub(crate) unsafe fn write_openly(
        self,
        pools: &[&Tensor],
        entries: &[u32],
        blocks: &[&[u8]],
    ) -> Result<()> {
        finish("write_entries", &self.0.device)?;
        let mut start = 0;
        for pool in pools {
            let (storage, layout) = storage_mut(pool);
            let Storage::Metal(storage) = &*storage else { continue };
            let (first, len) = (layout.start_offset() * WORD, entry_bytes(pool));
            for (entry, block) in entries.iter().zip(blocks) {
                let part = &block[start..start + len];
                let to = at(storage.buffer(), first + *entry as usize * len);
                // SAFETY: as above, and the storage is locked for writing.
                unsafe { to.copy_from_nonoverlapping(part.as_ptr(), len) };
            }
            start += len;
        }
        Ok(())
    }

    /// Copies through a lane, for pools that the host may not touch.
    pub(crate) fn copies(self) -> impl Copies {
        InOrder
    }
}

fn entry_bytes(pool: &Tensor) -> usize {
    pool.dims().iter().skip(1).product::<usize>() * WORD
}

/// Copies in the order of the GPU's commands.
struct InOrder;

impl Copies for InOrder {
    fn before_packing(&mut self, _lane: usize) -> Done {
        Ok(())
    }

    fn copy_out(
        &mut self,
        _lane: usize,
        staging: &Tensor,
        parts: &mut [(Range<usize>, &mut [u8])],
    ) -> Done {
        let end = parts.iter().map(|(place, _)| place.end).max().unwrap_or(0);
        let mut words = vec![0_u32; end / WORD];
        let (storage, layout) = staging.storage_and_layout();
        let Storage::Metal(storage) = &*storage else {
            return Err("a lane that is not on the GPU".to_owned());
        };
        let first = layout.start_offset();
        to_host("lane", storage, first..first + words.len(), &mut words)
            .map_err(|error| error.to_string())?;
        let bytes = bytes_of_mut(&mut words);
        for (place, part) in parts {
            part.copy_from_slice(&bytes[place.clone()]);
        }
        Ok(())
    }

    fn copy_in(&mut self, _lane: usize, staging: &Tensor, parts: &[(Range<usize>, &[u8])]) -> Done {
        let end = parts.iter().map(|(place, _)| place.end).max().unwrap_or(0);
        let mut words = vec![0_u32; end / WORD];
        let bytes = bytes_of_mut(&mut words);
        for (place, part) in parts {
            bytes[place.clone()].copy_from_slice(part);
        }
        let (mut storage, layout) = storage_mut(staging);
        let Storage::Metal(storage) = &mut *storage else {
            return Err("a lane that is not on the GPU".to_owned());
        };
        let first = layout.start_offset();
        from_host("lane", storage, first..first + words.len(), &words)
            .map_err(|error| error.to_string())
    }

    fn after_unpacking(&mut self, _lane: usize) -> Done {
        Ok(())
    }

    fn finish(&mut self) -> Done {
        // What was read is there, and what was written is with the GPU.
        Ok(())
    }
}
