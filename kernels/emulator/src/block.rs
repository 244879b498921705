//! Runs the blocks of a launch one after another, and the threads of a block in turns.

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_void};
use std::ptr;

use crate::fiber::{Fiber, Home};
use crate::kernels::Kernel;
use crate::shared::Shared;
use crate::{Error, Grid, Language, WARP};

/// Largest value that a warp's operation exchanges, in bytes.
pub(crate) const VALUE_MAX: usize = 64;

/// Where a thread is, as kernels read it (`include/emulator.h` has the same).
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    thread: u32,
    threads: u32,
    block: [u32; 3],
    blocks: [u32; 3],
    /// Barriers of the whole block that it has passed.
    barriers: u32,
    /// Another number for every block of every launch.
    run: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ready,
    /// Waits for the whole block.
    Barrier,
    /// Waits for the threads of its warp that are in the mask.
    Warp {
        operation: *const c_char,
        mask: u32,
    },
    Done,
}

struct Thread {
    fiber: Fiber,
    state: State,
    value: [u8; VALUE_MAX],
    /// What it started and has not waited for: copies, products.
    pending: i32,
}

/// What the threads of a warp gave to their last operation.
#[repr(C)]
pub(crate) struct Exchange {
    active: u32,
    values: [[u8; VALUE_MAX]; WARP],
}

/// A block that runs.
pub(crate) struct Block<'a> {
    language: Language,
    kernel: &'a Kernel,
    arguments: *const *const c_void,
    place: Place,
    threads: Vec<Thread>,
    warps: Vec<Exchange>,
    shared: Shared,
    failure: Option<String>,
    home: Home,
    random: u64,
}

thread_local! {
    static CURRENT: Cell<*mut Block<'static>> = const { Cell::new(ptr::null_mut()) };
}

impl<'a> Block<'a> {
    /// Runs all blocks of a launch in a shuffled order.
    ///
    /// # Safety
    /// As for [`crate::launch`]; only one launch runs at a time.
    pub(crate) unsafe fn run_all(
        language: Language,
        kernel: &'a Kernel,
        grid: Grid,
        arguments: &[*const c_void],
        seed: u64,
    ) -> Result<(), Error> {
        let count = grid.threads as usize;
        let thread = |_| Thread {
            fiber: Fiber::new(),
            state: State::Done,
            value: [0; VALUE_MAX],
            pending: 0,
        };
        let warp = |_| Exchange { active: 0, values: [[0; VALUE_MAX]; WARP] };
        let mut block = Self {
            language,
            kernel,
            arguments: arguments.as_ptr(),
            place: Place {
                thread: 0,
                threads: grid.threads,
                block: [0; 3],
                blocks: grid.blocks,
                barriers: 0,
                run: seed << 32,
            },
            threads: (0..count).map(thread).collect(),
            warps: (0..count.div_ceil(WARP)).map(warp).collect(),
            shared: Shared::new(grid.shared),
            failure: None,
            home: Home::new(),
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        };
        let blocks: u64 = grid.blocks.iter().map(|count| u64::from(*count)).product();
        let (mut order, mut threads) = (Vec::from_iter(0..blocks), Vec::from_iter(0..count));
        block.shuffle(&mut order);
        for index in order {
            let (x, y) = (u64::from(grid.blocks[0]), u64::from(grid.blocks[1]));
            block.place.block = [index % x, index / x % y, index / x / y].map(|axis| axis as u32);
            // SAFETY: the caller's promise.
            if let Err(what) = unsafe { block.run(&mut threads) } {
                let kernel = kernel.name().to_owned();
                return Err(Error::Kernel { kernel, block: block.place.block, what });
            }
        }
        block.threads.into_iter().for_each(|thread| thread.fiber.finish());
        Ok(())
    }

