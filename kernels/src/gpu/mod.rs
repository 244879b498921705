//! How operators run on GPUs: which one an operand is on, and calls of its kernels. An operator's
//! `gpu.rs` says which kernel runs on which grid with which arguments, in the same words for every
//! GPU and for the emulator, which runs the same sources on the CPU.

mod call;
#[cfg(feature = "emulate")]
mod emulated;

use candle_core::Tensor;

pub(crate) use self::call::{Call, Grid, threads_for};
#[cfg(feature = "emulate")]
pub use self::emulated::emulate;

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
        #[cfg(feature = "emulate")]
        if tensor.device().is_cpu() {
            return emulated::language().map(Self::Emulated);
        }
        let _ = tensor;
        None
    }

    /// Starts a kernel; a value is an address, or a word in its lower half.
    ///
    /// # Errors
    /// What the driver, or the emulator, says.
    ///
    /// # Safety
    /// The kernel takes just these values, and addresses lead to what it takes them to.
    unsafe fn start(self, kernel: &str, grid: Grid, values: &[u64]) -> Result<(), String> {
        let _ = (kernel, grid, values);
        match self {
            #[cfg(feature = "emulate")]
            Self::Emulated(language) => {
                // SAFETY: the caller's promise.
                unsafe { emulated::launch(language, kernel, grid, values) }
            }
        }
    }
}
