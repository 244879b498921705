//! What GPUs there are, in words: for whoever asks why a model does not run on one.

use super::device::{DeviceChoice, DeviceError};

/// A GPU, as its driver describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuDescription {
    /// What settings call it.
    pub choice: DeviceChoice,
    /// What its maker calls it.
    pub name: String,
    /// Bytes of its own memory; `None` where it uses that of the host.
    pub memory_bytes: Option<u64>,
    /// Generation of its instructions, major and minor; `None` for one of Apple's.
    pub compute_capability: Option<(u32, u32)>,
    /// Newest interface of CUDA that the driver offers, major and minor; `None` for one of Apple's.
    pub driver: Option<(u32, u32)>,
}

impl GpuDescription {
    /// The NVIDIA GPUs of this machine.
    ///
    /// # Errors
    /// A build without them, no driver, one that is too old or fails.
    pub fn cuda() -> Result<Vec<Self>, DeviceError> {
        #[cfg(feature = "cuda")]
        let found = super::cuda::describe();
        #[cfg(not(feature = "cuda"))]
        let found = DeviceChoice::Cuda(0).resolve().map(|_| Vec::new());
        found
    }

    /// The Apple GPU of this machine.
    ///
    /// # Errors
    /// A build without it, or no such GPU.
    pub fn metal() -> Result<Vec<Self>, DeviceError> {
        let choice = DeviceChoice::Metal.resolve()?;
        Ok(vec![Self {
            choice,
            name: apple_name(),
            memory_bytes: None,
            compute_capability: None,
            driver: None,
        }])
    }
}

#[cfg(feature = "metal")]
fn apple_name() -> String {
    let device = candle_metal_kernels::metal::Device::system_default();
    device.map_or_else(String::new, |device| device.architecture_name())
}

#[cfg(not(feature = "metal"))]
fn apple_name() -> String {
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_without_a_backend_says_so() {
        for (built, found, feature) in [
            (cfg!(feature = "cuda"), GpuDescription::cuda(), "`cuda`"),
            (cfg!(feature = "metal"), GpuDescription::metal(), "`metal`"),
        ] {
            if !built {
                let error = found.expect_err("there is none");
                assert!(error.expected.contains(feature), "{error}");
            }
        }
    }
}
