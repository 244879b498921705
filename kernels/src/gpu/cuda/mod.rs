//! NVIDIA GPUs: kernels start on the stream of the tensors' device, and copies between it and the
//! host are made in its order. Which device tensors are on is decided elsewhere.

mod copy;
mod driver;
mod modules;
mod pinned;
mod steps;
mod transfer;

use std::ffi::c_void;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DevicePtr, result};
use candle_core::cuda_backend::{CudaStorage, CudaStorageSlice};
use candle_core::{CudaDevice, DType};

pub(crate) use self::copy::{from_host, to_host};
pub(crate) use self::driver::{count, describe, memory, open};
use self::modules::{Modules, said};
pub(crate) use self::pinned::Pinned;
use self::steps::Steps;
use self::transfer::Transfer;
use super::call::{ARGUMENTS_MAX, Grid};
use super::step::{Argument, Recording};
use super::wait;
use crate::error::Error;

/// A GPU, in the order of one stream.
#[derive(Clone, Copy)]
pub(crate) struct Cuda(&'static State);

/// What lives as long as the process, once a device's first operator has run: kernels stay loaded,
/// and the stream, which a device of its own may end, is not taken for another.
struct State {
    stream: Arc<CudaStream>,
    modules: Modules,
    steps: Mutex<Steps>,
    /// From the first copy of entries on.
    transfer: Mutex<Option<Transfer>>,
}

/// Devices that operators have run on. A process opens few.
static DEVICES: RwLock<Vec<&'static State>> = RwLock::new(Vec::new());

impl fmt::Debug for Cuda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cuda({})", self.0.stream.context().ordinal())
    }
}

impl Cuda {
    /// The GPU that operators on tensors of a device run on.
    pub(crate) fn of(device: &CudaDevice) -> Self {
        let stream = device.cuda_stream();
        let known = |devices: &[&'static State]| {
            devices.iter().find(|state| state.stream == stream).map(|state| Self(state))
        };
        if let Some(gpu) = known(&DEVICES.read().unwrap_or_else(PoisonError::into_inner)) {
            return gpu;
        }
        let mut devices = DEVICES.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(gpu) = known(&devices) {
            return gpu;
        }
        let modules = Modules::new(stream.context().clone());
        let state = Box::leak(Box::new(State {
            stream,
            modules,
            steps: Mutex::new(Steps::new()),
            transfer: Mutex::default(),
        }));
        devices.push(state);
        Self(state)
    }

    /// Whether a storage is on this GPU, and in the order of its stream.
    pub(crate) fn has(self, storage: &CudaStorage) -> bool {
        storage.device().cuda_stream() == self.0.stream
    }

    /// Why its products of many rows cannot be those of `wgmma`, if they cannot.
    pub(crate) fn why_no_wgmma(self) -> Option<String> {
        self.0.modules.why_no_wgmma()
    }

    /// A list of the host, copied to the GPU.
    pub(crate) fn upload(self, words: &[u32]) -> Result<Uploaded, String> {
        let uploaded = self.reserve(words.len())?;
        self.copy_words(uploaded.address, words)?;
        Ok(uploaded)
    }

    /// Room for words, which are not set.
    fn reserve(self, words: usize) -> Result<Uploaded, String> {
        let stream = self.stream();
        stream.context().bind_to_thread().map_err(said)?;
        let bytes = words.max(1) * size_of::<u32>();
        // SAFETY: the stream exists; what is allocated is freed on it, by `Uploaded`.
        let address = unsafe { result::malloc_async(stream.cu_stream(), bytes) }.map_err(said)?;
        Ok(Uploaded { address, gpu: self })
    }

    /// Copies words to where there is room for them, in the order of the stream.
    fn copy_words(self, address: u64, words: &[u32]) -> Result<(), String> {
        if words.is_empty() {
            return Ok(());
        }
        let stream = self.stream();
        stream.context().bind_to_thread().map_err(said)?;
        // SAFETY: the callers are above and in `steps`, and have reserved as much. The words are not
        // in pinned memory, so the driver has taken them when this returns.
        unsafe { result::memcpy_htod_async(address, words, stream.cu_stream()) }.map_err(said)
    }

