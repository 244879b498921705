//! How operators run on GPUs: which one an operand is on, and calls of its kernels. An operator's
//! `gpu.rs` says which kernel runs on which grid with which arguments, in the same words for every
//! GPU and for the emulator, which runs the same sources on the CPU.

#[cfg(any(feature = "cuda", test))]
mod arena;
mod call;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
mod describe;
mod device;
#[cfg(feature = "emulate")]
mod emulated;
mod host;
#[cfg(feature = "metal")]
pub(crate) mod metal;
#[cfg(any(feature = "cuda", test))]
mod replays;
mod scratch;
mod step;
mod switch;
#[cfg(any(feature = "cuda", feature = "metal"))]
mod wait;
mod wgmma;

use candle_core::{Device, DeviceLocation, Storage, Tensor};

pub(crate) use self::call::{Call, Grid, WARP, in_fours, threads_for};
pub use self::describe::GpuDescription;
pub use self::device::{DeviceChoice, DeviceError};
#[cfg(feature = "emulate")]
pub use self::emulated::{emulate, emulate_by_default, emulate_nothing};
pub use self::host::HostBuffer;
pub(crate) use self::scratch::{counters, scratch};
pub use self::step::step;
use self::step::{Argument, Recording};
#[cfg(feature = "emulate")]
pub use self::step::{RecordedStep, last_step};
pub use self::wgmma::{WGMMA_VARIABLE, has_wgmma, with_wgmma};
use crate::access::{Element, location};
use crate::entries::Copies;
use crate::error::Error;

/// What kernels are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Language {
    /// CUDA C++.
    Cuda,
    /// Metal Shading Language.
    Metal,
}

/// A GPU that runs kernels. There is none in a build without features for one.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Gpu {
    /// One of NVIDIA's.
    #[cfg(feature = "cuda")]
    Cuda(cuda::Cuda),
    /// One of Apple's.
    #[cfg(feature = "metal")]
    Metal(metal::Metal),
    /// Emulated, on tensors of the CPU.
    #[cfg(feature = "emulate")]
    Emulated(Language),
}

/// Whether operators on a device run on a GPU.
pub fn is_gpu(device: &Device) -> bool {
    Gpu::of_device(device).is_some()
}

impl Gpu {
    /// The GPU that operators on a tensor run on; none for the CPU.
    pub(crate) fn of(tensor: &Tensor) -> Option<Self> {
        Self::of_device(tensor.device())
    }

    /// The GPU that a device is; none for the CPU.
    pub(crate) fn of_device(device: &Device) -> Option<Self> {
        #[cfg(feature = "emulate")]
        if device.is_cpu() {
            return emulated::language().map(Self::Emulated);
        }
        #[cfg(feature = "cuda")]
        if let Device::Cuda(device) = device {
            return Some(Self::Cuda(cuda::Cuda::of(device)));
        }
        #[cfg(feature = "metal")]
        if let Device::Metal(device) = device {
            return Some(Self::Metal(metal::Metal::of(device)));
        }
        let _ = device;
        None
    }

    /// What its kernels are written in.
    pub(crate) fn language(self) -> Language {
        match self {
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => Language::Cuda,
            #[cfg(feature = "metal")]
            Self::Metal(_) => Language::Metal,
            #[cfg(feature = "emulate")]
            Self::Emulated(language) => language,
        }
    }

    /// What its kernels are given for the elements of a storage from `start` on, which they may
    /// write or not; none if they are of another type.
    ///
    /// # Errors
    /// Where the storage is, if not on this GPU.
    fn operand<T: Element>(
        self,
        storage: &Storage,
        start: usize,
        written: bool,
    ) -> Result<Option<Argument>, DeviceLocation> {
        let _ = (start, written);
        match (self, storage) {
            #[cfg(feature = "cuda")]
            (Self::Cuda(gpu), Storage::Cuda(storage)) if gpu.has(storage) => {
                let bytes = (start * size_of::<T>()) as u64;
                Ok(cuda::start_of(storage, T::DTYPE).map(|all| Argument::Address(all + bytes)))
            }
            #[cfg(feature = "metal")]
            (Self::Metal(gpu), Storage::Metal(storage)) if gpu.has(storage) => {
                Ok(metal::place_of(storage, T::DTYPE, start, written).map(Argument::Buffer))
            }
            #[cfg(feature = "emulate")]
            (Self::Emulated(_), Storage::Cpu(storage)) => {
                let bytes = start * size_of::<T>();
                Ok(T::of(storage)
                    .map(|all| Argument::Address((all.as_ptr().addr() + bytes) as u64)))
            }
            (_, other) => Err(location(other)),
        }
    }

    /// Copies a list to where its kernels can read it, outside of steps.
    ///
    /// # Errors
    /// What the driver says.
    fn list(self, words: &[u32]) -> Result<List, String> {
        let _ = words;
        match self {
            #[cfg(feature = "cuda")]
            Self::Cuda(gpu) => gpu.upload(words).map(List::Cuda),
            #[cfg(feature = "metal")]
            Self::Metal(gpu) => gpu.upload(words).map(List::Metal),
            #[cfg(feature = "emulate")]
            Self::Emulated(_) => Ok(List::Emulated(words.into())),
        }
    }

