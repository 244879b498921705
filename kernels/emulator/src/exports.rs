//! What `include/emulator.h` calls.

use std::ffi::{CStr, c_char, c_void};

use crate::block::{self, Exchange};

#[unsafe(no_mangle)]
extern "C" fn sconce_barrier() {
    block::barrier();
}

/// # Safety
/// As for [`block::exchange`].
#[unsafe(no_mangle)]
unsafe extern "C" fn sconce_exchange(
    operation: *const c_char,
    mask: u32,
    value: *const c_void,
    len: usize,
) -> *const Exchange {
    // SAFETY: the caller's promise.
    unsafe { block::exchange(operation, mask, value, len) }
}

/// # Safety
/// As for [`block::declare`].
#[unsafe(no_mangle)]
unsafe extern "C" fn sconce_declare(name: *const c_char, variable: *mut c_void, len: usize) {
    // SAFETY: the caller's promise.
    unsafe { block::declare(name, variable, len) };
}

#[unsafe(no_mangle)]
extern "C" fn sconce_dynamic() -> *mut c_void {
    block::dynamic()
}

#[unsafe(no_mangle)]
extern "C" fn sconce_dynamic_len() -> usize {
    block::dynamic_len()
}

#[unsafe(no_mangle)]
extern "C" fn sconce_pending(change: i32) {
    block::pending(change);
}

/// # Safety
/// `what` is a string literal.
#[unsafe(no_mangle)]
unsafe extern "C" fn sconce_fail(what: *const c_char) -> ! {
    // SAFETY: the caller's promise.
    let what = unsafe { CStr::from_ptr(what) };
    block::fail(what.to_string_lossy().into_owned())
}