    fn stream(self) -> &'static Arc<CudaStream> {
        &self.0.stream
    }

    /// Starts a kernel.
    ///
    /// # Safety
    /// As for [`Gpu::start`](super::Gpu::start).
    pub(super) unsafe fn start(
        self,
        kernel: &'static str,
        grid: Grid,
        arguments: &[Argument],
        lists: u64,
    ) -> Result<(), String> {
        // SAFETY: the caller's promise.
        unsafe { self.start_on(self.stream(), kernel, grid, (arguments, lists)) }
    }

    /// Starts a kernel on a stream.
    ///
    /// # Safety
    /// As for [`start`](Self::start), and the stream is this one or waits for it, if it runs what is
    /// started there.
    unsafe fn start_on(
        self,
        stream: &CudaStream,
        kernel: &'static str,
        grid: Grid,
        (arguments, lists): (&[Argument], u64),
    ) -> Result<(), String> {
        let Grid { blocks: [x, y, z], threads, shared } = grid;
        let function = self.0.modules.kernel(kernel, shared)?;
        let mut values = [0_u64; ARGUMENTS_MAX];
        let mut pointers = [std::ptr::null_mut::<c_void>(); ARGUMENTS_MAX];
        if arguments.len() > ARGUMENTS_MAX {
            return Err(format!("at most {ARGUMENTS_MAX} arguments, found {}", arguments.len()));
        }
        for (index, argument) in arguments.iter().enumerate() {
            values[index] = argument.value(lists);
            pointers[index] = (&raw mut values[index]).cast();
        }
        stream.context().bind_to_thread().map_err(said)?;
        let shared =
            u32::try_from(shared).map_err(|_| format!("{shared} bytes of shared memory"))?;
        let pointers = &mut pointers[..arguments.len()];
        let (grid, block) = ((x, y, z), (threads, 1, 1));
        // SAFETY: the caller's promise; a word is the lower half of its value. The driver has read
        // the values when this returns.
        unsafe {
            result::launch_kernel(function, grid, block, shared, stream.cu_stream(), pointers)
        }
        .map_err(said)?;
        if wait::each_kernel()? {
            stream.synchronize().map_err(said)?;
        }
        Ok(())
    }

    /// Runs the launches of a step.
    ///
    /// # Safety
    /// As for [`start`](Self::start), for each launch.
    pub(super) unsafe fn submit(self, recording: &Recording) -> Result<(), Error> {
        let mut steps = lock(&self.0.steps);
        // SAFETY: the caller's promise.
        unsafe { steps.submit(self, recording) }
    }
}

/// Where a storage starts, if it holds what is asked for.
pub(crate) fn start_of(storage: &CudaStorage, dtype: DType) -> Option<u64> {
    if BackendStorage::dtype(storage) != dtype {
        return None;
    }
    Some(match &storage.slice {
        CudaStorageSlice::U8(slice)
        | CudaStorageSlice::F6E2M3(slice)
        | CudaStorageSlice::F6E3M2(slice)
        | CudaStorageSlice::F4(slice)
        | CudaStorageSlice::F8E8M0(slice) => address(slice),
        CudaStorageSlice::U32(slice) => address(slice),
        CudaStorageSlice::I16(slice) => address(slice),
        CudaStorageSlice::I32(slice) => address(slice),
        CudaStorageSlice::I64(slice) => address(slice),
        CudaStorageSlice::BF16(slice) => address(slice),
        CudaStorageSlice::F16(slice) => address(slice),
        CudaStorageSlice::F32(slice) => address(slice),
        CudaStorageSlice::F64(slice) => address(slice),
        CudaStorageSlice::F8E4M3(slice) => address(slice),
    })
}

fn address<T>(slice: &CudaSlice<T>) -> u64 {
    slice.device_ptr(slice.stream()).0
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A list on the GPU, for kernels that are started before it is dropped.
pub(crate) struct Uploaded {
    address: u64,
    gpu: Cuda,
}

impl Uploaded {
    pub(crate) fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for Uploaded {
    fn drop(&mut self) {
        let stream = self.gpu.stream();
        // SAFETY: allocated on this stream, in whose order it is freed: after the kernels. A
        // failure is one of the stream, which its next use reports.
        let _ = unsafe { result::free_async(self.address, stream.cu_stream()) };
    }
}
