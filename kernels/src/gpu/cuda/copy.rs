//! Numbers of the host to a tensor on the GPU and back, in the order of its stream.

use std::ops::Range;

use candle_core::cuda_backend::cudarc::driver::{DeviceRepr, DriverError};
use candle_core::cuda_backend::{CudaDType, CudaStorage};

use super::modules::said;
use crate::error::{Error, Result};

/// Copies `values` over as many elements of a storage of f32 or u32, which has them. They are taken
/// when this returns.
pub(crate) fn from_host<T: CudaDType + DeviceRepr>(
    op: &'static str,
    storage: &mut CudaStorage,
    range: Range<usize>,
    values: &[T],
) -> Result<()> {
    if values.is_empty() {
        return Ok(());
    }
    let stream = storage.device.cuda_stream();
    let mut target = storage.as_cuda_slice_mut::<T>()?.slice_mut(range);
    // Not from pinned memory, so the driver has made a copy when it returns.
    stream.memcpy_htod(values, &mut target).map_err(|error| failed(op, error))
}

/// Copies as many elements of a storage of f32 or u32 out as `values` are, when all that was started
/// before is done.
pub(crate) fn to_host<T: CudaDType + DeviceRepr>(
    op: &'static str,
    storage: &CudaStorage,
    range: Range<usize>,
    values: &mut [T],
) -> Result<()> {
    if values.is_empty() {
        return Ok(());
    }
    let stream = storage.device.cuda_stream();
    let source = storage.as_cuda_slice::<T>()?.slice(range);
    stream.memcpy_dtoh(&source, values).map_err(|error| failed(op, error))?;
    stream.synchronize().map_err(|error| failed(op, error))
}

fn failed(op: &'static str, error: DriverError) -> Error {
    Error::Device { op, what: said(error) }
}