    /// Hands its copies between memories to `body`, and waits for them.
    ///
    /// # Errors
    /// Those of `body`; what the driver says.
    pub(crate) fn copying(
        self,
        op: &'static str,
        body: impl FnOnce(&mut dyn Copies) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let finish = |copies: &mut dyn Copies| {
            let result = body(copies);
            // In any case: copies that were started write to what the caller lends.
            let finished = copies.finish().map_err(|what| Error::Device { op, what });
            result.and(finished)
        };
        let _ = &finish;
        match self {
            #[cfg(feature = "cuda")]
            Self::Cuda(gpu) => gpu.copying(op, finish),
            #[cfg(feature = "metal")]
            Self::Metal(gpu) => finish(&mut gpu.copies()),
            #[cfg(feature = "emulate")]
            Self::Emulated(_) => finish(&mut emulated::AtOnce),
        }
    }

    /// Whether the host may touch the memory of all these tensors.
    pub(crate) fn is_open_to_host(self, tensors: &[&Tensor]) -> bool {
        let _ = tensors;
        match self {
            #[cfg(feature = "metal")]
            Self::Metal(_) => tensors.iter().all(|tensor| metal::is_open_to_host(tensor)),
            #[allow(unreachable_patterns, reason = "in a build with Metal alone")]
            _ => false,
        }
    }

    /// Reads entries where they lie, when the GPU is done, as [`read_entries`](crate::entries) does.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Safety
    /// The host may touch the pools' memory, they are of words and contiguous and have the entries, and
    /// blocks are as long as these are together.
    pub(crate) unsafe fn read_openly(
        self,
        pools: &[&Tensor],
        entries: &[u32],
        blocks: &mut [&mut [u8]],
    ) -> Result<(), Error> {
        let _ = (pools, entries, &blocks);
        match self {
            #[cfg(feature = "metal")]
            // SAFETY: the caller's promise.
            Self::Metal(gpu) => unsafe { gpu.read_openly(pools, entries, blocks) },
            #[allow(unreachable_patterns, reason = "in a build with Metal alone")]
            _ => Err(closed("read_entries")),
        }
    }

    /// Writes them.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Safety
    /// As for [`read_openly`](Self::read_openly).
    pub(crate) unsafe fn write_openly(
        self,
        pools: &[&Tensor],
        entries: &[u32],
        blocks: &[&[u8]],
    ) -> Result<(), Error> {
        let _ = (pools, entries, blocks);
        match self {
            #[cfg(feature = "metal")]
            // SAFETY: the caller's promise.
            Self::Metal(gpu) => unsafe { gpu.write_openly(pools, entries, blocks) },
            #[allow(unreachable_patterns, reason = "in a build with Metal alone")]
            _ => Err(closed("write_entries")),
        }
    }

    /// Starts a kernel. `lists` is where the lists of the step start, if arguments name any.
    ///
    /// # Errors
    /// What the driver, or the emulator, says.
    ///
    /// # Safety
    /// The kernel takes just these arguments, and addresses lead to what it takes them to.
    unsafe fn start(
        self,
        kernel: &'static str,
        grid: Grid,
        arguments: &[Argument],
        lists: u64,
    ) -> Result<(), String> {
        let _ = (kernel, grid, arguments, lists);
        match self {
            #[cfg(feature = "cuda")]
            // SAFETY: the caller's promise.
            Self::Cuda(gpu) => unsafe { gpu.start(kernel, grid, arguments, lists) },
            #[cfg(feature = "metal")]
            // SAFETY: the caller's promise.
            Self::Metal(gpu) => unsafe { gpu.start(kernel, grid, arguments, None) },
            #[cfg(feature = "emulate")]
            Self::Emulated(language) => {
                // SAFETY: the caller's promise.
                unsafe { emulated::launch(language, kernel, grid, arguments, lists) }
            }
        }
    }

    /// Runs the launches of a step, one after another.
    ///
    /// # Errors
    /// The first kernel that could not be started or failed.
    ///
    /// # Safety
    /// As for [`start`](Self::start), for each launch.
    unsafe fn submit(self, recording: &Recording) -> Result<(), Error> {
        #[cfg(feature = "cuda")]
        #[allow(irrefutable_let_patterns, reason = "in a build with no other GPU")]
        if let Self::Cuda(gpu) = self {
            // SAFETY: the caller's promise.
            return unsafe { gpu.submit(recording) };
        }
        #[cfg(feature = "metal")]
        #[allow(irrefutable_let_patterns, reason = "in a build with no other GPU")]
        if let Self::Metal(gpu) = self {
            // SAFETY: the caller's promise.
            return unsafe { gpu.submit(recording) };
        }
        let lists = recording.lists.as_ptr().addr() as u64;
        for launch in &recording.launches {
            let arguments = &recording.arguments[launch.arguments.clone()];
            // SAFETY: the caller's promise.
            let started = unsafe { self.start(launch.kernel, launch.grid, arguments, lists) };
            started.map_err(|what| Error::Kernel { op: launch.op, kernel: launch.kernel, what })?;
        }
        Ok(())
    }
}

/// Why the host does not touch the memory of a GPU.
fn closed(op: &'static str) -> Error {
    Error::Device { op, what: "the host may not touch the memory of this GPU".to_owned() }
}

/// A list that a call's kernels read.
enum List {
    #[cfg(feature = "cuda")]
    Cuda(cuda::Uploaded),
    #[cfg(feature = "metal")]
    Metal(metal::Uploaded),
    #[cfg(feature = "emulate")]
    Emulated(Box<[u32]>),
}

impl List {
    fn argument(&self) -> Argument {
        // By value, as there may be none.
        match *self {
            #[cfg(feature = "cuda")]
            Self::Cuda(ref uploaded) => Argument::Address(uploaded.address()),
            #[cfg(feature = "metal")]
            Self::Metal(ref uploaded) => Argument::Buffer(uploaded.place()),
            #[cfg(feature = "emulate")]
            Self::Emulated(ref words) => Argument::Address(words.as_ptr().addr() as u64),
        }
    }
}
