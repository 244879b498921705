//! Stacks of emulated threads, and how to go from one to another. x86-64, System V calls only.

use std::arch::naked_asm;
use std::cell::RefCell;

/// Bytes of the stack of one emulated thread.
const STACK: usize = 256 * 1024;

thread_local! {
    /// Stacks of launches before, at most as many as a block has threads: to map them anew costs the
    /// system more than all switches between them.
    static SPARE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A suspended flow of control with a stack of its own.
pub(crate) struct Fiber {
    stack: Box<[u8]>,
    /// Where its registers were pushed when it was left.
    sp: *mut u8,
    #[cfg(feature = "asan")]
    fake_stack: *mut std::ffi::c_void,
}

/// Where [`Fiber::enter`] was called from, so that the fiber can go back there.
pub(crate) struct Home {
    sp: *mut u8,
    #[cfg(feature = "asan")]
    stack: (*const std::ffi::c_void, usize),
}

impl Fiber {
    /// A fiber that has not been prepared yet.
    pub(crate) fn new() -> Self {
        let spare = SPARE.with_borrow_mut(Vec::pop);
        Self {
            stack: spare.unwrap_or_else(|| vec![0; STACK].into_boxed_slice()),
            sp: std::ptr::null_mut(),
            #[cfg(feature = "asan")]
            fake_stack: std::ptr::null_mut(),
        }
    }

    /// Keeps the stack for another fiber, now that this one has come to its end.
    pub(crate) fn finish(self) {
        SPARE.with_borrow_mut(|spare| spare.push(self.stack));
    }

    /// Makes the next [`enter`](Self::enter) call `entry`, which must never return.
    pub(crate) fn prepare(&mut self, entry: extern "C" fn() -> !) {
        let top = self.stack.as_mut_ptr_range().end;
        let top = top.wrapping_sub(top as usize % 16);
        // The words that `switch` pops: six registers, then the address that it returns to. Above
        // it a word, so that `entry` finds the stack aligned as after a call.
        let sp = top.wrapping_sub(8 * 8);
        for word in 0..8 {
            let value = if word == 6 { entry as usize } else { 0 };
            // SAFETY: the words lie in the upper end of the stack, which is much larger.
            unsafe { sp.cast::<usize>().add(word).write_unaligned(value) };
        }
        self.sp = sp;
    }

    /// Runs the fiber until it [`leave`](Self::leave)s.
    ///
    /// # Safety
    /// The fiber was prepared or has left; `home` is what it will leave to.
    pub(crate) unsafe fn enter(fiber: *mut Self, home: *mut Home) {
        // SAFETY: the caller's promise; nothing else refers to the fiber or the home meanwhile.
        unsafe {
            #[cfg(feature = "asan")]
            let mut fake_stack = std::ptr::null_mut();
            #[cfg(feature = "asan")]
            asan::start(&mut fake_stack, (*fiber).stack.as_ptr().cast(), STACK);
            switch(&raw mut (*home).sp, (*fiber).sp);
            #[cfg(feature = "asan")]
            asan::finish(fake_stack, std::ptr::null_mut(), std::ptr::null_mut());
        }
    }

    /// To be called first on a new fiber.
    ///
    /// # Safety
    /// Runs on the fiber that `home` entered.
    pub(crate) unsafe fn begin(home: *mut Home) {
        #[cfg(feature = "asan")]
        // SAFETY: the caller's promise.
        unsafe {
            asan::finish(std::ptr::null_mut(), &mut (*home).stack.0, &mut (*home).stack.1);
        }
        let _ = home;
    }

    /// Goes back to where the fiber was entered; returns when it is entered again.
    ///
    /// # Safety
    /// Runs on `fiber`, which `home` entered.
    pub(crate) unsafe fn leave(fiber: *mut Self, home: *mut Home) {
        // SAFETY: the caller's promise.
        unsafe {
            #[cfg(feature = "asan")]
            asan::start(&mut (*fiber).fake_stack, (*home).stack.0, (*home).stack.1);
            switch(&raw mut (*fiber).sp, (*home).sp);
            #[cfg(feature = "asan")]
            asan::finish((*fiber).fake_stack, &mut (*home).stack.0, &mut (*home).stack.1);
        }
    }
}

impl Home {
    pub(crate) const fn new() -> Self {
        Self {
            sp: std::ptr::null_mut(),
            #[cfg(feature = "asan")]
            stack: (std::ptr::null(), 0),
        }
    }
}

/// Pushes what a call must keep, notes the stack pointer in `save`, and goes on at `load`.
///
/// # Safety
/// `load` was noted by this function, or made by [`Fiber::prepare`].
#[unsafe(naked)]
unsafe extern "C" fn switch(save: *mut *mut u8, load: *mut u8) {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rdi], rsp",
        "mov rsp, rsi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
    )
}

/// AddressSanitizer must be told of stacks that are not the thread's.
#[cfg(feature = "asan")]
mod asan {
    use std::ffi::c_void;

    unsafe extern "C" {
        #[link_name = "__sanitizer_start_switch_fiber"]
        pub(super) fn start(save: *mut *mut c_void, bottom: *const c_void, size: usize);
        #[link_name = "__sanitizer_finish_switch_fiber"]
        pub(super) fn finish(saved: *mut c_void, bottom: *mut *const c_void, size: *mut usize);
    }
}