    /// Runs the block at `self.place`; `order` is one of its threads.
    unsafe fn run(&mut self, order: &mut [usize]) -> Result<(), String> {
        self.shared.clear();
        self.place.barriers = 0;
        self.place.run += 1;
        for thread in &mut self.threads {
            thread.fiber.prepare(thread_main);
            thread.state = State::Ready;
            thread.pending = 0;
        }
        loop {
            self.shuffle(order);
            // Half of the warps, others each time: none may count on another keeping pace.
            let warps = self.number();
            let has_turn = |index: usize| warps >> (index / WARP) & 1 == 1;
            for index in order.iter() {
                if self.threads[*index].state == State::Ready && has_turn(*index) {
                    // SAFETY: the fiber was prepared or waits.
                    unsafe { self.resume(*index) };
                }
                if let Some(failure) = self.failure.take() {
                    return Err(failure);
                }
            }
            let mut went_on = false;
            for warp in 0..self.warps.len() {
                went_on |= self.meet(warp)?;
            }
            if went_on || self.threads.iter().any(|thread| thread.state == State::Ready) {
                continue;
            }
            let count = |state| self.threads.iter().filter(|thread| thread.state == state).count();
            let (waiting, done) = (count(State::Barrier), count(State::Done));
            if done == self.threads.len() {
                return self.shared.check();
            }
            // Threads that returned count as arrived in CUDA, since Volta.
            let complete = waiting + done == self.threads.len();
            if !complete || self.language == Language::Metal && done > 0 {
                return Err(self.stuck(waiting, done));
            }
            self.place.barriers += 1;
            for thread in &mut self.threads {
                if thread.state == State::Barrier {
                    thread.state = State::Ready;
                }
            }
        }
    }

    /// Lets threads of a warp go on that wait for one another and are all there.
    fn meet(&mut self, warp: usize) -> Result<bool, String> {
        let end = self.threads.len().min((warp + 1) * WARP);
        let threads = &mut self.threads[warp * WARP..end];
        // They have not read yet what they gave one another.
        if threads.iter().any(|thread| thread.state == State::Ready) {
            return Ok(false);
        }
        let exists = u32::MAX >> (WARP - threads.len());
        let mut went_on = false;
        for lane in 0..threads.len() {
            let State::Warp { operation, mask } = threads[lane].state else { continue };
            let same = |thread: &Thread| match (self.language, thread.state) {
                (Language::Cuda, state) => state == threads[lane].state,
                (Language::Metal, State::Warp { operation: other, .. }) => other == operation,
                (Language::Metal, _) => false,
            };
            let there: u32 =
                (0..threads.len()).filter(|other| same(&threads[*other])).map(|i| 1 << i).sum();
            match self.language {
                Language::Cuda if there != mask & exists => continue,
                Language::Metal
                    if threads.iter().any(|thread| {
                        matches!(thread.state, State::Warp { .. }) && !same(thread)
                    }) =>
                {
                    return Err("threads of a simdgroup wait in different operations".to_owned());
                }
                _ => {}
            }
            self.warps[warp].active = there;
            for (lane, thread) in threads.iter_mut().enumerate() {
                if there >> lane & 1 == 1 {
                    self.warps[warp].values[lane] = thread.value;
                    thread.state = State::Ready;
                }
            }
            went_on = true;
            // Groups that meet in the same turn would share what was exchanged.
            break;
        }
        Ok(went_on)
    }

    /// What the threads do that will never go on.
    fn stuck(&self, waiting: usize, done: usize) -> String {
        let lost =
            self.threads.iter().position(|thread| matches!(thread.state, State::Warp { .. }));
        match lost.map(|index| (index, self.threads[index].state)) {
            Some((index, State::Warp { operation, mask })) => {
                // SAFETY: operations are string literals.
                let operation = unsafe { CStr::from_ptr(operation) }.to_string_lossy();
                format!(
                    "thread {index} waits in {operation} for lanes {mask:#010x}, which will not \
                     come"
                )
            }
            _ => format!("{waiting} threads wait in a barrier, {done} have returned"),
        }
    }

    unsafe fn resume(&mut self, index: usize) {
        self.place.thread = index as u32;
        let block: *mut Self = self;
        CURRENT.set(block.cast());
        // SAFETY: fibers reach the block through `CURRENT` only while this call runs.
        unsafe {
            sconce_place = &raw const (*block).place;
            let fiber = &raw mut (*thread_of(block.cast(), index)).fiber;
            Fiber::enter(fiber, &raw mut (*block).home);
        }
        CURRENT.set(ptr::null_mut());
    }

    /// Puts `items` into another order.
    fn shuffle<T>(&mut self, items: &mut [T]) {
        for end in (1..items.len()).rev() {
            let other = self.number() as usize % (end + 1);
            items.swap(end, other);
        }
    }

    /// The next random number (xorshift64*).
    fn number(&mut self) -> u32 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }
}

