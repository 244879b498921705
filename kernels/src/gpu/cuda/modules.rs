//! The machine code of this build on a GPU: loaded when a kernel of it is first asked for, and kept.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use candle_core::cuda_backend::cudarc::driver::sys::{
    CUdevice_attribute, CUfunction, CUfunction_attribute, CUresult,
};
use candle_core::cuda_backend::cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, DriverError,
};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;

use super::lock;
use crate::gpu::wait;

/// Name and machine code of each source.
const IMAGES: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/cuda_modules.rs"));
/// What machine code was made for.
const ARCHITECTURES: &str = env!("SCONCE_CUDA_ARCHITECTURES");
/// That of machine code that has `wgmma`.
const WGMMA_ARCHITECTURE: &str = "sm_90a";
/// Dynamic shared memory that every kernel may have; more is asked for.
const SHARED_BYTES: usize = 48 << 10;

/// The kernels of a GPU.
pub(super) struct Modules {
    context: Arc<CudaContext>,
    /// As many of [`IMAGES`] as have been looked at.
    loaded: Mutex<Vec<Arc<CudaModule>>>,
    kernels: RwLock<HashMap<&'static str, Kernel>>,
}

struct Kernel {
    function: CudaFunction,
    /// Bytes of dynamic shared memory that it may have.
    shared: AtomicUsize,
}

impl Modules {
    pub(super) fn new(context: Arc<CudaContext>) -> Self {
        Self { context, loaded: Mutex::default(), kernels: RwLock::default() }
    }

    /// A kernel that may have `shared` bytes of dynamic shared memory.
    pub(super) fn kernel(&self, name: &'static str, shared: usize) -> Result<CUfunction, String> {
        let kernels = self.kernels.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = kernels.get(name) {
            return self.with_shared(kernel, shared);
        }
        drop(kernels);
        let kernel = Kernel { function: self.find(name)?, shared: AtomicUsize::new(SHARED_BYTES) };
        let function = self.with_shared(&kernel, shared)?;
        self.kernels.write().unwrap_or_else(PoisonError::into_inner).insert(name, kernel);
        Ok(function)
    }

    /// Why no kernel with `wgmma` runs: machine code of one kind of GPU has it.
    pub(super) fn why_no_wgmma(&self) -> Option<String> {
        let (major, minor) = self.context.compute_capability().unwrap_or_default();
        if (major, minor) != (9, 0) {
            return Some(format!(
                "which GPUs of compute capability 9.0 have; this one has {major}.{minor}"
            ));
        }
        let there = ARCHITECTURES.split_whitespace().any(|name| name == WGMMA_ARCHITECTURE);
        (!there).then(|| {
            format!(
                "which is in code for {WGMMA_ARCHITECTURE}; the build has code for {ARCHITECTURES}"
            )
        })
    }

    /// Looks for a kernel in one module after another, and loads those that it comes to.
    fn find(&self, name: &str) -> Result<CudaFunction, String> {
        let mut loaded = lock(&self.loaded);
        self.context.bind_to_thread().map_err(said)?;
        for (index, (source, image)) in IMAGES.iter().enumerate() {
            if loaded.len() == index {
                loaded.push(self.load(source, image)?);
            }
            match loaded[index].load_function(name) {
                Ok(function) => return Ok(function),
                Err(DriverError(CUresult::CUDA_ERROR_NOT_FOUND)) => {}
                Err(error) => return Err(format!("{source}: {}", said(error))),
            }
        }
        Err("none of this build's CUDA sources has it".to_owned())
    }

    fn load(&self, source: &str, image: &[u8]) -> Result<Arc<CudaModule>, String> {
        if image.is_empty() {
            return Err(format!("{source}: no machine code: built with a stand-in for nvcc"));
        }
        self.context.load_module(Ptx::from_binary(image.to_vec())).map_err(|error| {
            let (major, minor) = self.context.compute_capability().unwrap_or_default();
            format!(
                "{source}: {}; the GPU has compute capability {major}.{minor}, the build has code \
                 for {ARCHITECTURES}",
                said(error)
            )
        })
    }

    fn with_shared(&self, kernel: &Kernel, bytes: usize) -> Result<CUfunction, String> {
        if bytes > kernel.shared.load(Ordering::Relaxed) {
            let limit = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
            let most = self.context.attribute(limit).map_err(said)?;
            let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let asked = i32::try_from(bytes).unwrap_or(i32::MAX);
            kernel.function.set_attribute(attribute, asked).map_err(|error| {
                format!(
                    "{bytes} bytes of dynamic shared memory, where a block has {most} in all: {}",
                    said(error)
                )
            })?;
            kernel.shared.fetch_max(bytes, Ordering::Relaxed);
        }
        Ok(kernel.function.cu_function())
    }
}

/// What the driver says of an error, and how to learn of which kernel where it does not.
pub(super) fn said(error: DriverError) -> String {
    let name = error.error_name().map(|name| name.to_string_lossy().into_owned());
    let text = error.error_string().map(|text| text.to_string_lossy().into_owned());
    let said = match (name, text) {
        (Ok(name), Ok(text)) => format!("{name}: {text}"),
        _ => format!("{:?}", error.0),
    };
    if is_of_a_kernel(error.0) { wait::later(said) } else { said }
}

/// Whether it is what a kernel fails with while it runs. Every use of the GPU fails so from then on.
fn is_of_a_kernel(error: CUresult) -> bool {
    matches!(
        error,
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
            | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
            | CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUresult::CUDA_ERROR_INVALID_PC
            | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUresult::CUDA_ERROR_ASSERT
            | CUresult::CUDA_ERROR_LAUNCH_TIMEOUT
            | CUresult::CUDA_ERROR_LAUNCH_FAILED
    )
}
