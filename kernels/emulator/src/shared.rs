//! Shared memory of a block: what it holds before it is written, and guards on both sides of it that
//! nothing may touch. Without the sanitizer, a write to a guard is found when its block has ended.

use std::ffi::{CStr, c_char, c_void};

/// Bytes before and after each variable (`include/emulator.h` has the same).
const GUARD: usize = 256;
/// What shared memory holds before it is written: NaN in every type of numbers.
const POISON: u8 = 0xff;

/// The shared memory of the block that runs.
pub(crate) struct Shared {
    /// Variables that this block has passed the declarations of.
    declared: Vec<Variable>,
    /// Dynamic shared memory between its guards, aligned as on the device.
    #[expect(dead_code, reason = "`dynamic` points into it")]
    lines: Vec<Line>,
    dynamic: Variable,
}

#[derive(Clone, Copy)]
#[repr(align(128))]
struct Line(#[expect(dead_code, reason = "read as bytes")] [u8; 128]);

#[derive(Clone, Copy)]
struct Variable {
    /// A string literal; null for dynamic shared memory.
    name: *const c_char,
    start: *mut u8,
    len: usize,
}

impl Shared {
    /// Shared memory with `dynamic` bytes that no declaration gives.
    pub(crate) fn new(dynamic: usize) -> Self {
        let line = size_of::<Line>();
        let mut lines = vec![Line([POISON; 128]); (dynamic + 2 * GUARD).div_ceil(line)];
        let start = lines.as_mut_ptr().cast::<u8>().wrapping_add(GUARD);
        let dynamic = Variable { name: std::ptr::null(), start, len: dynamic };
        Self { declared: Vec::new(), lines, dynamic }
    }

    /// Makes it that of a block which has not run yet.
    pub(crate) fn clear(&mut self) {
        self.declared.clear();
        // SAFETY: the variable and its guards lie in `lines`.
        unsafe { self.dynamic.clear() };
    }

    /// Fills a variable when the first thread of a block passes its declaration; gives the bytes
    /// that have been declared so far then.
    ///
    /// # Safety
    /// `name` is a string literal; `start` has `len` bytes, and guards before and after them.
    pub(crate) unsafe fn declare(
        &mut self,
        name: *const c_char,
        start: *mut c_void,
        len: usize,
    ) -> Option<usize> {
        let variable = Variable { name, start: start.cast(), len };
        if self.declared.iter().any(|other| other.start == variable.start) {
            return None;
        }
        self.declared.push(variable);
        // SAFETY: the caller's promise.
        unsafe { variable.clear() };
        Some(self.declared.iter().map(|variable| variable.len).sum())
    }

    /// Where dynamic shared memory starts.
    pub(crate) fn dynamic(&mut self) -> *mut c_void {
        self.dynamic.start.cast()
    }

    /// Bytes of dynamic shared memory.
    pub(crate) fn dynamic_len(&self) -> usize {
        self.dynamic.len
    }

    /// Says which variable the block wrote next to.
    pub(crate) fn check(&self) -> Result<(), String> {
        // SAFETY: variables were declared with their guards.
        let touched = |variable: &&Variable| unsafe { variable.touched() };
        match self.declared.iter().chain([&self.dynamic]).find(touched) {
            Some(variable) => Err(format!(
                "it wrote outside of the {} bytes of {}",
                variable.len,
                variable.name()
            )),
            None => Ok(()),
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the guards lie in `lines`, which are given back to the allocator.
        unsafe { self.dynamic.unguard() };
    }
}

impl Variable {
    fn name(&self) -> String {
        if self.name.is_null() {
            return "dynamic shared memory".to_owned();
        }
        // SAFETY: names are string literals.
        unsafe { CStr::from_ptr(self.name) }.to_string_lossy().into_owned()
    }

    fn guards(&self) -> [*mut u8; 2] {
        [self.start.wrapping_sub(GUARD), self.start.wrapping_add(self.len)]
    }

    /// # Safety
    /// The variable has guards, as have those of the functions below.
    unsafe fn clear(&self) {
        // SAFETY: the caller's promise.
        unsafe {
            self.start.write_bytes(POISON, self.len);
            for guard in self.guards() {
                #[cfg(feature = "asan")]
                asan::poison(guard.cast(), GUARD);
                #[cfg(not(feature = "asan"))]
                guard.write_bytes(POISON, GUARD);
            }
        }
    }

    #[cfg(not(feature = "asan"))]
    unsafe fn touched(&self) -> bool {
        // SAFETY: the caller's promise; no thread runs.
        let bytes = |guard| unsafe { std::slice::from_raw_parts(guard, GUARD) };
        self.guards().into_iter().any(|guard| bytes(guard) != [POISON; GUARD])
    }

    /// The sanitizer has stopped a kernel at its first access to a guard.
    #[cfg(feature = "asan")]
    unsafe fn touched(&self) -> bool {
        false
    }

    unsafe fn unguard(&self) {
        #[cfg(feature = "asan")]
        for guard in self.guards() {
            // SAFETY: the caller's promise.
            unsafe { asan::unpoison(guard.cast(), GUARD) };
        }
    }
}

#[cfg(feature = "asan")]
mod asan {
    use std::ffi::c_void;

    unsafe extern "C" {
        #[link_name = "__asan_poison_memory_region"]
        pub(super) fn poison(start: *const c_void, len: usize);
        #[link_name = "__asan_unpoison_memory_region"]
        pub(super) fn unpoison(start: *const c_void, len: usize);
    }
}
