//! The kernels that were found in the sources and compiled.

use std::ffi::{CStr, c_char, c_void};

use crate::Language;

/// One kernel, as the table that `build.rs` generates has it.
#[repr(C)]
pub(crate) struct Kernel {
    name: *const c_char,
    /// Calls it as the current thread.
    call: unsafe extern "C" fn(*const *const c_void),
    arguments: u32,
    threads_max: u32,
}

// SAFETY: tables are constants.
unsafe impl Sync for Kernel {}

impl Kernel {
    pub(crate) fn name(&self) -> &str {
        // SAFETY: names in tables are string literals.
        let name = unsafe { CStr::from_ptr(self.name) };
        name.to_str().unwrap_or("a name that is not UTF-8")
    }

    /// Number of its parameters; in Metal of its buffers.
    pub(crate) fn arguments(&self) -> usize {
        self.arguments as usize
    }

    /// Most threads of a block that its source allows.
    pub(crate) fn threads_max(&self) -> usize {
        self.threads_max as usize
    }

    /// Runs it as the current thread.
    ///
    /// # Safety
    /// Runs on the fiber of the current thread; arguments are as [`crate::launch`] asks for.
    pub(crate) unsafe fn call(&self, arguments: *const *const c_void) {
        // SAFETY: the caller's promise.
        unsafe { (self.call)(arguments) };
    }
}

/// All kernels of a language.
pub(crate) fn all(language: Language) -> &'static [Kernel] {
    #[repr(C)]
    struct Table {
        kernels: *const Kernel,
        count: usize,
    }
    unsafe extern "C" {
        fn sconce_cuda_kernels() -> Table;
        fn sconce_metal_kernels() -> Table;
    }
    // SAFETY: tables are arrays of constants of that many elements.
    unsafe {
        let Table { kernels, count } = match language {
            Language::Cuda => sconce_cuda_kernels(),
            Language::Metal => sconce_metal_kernels(),
        };
        std::slice::from_raw_parts(kernels, count)
    }
}
