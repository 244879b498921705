//! Runs the CUDA and Metal kernels of `kernels/src` on the CPU, for tests on machines without a GPU.
//!
//! Every thread of a block is a fiber, which runs until it waits in a barrier or in an operation of
//! its warp. The order in which fibers and blocks run is shuffled anew for each launch, so that a
//! missing barrier shows as a wrong result; shared memory starts as NaN, with guards at both ends of
//! each variable; a barrier or a warp's operation that not all threads reach, where a GPU would hang,
//! is an error. What runs is the source as a C++ compiler sees it (`build.rs`, `include/`): no time is
//! measured and no weak memory order is seen.
//!
//! Feature `asan` compiles the kernels for AddressSanitizer and UndefinedBehaviorSanitizer, which end
//! the process at reads and writes outside of tensors and of shared memory, at vector loads from
//! addresses that are no multiple of their size, and at shifts by too much.

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("the emulator switches stacks by instructions of x86-64 and aarch64");

mod block;
mod exports;
mod fiber;
mod kernels;
mod launched;
mod shared;

use std::sync::Mutex;

use block::Block;
pub use launched::{LAUNCHED_VARIABLE, never_launched};

/// Threads of a warp (Metal: simdgroup).
pub const WARP: usize = 32;
/// Most threads of a block (Metal: threadgroup) on the GPUs that the kernels are for.
pub const THREADS_MAX: usize = 1024;
/// What a kernel is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Language {
    /// CUDA C++, `.cu`.
    Cuda,
    /// Metal Shading Language, `.metal`.
    Metal,
}

impl Language {
    /// Bytes of shared (Metal: threadgroup) memory that a block may have: those of an H100 and of
    /// an M1.
    pub fn shared_max(self) -> usize {
        match self {
            Self::Cuda => 227 * 1024,
            Self::Metal => 32 * 1024,
        }
    }

    /// Bytes of it that a kernel may declare, without asking for them when it is launched.
    fn declared_max(self) -> usize {
        match self {
            Self::Cuda => 48 * 1024,
            Self::Metal => 32 * 1024,
        }
    }
}

/// How many threads run a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Grid {
    /// Blocks (Metal: threadgroups).
    pub blocks: [u32; 3],
    /// Threads of each.
    pub threads: u32,
    /// Bytes of dynamic shared memory of each.
    pub shared: usize,
}

/// Why a launch failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No source has a kernel of this name.
    #[error("no {language:?} kernel is called {name}")]
    NoKernel {
        /// Language that was asked for.
        language: Language,
        /// Name that was asked for.
        name: String,
    },
    /// What a GPU would refuse to start.
    #[error("{kernel}: cannot be started: {what}")]
    Launch {
        /// Name of the kernel.
        kernel: String,
        /// What is wrong with the grid or the arguments.
        what: String,
    },
    /// What a GPU would hang on, or do something undefined for.
    #[error("{kernel}: block {block:?}: {what}")]
    Kernel {
        /// Name of the kernel.
        kernel: String,
        /// The block that failed.
        block: [u32; 3],
        /// What its threads did.
        what: String,
    },
}

/// Names of all kernels of a language.
pub fn names(language: Language) -> Vec<String> {
    kernels::all(language).iter().map(|kernel| kernel.name().to_owned()).collect()
}

/// Runs a kernel to its end.
///
/// `arguments` are pointers to the values of the kernel's parameters, in their order; in Metal to
/// those of its buffers, by their index.
///
/// # Errors
/// A kernel that does not exist, a grid that a GPU would not start, another number of arguments than
/// the kernel takes, threads that do not meet where they must.
///
/// # Safety
/// Each argument points to a value of the type of its parameter, and what these point to is as large
/// as the kernel takes it to be and is not used meanwhile.
pub unsafe fn launch(
    language: Language,
    name: &str,
    grid: Grid,
    arguments: &[*const std::ffi::c_void],
) -> Result<(), Error> {
    // Kernels keep their shared memory in statics, as those of the devices may be declared anywhere.
    static RUNNING: Mutex<u64> = Mutex::new(0);
    let kernel = kernels::all(language).iter().find(|kernel| kernel.name() == name);
    let kernel = kernel.ok_or_else(|| Error::NoKernel { language, name: name.to_owned() })?;
    let refuse = |what| Error::Launch { kernel: name.to_owned(), what };
    let threads = grid.threads as usize;
    let threads_max = kernel.threads_max().min(THREADS_MAX);
    if grid.blocks.contains(&0) || threads == 0 || threads > threads_max {
        return Err(refuse(format!("{grid:?}; at most {threads_max} threads, none of it zero")));
    }
    if language == Language::Metal && !threads.is_multiple_of(WARP) {
        return Err(refuse(format!("{threads} threads are no whole simdgroups")));
    }
    if grid.blocks[1] > 65_535 || grid.blocks[2] > 65_535 {
        return Err(refuse(format!("{:?} blocks; y and z at most 65535", grid.blocks)));
    }
    if grid.shared > language.shared_max() {
        let limit = language.shared_max();
        return Err(refuse(format!("{} bytes of shared memory; at most {limit}", grid.shared)));
    }
    if kernel.arguments() != arguments.len() {
        let (takes, found) = (kernel.arguments(), arguments.len());
        return Err(refuse(format!("{found} arguments, it takes {takes}")));
    }
    let mut launches = RUNNING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    *launches += 1;
    // SAFETY: the caller's promise; the lock is held.
    unsafe { Block::run_all(language, kernel, grid, arguments, *launches) }?;
    launched::note(language, kernel.name())
        .map_err(|error| refuse(format!("{LAUNCHED_VARIABLE}: {error}")))
}
