//! The threads that compute: one pool for the process, which all models share.
//!
//! Here so that a server can set it without knowing the kernels.

pub use sconce_kernels::pool::AlreadyRunning;
use sconce_kernels::pool::Pool;

/// Sets how many threads compute; call it before the first model is loaded.
///
/// # Errors
/// [`AlreadyRunning`], if another number computes already.
pub fn configure(threads: usize) -> Result<(), AlreadyRunning> {
    Pool::configure(threads)
}

/// How many threads compute: as many as were [configured](configure), else one for each physical
/// core that this process may use.
pub fn count() -> usize {
    Pool::global().threads()
}
