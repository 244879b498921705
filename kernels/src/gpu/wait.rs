//! Waiting for every kernel, so that one that fails while it runs is named. Otherwise it is the next
//! use of the GPU that fails, a copy or another step.

use std::sync::OnceLock;

use super::switch;

/// The environment variable that asks for it: `1`, or `0` or nothing for kernels side by side. All is
/// slower then, as nothing overlaps and no step is a graph.
const WAIT_VARIABLE: &str = "SCONCE_WAIT_FOR_KERNELS";

/// Whether every kernel is to be waited for.
///
/// # Errors
/// A value of [`WAIT_VARIABLE`] that means nothing.
pub(super) fn each_kernel() -> Result<bool, String> {
    static CHOSEN: OnceLock<Result<bool, String>> = OnceLock::new();
    CHOSEN.get_or_init(|| switch::chosen(WAIT_VARIABLE)).clone()
}

/// What is said of a GPU's failure that may be that of a kernel which was started before.
pub(super) fn later(what: String) -> String {
    if each_kernel() == Ok(true) {
        return what;
    }
    format!("{what}; a kernel that was started before may have failed: {WAIT_VARIABLE}=1 names it")
}
