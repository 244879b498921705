//! Which device to compute on: names of devices, what of them this build and this machine have, and
//! one handle of each for the whole process.

use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use candle_core::Device;

/// A device by name: `auto`, `cpu`, `cuda`, `cuda:1`, `metal`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum DeviceChoice {
    /// The best that this build and machine have: CUDA, else Metal, else the processor.
    Auto,
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA GPU by its number, counted from 0.
    Cuda(usize),
    /// The Apple GPU.
    Metal,
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(0) => f.write_str("cuda"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::Metal => f.write_str("metal"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "`auto`, `cpu`, `cuda`, `cuda:N` or `metal`";
        match (text, text.strip_prefix("cuda:")) {
            ("auto", _) => Ok(Self::Auto),
            ("cpu", _) => Ok(Self::Cpu),
            ("cuda", _) => Ok(Self::Cuda(0)),
            ("metal", _) => Ok(Self::Metal),
            (_, Some(number)) => number.parse().map(Self::Cuda).map_err(|_| EXPECTED),
            _ => Err(EXPECTED),
        }
    }
}

/// Why there is no such device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}, found {found}")]
pub struct DeviceError {
    /// What would have to be there.
    pub expected: String,
    /// What is.
    pub found: String,
}

impl DeviceError {
    fn new(expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self { expected: expected.into(), found: found.into() }
    }
}

impl DeviceChoice {
    /// The device that `auto` stands for here; others if they are there.
    ///
    /// # Errors
    /// A backend that is not in this build, no driver, no device of that number.
    pub fn resolve(self) -> Result<Self, DeviceError> {
        match self {
            Self::Auto => {
                let best = [Self::Cuda(0), Self::Metal];
                Ok(best.into_iter().find(|choice| choice.resolve().is_ok()).unwrap_or(Self::Cpu))
            }
            Self::Cpu => Ok(self),
            Self::Cuda(number) => expect_cuda(number).map(|()| self),
            Self::Metal => expect_metal().map(|()| self),
        }
    }

    /// Bytes of the memory that the device has to itself; none where it computes in that of the host,
    /// or is not there.
    pub fn own_memory(self) -> Option<u64> {
        match self.resolve() {
            #[cfg(feature = "cuda")]
            Ok(Self::Cuda(number)) => super::cuda::memory(number),
            _ => None,
        }
    }

    /// The device, the same handle each time: what models of one process do on a GPU is then in one
    /// order.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve); a device that cannot be used.
    pub fn open(self) -> Result<Device, DeviceError> {
        static OPENED: Mutex<Vec<(DeviceChoice, Device)>> = Mutex::new(Vec::new());
        let choice = self.resolve()?;
        let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, device)) = opened.iter().find(|(found, _)| *found == choice) {
            return Ok(device.clone());
        }
        let device = match choice {
            #[cfg(feature = "cuda")]
            Self::Cuda(number) => super::cuda::open(number)
                .map_err(|what| DeviceError::new(format!("a GPU `{choice}` to use"), what))?,
            #[cfg(feature = "metal")]
            Self::Metal => Device::new_metal(0).map_err(|error| {
                DeviceError::new(format!("a GPU `{choice}` to use"), error.to_string())
            })?,
            _ => Device::Cpu,
        };
        opened.push((choice, device.clone()));
        Ok(device)
    }
}

#[cfg(not(feature = "cuda"))]
fn expect_cuda(_number: usize) -> Result<(), DeviceError> {
    Err(DeviceError::new("a build with feature `cuda`", "one without it"))
}

#[cfg(feature = "cuda")]
fn expect_cuda(number: usize) -> Result<(), DeviceError> {
    let count = super::cuda::count()?;
    if number < count {
        return Ok(());
    }
    let expected = format!("an NVIDIA GPU number {number}, counted from 0");
    Err(DeviceError::new(expected, format!("{count} of them")))
}

#[cfg(not(feature = "metal"))]
fn expect_metal() -> Result<(), DeviceError> {
    Err(DeviceError::new("a build with feature `metal`", "one without it"))
}

#[cfg(feature = "metal")]
fn expect_metal() -> Result<(), DeviceError> {
    match candle_metal_kernels::metal::Device::system_default() {
        Some(_) => Ok(()),
        None => Err(DeviceError::new("an Apple GPU", "none")),
    }
}

#[cfg(feature = "cuda")]
impl DeviceError {
    /// No driver, or one that is too old or fails.
    pub(super) fn driver(found: impl Into<String>) -> Self {
        Self::new("NVIDIA's driver for CUDA 13.0 or later", found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for name in ["auto", "cpu", "cuda", "cuda:1", "cuda:17", "metal"] {
            assert_eq!(name.parse::<DeviceChoice>().unwrap().to_string(), name);
        }
        assert_eq!("cuda:0".parse(), Ok(DeviceChoice::Cuda(0)));
        for name in ["", "CPU", "cuda:", "cuda:-1", "cuda:x", "metal:0", "tpu"] {
            assert!(name.parse::<DeviceChoice>().unwrap_err().contains("`cuda:N`"), "{name}");
        }
    }

    #[test]
    fn the_processor_is_always_there() {
        assert_eq!(DeviceChoice::Cpu.resolve(), Ok(DeviceChoice::Cpu));
        assert!(DeviceChoice::Cpu.open().unwrap().is_cpu());
        assert_eq!(DeviceChoice::Cpu.own_memory(), None);
        assert!(DeviceChoice::Auto.resolve().is_ok_and(|choice| choice != DeviceChoice::Auto));
        assert!(DeviceChoice::Auto.open().is_ok());
    }

    #[test]
    fn what_is_not_there_is_told() {
        // No machine has so many; one without a driver, or a build without the feature, says that.
        let Err(error) = DeviceChoice::Cuda(4096).resolve() else { panic!("there are 4097 GPUs") };
        let expected = match cfg!(feature = "cuda") {
            true => ["an NVIDIA GPU number 4096", "NVIDIA's driver for CUDA 13.0"],
            false => ["a build with feature `cuda`"; 2],
        };
        assert!(expected.iter().any(|expected| error.expected.contains(expected)), "{error}");
    }

    #[cfg(not(any(feature = "cuda", feature = "metal")))]
    #[test]
    fn a_build_without_gpus_takes_the_processor() {
        assert_eq!(DeviceChoice::Auto.resolve(), Ok(DeviceChoice::Cpu));
        assert!(DeviceChoice::Cuda(0).open().is_err());
        let metal = DeviceChoice::Metal.open().unwrap_err().to_string();
        assert_eq!(metal, "expected a build with feature `metal`, found one without it");
    }
}
