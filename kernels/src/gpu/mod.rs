//! How operators run on GPUs: which one an operand is on, and calls of its kernels. An operator's
//! `gpu.rs` says which kernel runs on which grid with which arguments, in the same words for every
//! GPU and for the emulator, which runs the same sources on the CPU.

mod call;
#[cfg(feature = "emulate")]
mod emulated;
mod step;

use candle_core::{Device, Tensor};

pub(crate) use self::call::{Call, Grid, WARP, threads_for};
#[cfg(feature = "emulate")]
pub use self::emulated::emulate;
pub use self::step::step;
use self::step::{Argument, Recording};
use crate::error::Error;

/// What kernels are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Language {
    /// CUDA C++.
    Cuda,
    /// Metal Shading Language.
    Metal,
}

/// A GPU that runs kernels. There is none in a build without features for one.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Gpu {
    /// Emulated, on tensors of the CPU.
    #[cfg(feature = "emulate")]
    Emulated(Language),
}

impl Gpu {
    /// The GPU that operators on a tensor run on; none for the CPU.
    pub(crate) fn of(tensor: &Tensor) -> Option<Self> {
        Self::of_device(tensor.device())
    }

    /// The GPU that a device is; none for the CPU.
    pub(crate) fn of_device(device: &Device) -> Option<Self> {
        #[cfg(feature = "emulate")]
        if device.is_cpu() {
            return emulated::language().map(Self::Emulated);
        }
        let _ = device;
        None
    }

    /// What its kernels are written in.
    pub(crate) fn language(self) -> Language {
        match self {
            #[cfg(feature = "emulate")]
            Self::Emulated(language) => language,
        }
    }

    /// Starts a kernel. `lists` is where the lists of the step start, if arguments name any.
    ///
    /// # Errors
    /// What the driver, or the emulator, says.
    ///
    /// # Safety
    /// The kernel takes just these arguments, and addresses lead to what it takes them to.
    unsafe fn start(
        self,
        kernel: &str,
        grid: Grid,
        arguments: &[Argument],
        lists: u64,
    ) -> Result<(), String> {
        let _ = (kernel, grid, arguments, lists);
        match self {
            #[cfg(feature = "emulate")]
            Self::Emulated(language) => {
                // SAFETY: the caller's promise.
                unsafe { emulated::launch(language, kernel, grid, arguments, lists) }
            }
        }
    }

    /// Runs the launches of a step, one after another.
    ///
    /// # Errors
    /// The first kernel that could not be started or failed.
    ///
    /// # Safety
    /// As for [`start`](Self::start), for each launch.
    unsafe fn submit(self, recording: &Recording) -> Result<(), Error> {
        let lists = recording.lists.as_ptr().addr() as u64;
        for launch in &recording.launches {
            let arguments = &recording.arguments[launch.arguments.clone()];
            // SAFETY: the caller's promise.
            let started = unsafe { self.start(launch.kernel, launch.grid, arguments, lists) };
            started.map_err(|what| Error::Kernel { op: launch.op, kernel: launch.kernel, what })?;
        }
        Ok(())
    }
}
