//! What the device does at most, measured in the same run: the bandwidth of a large copy in its
//! memory, read and written bytes both counted.

use candle_core::{DType, Device, Tensor};

use super::clock::{Clock, Work, median};
use super::table::bandwidth;
use super::{Outcome, Row, Sizes};

/// Rates of the device.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peaks {
    bytes: f64,
    seconds: f64,
}

impl Peaks {
    /// Measures them.
    pub(crate) fn measure(device: &Device, clock: &Clock, sizes: &Sizes) -> Outcome<Self> {
        let mut work = copying(device, clock, sizes.copied_bytes)?;
        let [seconds] = clock.in_turn([&mut work])?;
        Ok(Self { bytes: 2.0 * sizes.copied_bytes as f64, seconds: median(&seconds) })
    }

    /// Bytes per second that a copy reads and writes.
    pub(crate) fn copy_rate(&self) -> f64 {
        self.bytes / self.seconds
    }

    /// What they are.
    pub(crate) fn row(&self) -> Row {
        let work = format!("copy of {:.0} MB in device memory", self.bytes / 2e6);
        Row::told(work, bandwidth(self.bytes, self.seconds), "")
    }
}

/// Copies of `bytes` bytes within the memory of a device.
pub(crate) fn copying(device: &Device, clock: &Clock, bytes: usize) -> Outcome<Work<'static>> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(gpu) = device {
        let stream = gpu.cuda_stream();
        let source = stream.alloc_zeros::<u8>(bytes)?;
        let mut target = stream.alloc_zeros::<u8>(bytes)?;
        return Ok(clock.work(device, 1, move || Ok(stream.memcpy_dtod(&source, &mut target)?)));
    }
    let source = Tensor::zeros(bytes / 4, DType::U32, device)?;
    let target = Tensor::zeros(bytes / 4, DType::U32, device)?;
    Ok(clock.work(device, 1, move || Ok(target.slice_set(&source, 0, 0)?)))
}
