//! Memory of the host that the system may not move, so that GPUs copy to and from it by themselves,
//! while the processor does something else.

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use candle_core::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::{CudaContext, result, sys};

use super::lock;
use crate::gpu::arena::{Arena, Source};

/// All such memory of the process: any GPU may copy to and from it.
static MEMORY: Mutex<Option<Arena<Driver>>> = Mutex::new(None);

/// What allocates it.
struct Driver(Arc<CudaContext>);

impl Source for Driver {
    fn allocate(&mut self, bytes: usize) -> Option<usize> {
        self.0.bind_to_thread().ok()?;
        // SAFETY: there is a context. What the memory holds is unspecified, but bytes in any case.
        let start = unsafe { result::malloc_host(bytes, sys::CU_MEMHOSTALLOC_PORTABLE) };
        start.ok().map(|start| start.expose_provenance())
    }

    fn free(&mut self, address: usize) {
        // What fails here is the context, which its next use reports.
        let _ = self.0.bind_to_thread();
        // SAFETY: as it was allocated; the arena has all of its blocks back.
        let _ = unsafe { result::free_host(std::ptr::with_exposed_provenance_mut(address)) };
    }
}

/// A block of it.
pub(crate) struct Pinned {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: it is memory of the process, of which a block has one owner.
unsafe impl Send for Pinned {}
// SAFETY: as above; who shares it only reads.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// Some bytes; none if there is no more of such memory, or none are asked for.
    pub(crate) fn new(device: &CudaDevice, len: usize) -> Option<Self> {
        if len == 0 {
            return None;
        }
        let mut memory = lock(&MEMORY);
        let memory = memory
            .get_or_insert_with(|| Arena::new(Driver(device.cuda_stream().context().clone())));
        let start = std::ptr::with_exposed_provenance_mut(memory.take(len)?);
        NonNull::new(start).map(|start| Self { start, len })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Some(memory) = lock(&MEMORY).as_mut() {
            memory.release(self.start.addr().get());
        }
    }
}

impl Deref for Pinned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: a block of as many bytes, which this owns.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Pinned {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}
