//! Which tensor-core instructions products of many rows use on GPUs of compute capability 9.0: those
//! of 8.0, which all have, or `wgmma`, which only these have.

use std::cell::Cell;
use std::sync::OnceLock;

use super::{Gpu, switch};

/// The environment variable that chooses: `1` for `wgmma`, `0` or nothing for the others. It is for
/// measuring one against the other, until that has been done on a GPU (docs/KERNELS.md).
pub const WGMMA_VARIABLE: &str = "SCONCE_WGMMA";

thread_local! {
    static CHOSEN: Cell<Option<bool>> = const { Cell::new(None) };
}

/// Runs `body` with products of this thread on `wgmma` or not, whatever [`WGMMA_VARIABLE`] says.
/// What `body` prepares is to be multiplied in it.
pub fn with_wgmma<R>(wgmma: bool, body: impl FnOnce() -> R) -> R {
    struct Restore(Option<bool>);
    impl Drop for Restore {
        fn drop(&mut self) {
            CHOSEN.set(self.0);
        }
    }
    let _restore = Restore(CHOSEN.replace(Some(wgmma)));
    body()
}

/// What was chosen.
///
/// # Errors
/// A value of [`WGMMA_VARIABLE`] that means nothing.
fn chosen() -> Result<bool, String> {
    static ASKED: OnceLock<Result<bool, String>> = OnceLock::new();
    if let Some(chosen) = CHOSEN.get() {
        return Ok(chosen);
    }
    ASKED.get_or_init(|| switch::chosen(WGMMA_VARIABLE)).clone()
}

impl Gpu {
    /// Whether products of many rows are to be those of `wgmma`.
    ///
    /// # Errors
    /// A choice that means nothing, or that this GPU or this build cannot follow.
    pub(crate) fn wgmma(self) -> Result<bool, String> {
        if !chosen()? {
            return Ok(false);
        }
        match self.why_no_wgmma() {
            None => Ok(true),
            Some(why) => Err(format!("{WGMMA_VARIABLE} is 1, {why}")),
        }
    }

    /// Why it has no `wgmma`, if it has none.
    pub(crate) fn why_no_wgmma(self) -> Option<String> {
        match self {
            #[cfg(feature = "cuda")]
            Self::Cuda(gpu) => gpu.why_no_wgmma(),
            #[cfg(feature = "metal")]
            Self::Metal(_) => Some("which Metal does not have".to_owned()),
            #[cfg(feature = "emulate")]
            Self::Emulated(super::Language::Metal) => Some("which Metal does not have".to_owned()),
            #[cfg(feature = "emulate")]
            Self::Emulated(super::Language::Cuda) => None,
        }
    }
}

/// Whether operators on a device can use `wgmma`.
pub fn has_wgmma(device: &candle_core::Device) -> bool {
    Gpu::of_device(device).is_some_and(|gpu| gpu.why_no_wgmma().is_none())
}
