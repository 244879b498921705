//! Whether there is a driver, and which GPUs it has: asked before anything else is, because the
//! tensor library takes both for granted.

use std::ffi::{CStr, c_int};

use candle_core::cuda_backend::cudarc::driver::{CudaContext, result, sys};
use candle_core::{CudaDevice, Device};

use super::modules::said;
use crate::gpu::describe::GpuDescription;
use crate::gpu::device::{DeviceChoice, DeviceError};

/// The driver's library, as it is found at run time.
const LIBRARIES: [&CStr; 2] = [c"libcuda.so.1", c"libcuda.so"];
/// Version of the driver's interface that machine code of this build needs, as it counts them.
const VERSION_MIN: c_int = 13_000;

/// How many GPUs there are.
///
/// # Errors
/// No driver, one that is too old, one that fails.
pub(crate) fn count() -> Result<usize, DeviceError> {
    if !is_present() {
        return Err(DeviceError::driver("none"));
    }
    let version = version()?;
    if version < VERSION_MIN {
        let (major, minor) = parts_of(version);
        return Err(DeviceError::driver(format!("one for CUDA {major}.{minor}")));
    }
    match CudaContext::device_count() {
        Ok(count) => Ok(usize::try_from(count).unwrap_or_default()),
        Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE => Ok(0),
        Err(error) => Err(DeviceError::driver(said(error))),
    }
}

/// Newest interface that the driver offers, as it counts them. Call it when [`is_present`] only.
fn version() -> Result<c_int, DeviceError> {
    let mut version = 0;
    // SAFETY: the library is there, and has this function since CUDA 2.2; it needs no context.
    let asked = unsafe { sys::cuDriverGetVersion(&raw mut version) }.result();
    asked.map_err(|error| DeviceError::driver(said(error)))?;
    Ok(version)
}

/// Major and minor of a version as the driver counts them.
fn parts_of(version: c_int) -> (u32, u32) {
    let version = u32::try_from(version).unwrap_or_default();
    (version / 1000, version % 1000 / 10)
}

/// Every GPU, in words.
///
/// # Errors
/// As [`count`]; a driver that does not describe what it counts.
pub(crate) fn describe() -> Result<Vec<GpuDescription>, DeviceError> {
    let (count, driver) = (count()?, parts_of(version()?));
    let failed = |error| DeviceError::driver(said(error));
    let describe = |number: usize| {
        // Devices are counted in the driver's own numbers, which fit.
        let device = result::device::get(number as c_int).map_err(failed)?;
        let attribute = |attribute| {
            // SAFETY: the driver has just given the device.
            let value = unsafe { result::device::get_attribute(device, attribute) };
            value.map(|value| u32::try_from(value).unwrap_or_default()).map_err(failed)
        };
        use sys::CUdevice_attribute::{
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
        };
        Ok(GpuDescription {
            choice: DeviceChoice::Cuda(number),
            name: result::device::get_name(device).map_err(failed)?,
            memory_bytes: memory(number),
            compute_capability: Some((attribute(MAJOR)?, attribute(MINOR)?)),
            driver: Some(driver),
        })
    };
    (0..count).map(describe).collect()
}

/// Bytes of memory of the GPU of a number; none if it is not there.
pub(crate) fn memory(number: usize) -> Option<u64> {
    let number = c_int::try_from(number).ok()?;
    let device = result::device::get(number).ok()?;
    // SAFETY: the driver has just given the device, whose number was counted before.
    unsafe { result::device::total_mem(device) }.ok().map(|bytes| bytes as u64)
}

/// The GPU of a number, with a stream of its own, whichever thread uses it.
///
/// # Errors
/// What the driver says.
pub(crate) fn open(number: usize) -> Result<Device, String> {
    let device = CudaDevice::new_with_stream(number).map_err(|error| error.to_string())?;
    // SAFETY: tensors of this device are used on its stream alone; copies on another, when there are
    // some, are ordered by events of their own.
    unsafe { device.disable_event_tracking() };
    Ok(Device::Cuda(device))
}

#[cfg(target_os = "linux")]
fn is_present() -> bool {
    LIBRARIES.iter().any(|name| {
        // SAFETY: the driver's library may be loaded by any thread, any number of times; it stays.
        !unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_LAZY | libc::RTLD_LOCAL) }.is_null()
    })
}

/// Elsewhere a program with this feature does not start without the driver.
#[cfg(not(target_os = "linux"))]
fn is_present() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// That this runs at all shows that the program starts: libraries are looked for when they are
    /// called (deploy/cuda/patch.sh). What machines with a driver do, the tests of operators show.
    #[test]
    fn without_a_driver_a_build_with_cuda_says_so_and_takes_the_processor() {
        if is_present() {
            return;
        }
        let told = "expected NVIDIA's driver for CUDA 13.0 or later, found none";
        for choice in [DeviceChoice::Cuda(0), DeviceChoice::Cuda(7)] {
            assert_eq!(choice.resolve().expect_err("there is none").to_string(), told);
            assert_eq!(choice.open().expect_err("there is none").to_string(), told);
            assert_eq!(choice.own_memory(), None);
        }
        assert_eq!(GpuDescription::cuda().expect_err("there is none").to_string(), told);
        assert_eq!(DeviceChoice::Auto.resolve(), Ok(DeviceChoice::Cpu));
    }
}
