//! Copies between the GPU and the host that run beside kernels: on a stream of their own, which events
//! keep in step with that of the kernels, lane by lane.

use std::ops::Range;
use std::sync::Arc;

use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaStream, DriverError, sys};
use candle_core::{DType, Storage, Tensor};

use super::modules::said;
use super::{Cuda, lock, start_of};
use crate::entries::{Copies, LANES};
use crate::error::Error;

/// The stream of copies, and where it stands beside that of kernels.
pub(super) struct Transfer {
    stream: Arc<CudaStream>,
    /// What a lane is to be read for is in it.
    filled: [CudaEvent; LANES],
    /// What was in a lane was read, on either stream.
    emptied: [CudaEvent; LANES],
}

impl Transfer {
    fn new(kernels: &CudaStream) -> Result<Self, DriverError> {
        let context = kernels.context();
        let event = || context.new_event(None);
        Ok(Self {
            stream: context.new_stream()?,
            filled: [event()?, event()?],
            emptied: [event()?, event()?],
        })
    }
}

/// A transfer under way.
struct Copying<'a> {
    kernels: &'a Arc<CudaStream>,
    transfer: &'a Transfer,
}

impl Drop for Copying<'_> {
    fn drop(&mut self) {
        // Also where a panic has skipped `finish`: copies under way write to what the caller lends. A
        // failure is one of the stream, which its next use reports.
        let _ = self.transfer.stream.synchronize();
    }
}

impl Cuda {
    /// Hands its copies to `body`, which ends by waiting for them.
    pub(crate) fn copying(
        self,
        op: &'static str,
        body: impl FnOnce(&mut dyn Copies) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let failed = |error| Error::Device { op, what: said(error) };
        let kernels = self.stream();
        let mut transfer = lock(&self.0.transfer);
        let transfer = match &mut *transfer {
            Some(transfer) => transfer,
            none => none.insert(Transfer::new(kernels).map_err(failed)?),
        };
        // Lanes lie in memory that other kernels were using until now.
        for emptied in &transfer.emptied {
            emptied.record(kernels).map_err(failed)?;
        }
        body(&mut Copying { kernels, transfer })
    }
}

impl Copies for Copying<'_> {
    fn before_packing(&mut self, lane: usize) -> Result<(), String> {
        self.kernels.wait(&self.transfer.emptied[lane]).map_err(said)
    }

    fn copy_out(
        &mut self,
        lane: usize,
        staging: &Tensor,
        parts: &mut [(Range<usize>, &mut [u8])],
    ) -> Result<(), String> {
        let Transfer { stream, filled, emptied } = self.transfer;
        let address = address_of(staging)?;
        filled[lane].record(self.kernels).map_err(said)?;
        stream.wait(&filled[lane]).map_err(said)?;
        let places = parts.iter_mut().map(|(place, part)| (place.clone(), part.as_mut_ptr()));
        for (place, host) in runs(places) {
            // SAFETY: the parts are of the lane, which is on this GPU, and lie in blocks that the
            // caller lends until `finish` has returned. Kernels write to the lane again when the
            // event after this has come.
            let copied = unsafe {
                sys::cuMemcpyDtoHAsync_v2(
                    host.cast(),
                    address + place.start as u64,
                    place.len(),
                    stream.cu_stream(),
                )
            };
            copied.result().map_err(said)?;
        }
        emptied[lane].record(stream).map_err(said)
    }

    fn copy_in(
        &mut self,
        lane: usize,
        staging: &Tensor,
        parts: &[(Range<usize>, &[u8])],
    ) -> Result<(), String> {
        let Transfer { stream, filled, emptied } = self.transfer;
        let address = address_of(staging)?;
        stream.wait(&emptied[lane]).map_err(said)?;
        let places = parts.iter().map(|(place, part)| (place.clone(), part.as_ptr().cast_mut()));
        for (place, host) in runs(places) {
            // SAFETY: as above; the host's memory is only read.
            let copied = unsafe {
                sys::cuMemcpyHtoDAsync_v2(
                    address + place.start as u64,
                    host.cast_const().cast(),
                    place.len(),
                    stream.cu_stream(),
                )
            };
            copied.result().map_err(said)?;
        }
        filled[lane].record(stream).map_err(said)?;
        self.kernels.wait(&filled[lane]).map_err(said)
    }

    fn after_unpacking(&mut self, lane: usize) -> Result<(), String> {
        self.transfer.emptied[lane].record(self.kernels).map_err(said)
    }

    fn finish(&mut self) -> Result<(), String> {
        self.transfer.stream.synchronize().map_err(said)
    }
}

/// Parts that follow one another on both sides, as one: pages that were taken from the same slab.
fn runs(parts: impl Iterator<Item = (Range<usize>, *mut u8)>) -> Vec<(Range<usize>, *mut u8)> {
    let mut runs: Vec<(Range<usize>, *mut u8)> = Vec::new();
    for (place, host) in parts {
        match runs.last_mut() {
            Some((run, start))
                if run.end == place.start && start.wrapping_add(run.len()) == host =>
            {
                run.end = place.end;
            }
            _ => runs.push((place, host)),
        }
    }
    runs
}

/// Where a lane starts.
fn address_of(staging: &Tensor) -> Result<u64, String> {
    let (storage, layout) = staging.storage_and_layout();
    let start = match &*storage {
        Storage::Cuda(storage) => start_of(storage, DType::U32),
        _ => None,
    };
    let start = start.ok_or("a lane that is not on the GPU")?;
    Ok(start + (layout.start_offset() * size_of::<u32>()) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_follow_one_another_are_copied_as_one() {
        let at = std::ptr::without_provenance_mut::<u8>;
        let parts = [(0..8, at(64)), (8..16, at(72)), (16..24, at(100)), (32..40, at(108))];
        let expected = [(0..16, at(64)), (16..24, at(100)), (32..40, at(108))];
        assert_eq!(runs(parts.into_iter()), expected);
    }
}
