//! Numbers of the host to a tensor on the GPU and back. Memory is one: what both may touch is read
//! where it is, when the GPU is done. Writes are the GPU's, so that they come in the order of its
//! commands and the host does not wait: the tensor may be in use, or be about to be zeroed.

use std::ops::Range;

use candle_core::backend::BackendStorage;
use candle_core::{MetalDevice, MetalStorage};
use candle_metal_kernels::RESOURCE_OPTIONS;
use candle_metal_kernels::metal::Buffer;
use objc2_metal::{MTLResource, MTLStorageMode};

use crate::entries::Word;
use crate::error::{Error, Result};
use crate::gpu::wait;

/// Copies `values` over as many elements of a storage of f32 or u32, which has them. They are taken
/// when this returns.
pub(crate) fn from_host<T: Word>(
    op: &'static str,
    storage: &mut MetalStorage,
    range: Range<usize>,
    values: &[T],
) -> Result<()> {
    if values.is_empty() {
        return Ok(());
    }
    let (start, bytes) = (range.start * size_of::<T>(), size_of_val(values));
    let (device, data) = (storage.device(), values.as_ptr().cast());
    // Of its own: one of the tensor library's might be handed on before it is read.
    let staged = device.metal_device().new_buffer_with_data(data, bytes, RESOURCE_OPTIONS);
    let staged = staged.map_err(|error| failed(op, &error))?;
    device.blit_command_encoder()?.copy_from_buffer(&staged, 0, storage.buffer(), start, bytes);
    Ok(())
}

/// Copies as many elements of a storage of f32 or u32 out as `values` are, when all that was started
/// before is done.
pub(crate) fn to_host<T: Word>(
    op: &'static str,
    storage: &MetalStorage,
    range: Range<usize>,
    values: &mut [T],
) -> Result<()> {
    if values.is_empty() {
        return Ok(());
    }
    let (start, bytes) = (range.start * size_of::<T>(), size_of_val(values));
    let device = storage.device();
    let mut copy = |buffer: &Buffer, start: usize| -> Result<()> {
        finish(op, device)?;
        // SAFETY: the buffer has the range, and nothing on the GPU writes it.
        unsafe { at(buffer, start).copy_to_nonoverlapping(values.as_mut_ptr().cast(), bytes) };
        Ok(())
    };
    if shared(storage.buffer()) {
        return copy(storage.buffer(), start);
    }
    let staged = device.metal_device().new_buffer(bytes, RESOURCE_OPTIONS);
    let staged = staged.map_err(|error| failed(op, &error))?;
    device.blit_command_encoder()?.copy_from_buffer(storage.buffer(), start, &staged, 0, bytes);
    copy(&staged, 0)
}

/// Waits for all that was started before.
pub(super) fn finish(op: &'static str, device: &MetalDevice) -> Result<()> {
    let done = device.flush_and_wait_current();
    done.map_err(|error| Error::Device { op, what: wait::later(error.to_string()) })
}

/// Whether the host may touch it.
pub(super) fn shared(buffer: &Buffer) -> bool {
    buffer.as_ref().storageMode() == MTLStorageMode::Shared
}

/// A place in a buffer that the host may touch.
pub(super) fn at(buffer: &Buffer, start: usize) -> *mut u8 {
    buffer.contents().cast::<u8>().wrapping_add(start)
}

fn failed(op: &'static str, error: &dyn std::error::Error) -> Error {
    Error::Device { op, what: error.to_string() }
}