/// Where the current thread is; kernels read it through this pointer.
#[unsafe(no_mangle)]
static mut sconce_place: *const Place = ptr::null();

extern "C" fn thread_main() -> ! {
    let block = CURRENT.get();
    // SAFETY: runs on the fiber of the current thread of the current block.
    unsafe {
        Fiber::begin(&raw mut (*block).home);
        (*block).kernel.call((*block).arguments);
        let index = (*block).place.thread as usize;
        let pending = (*thread_of(block, index)).pending;
        if pending != 0 {
            fail(format!(
                "thread {index} ended before {pending} copies or products it had started"
            ));
        }
    }
    loop {
        wait(State::Done);
    }
}

/// A thread of a block, without a reference to the others.
///
/// # Safety
/// The block lives, nothing borrows it, and it has this thread.
unsafe fn thread_of(block: *mut Block<'static>, index: usize) -> *mut Thread {
    // SAFETY: the caller's promise.
    unsafe {
        let threads = &raw mut (*block).threads;
        (&mut *threads).as_mut_ptr().add(index)
    }
}

/// Leaves the current thread until its state is ready again.
fn wait(state: State) {
    let block = CURRENT.get();
    // SAFETY: called by kernels, which run on the fiber of the block's current thread.
    unsafe {
        let thread = thread_of(block, (*block).place.thread as usize);
        (*thread).state = state;
        Fiber::leave(&raw mut (*thread).fiber, &raw mut (*block).home);
    }
}

/// Waits for all threads of the block.
pub(crate) fn barrier() {
    wait(State::Barrier);
}

/// Gives `value` to the lanes of `mask` in the current thread's warp, and waits for theirs.
///
/// # Safety
/// `operation` is a string literal; `value` has `len` bytes.
pub(crate) unsafe fn exchange(
    operation: *const c_char,
    mask: u32,
    value: *const c_void,
    len: usize,
) -> *const Exchange {
    let block = CURRENT.get();
    // SAFETY: as in `wait`; the caller's promise.
    unsafe {
        let index = (*block).place.thread as usize;
        if mask >> (index % WARP) & 1 == 0 {
            fail(format!("thread {index} is not in the mask {mask:#010x} that it waits for"));
        }
        if len > VALUE_MAX {
            fail(format!("a warp exchanges values of {len} bytes, at most {VALUE_MAX} are meant"));
        }
        let slot = (&raw mut (*thread_of(block, index)).value).cast::<u8>();
        ptr::copy_nonoverlapping(value.cast::<u8>(), slot, len);
        wait(State::Warp { operation, mask });
        let warps = &raw const (*block).warps;
        (&*warps).as_ptr().add(index / WARP)
    }
}

/// Fills a shared variable when the first thread of a block passes its declaration.
///
/// # Safety
/// As for [`Shared::declare`].
pub(crate) unsafe fn declare(name: *const c_char, variable: *mut c_void, len: usize) {
    let block = CURRENT.get();
    // SAFETY: as in `wait`; the caller's promise.
    unsafe {
        let Some(bytes) = (*block).shared.declare(name, variable, len) else { return };
        let (language, dynamic) = ((*block).language, (*block).shared.dynamic_len());
        if bytes > language.declared_max() || bytes + dynamic > language.shared_max() {
            fail(format!("{bytes} bytes of shared memory declared, {dynamic} asked for"));
        }
    }
}

/// The block's dynamic shared memory.
pub(crate) fn dynamic() -> *mut c_void {
    let block = CURRENT.get();
    // SAFETY: as in `wait`.
    unsafe { (*block).shared.dynamic() }
}

/// Bytes of it.
pub(crate) fn dynamic_len() -> usize {
    let block = CURRENT.get();
    // SAFETY: as in `wait`.
    unsafe { (*block).shared.dynamic_len() }
}

/// Counts what the current thread has started (more than zero) or waited for (less).
pub(crate) fn pending(change: i32) {
    let block = CURRENT.get();
    // SAFETY: as in `wait`.
    unsafe { (*thread_of(block, (*block).place.thread as usize)).pending += change };
}

/// Ends the launch with an error; the current thread does not go on.
pub(crate) fn fail(what: String) -> ! {
    let block = CURRENT.get();
    // SAFETY: as in `wait`.
    unsafe { (*block).failure.get_or_insert(what) };
    loop {
        wait(State::Done);
    }
}
