//! The system's allocator with what all threads ask of it counted, for tests of what a step costs. A
//! test that uses it has the process to itself: one test function for each file.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

static COUNT: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);
/// Whether the next allocation is to be remembered.
static WATCHING: AtomicBool = AtomicBool::new(false);
static SEEN: Mutex<Option<Backtrace>> = Mutex::new(None);

thread_local! {
    /// Set while this thread takes a backtrace, which allocates.
    static LOOKING: Cell<bool> = const { Cell::new(false) };
}

struct Counting;

impl Counting {
    fn note(size: usize) {
        if LOOKING.get() {
            return;
        }
        COUNT.fetch_add(1, Ordering::Relaxed);
        BYTES.fetch_add(size, Ordering::Relaxed);
        if WATCHING.swap(false, Ordering::Relaxed) {
            LOOKING.set(true);
            *SEEN.lock().unwrap() = Some(Backtrace::force_capture());
            LOOKING.set(false);
        }
    }
}

// SAFETY: every call goes to the system allocator with the same arguments; counting touches no
// memory of the caller.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::note(layout.size());
        // SAFETY: the caller keeps the contract of `alloc`, which is the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::note(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Self::note(size);
        // SAFETY: `pointer` came from the system, with this layout.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What was asked of the allocator, growth included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Allocations {
    pub(crate) count: usize,
    pub(crate) bytes: usize,
}

/// What all threads have asked for so far.
pub(crate) fn so_far() -> Allocations {
    Allocations { count: COUNT.load(Ordering::Relaxed), bytes: BYTES.load(Ordering::Relaxed) }
}

impl Allocations {
    /// What was asked for since `earlier`.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self { count: self.count - earlier.count, bytes: self.bytes - earlier.bytes }
    }
}

/// What all threads ask for while `body` runs.
pub(crate) fn counted<R>(body: impl FnOnce() -> R) -> (R, Allocations) {
    let before = so_far();
    let result = body();
    (result, so_far().since(before))
}

/// Has where the next allocation comes from remembered, for [`first`].
pub(crate) fn watch() {
    WATCHING.store(true, Ordering::Relaxed);
}

/// Where the first allocation since [`watch`] came from, for the message of a failed test.
pub(crate) fn first() -> String {
    WATCHING.store(false, Ordering::Relaxed);
    let seen = SEEN.lock().unwrap().take();
    seen.map_or_else(|| "nowhere".to_string(), |backtrace| backtrace.to_string())
}
