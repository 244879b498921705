//! The Metal sources of this build on a GPU: compiled by the system when a kernel is first asked for,
//! and kept as pipelines.

use std::collections::HashMap;
use std::sync::{OnceLock, PoisonError, RwLock};
use std::thread;

use candle_metal_kernels::metal::{ComputePipeline, Device, Library};
use objc2::rc::Retained;
use objc2_metal::{MTLCompileOptions, MTLComputePipelineState, MTLDevice, MTLLanguageVersion};

use crate::gpu::call::WARP;

/// A file of `kernels/src`: its name and its text.
type Source = (&'static str, &'static str);

/// What goes before every source, and the sources, as `build.rs` found them.
const EMBEDDED: (&[Source], &[Source]) = include!(concat!(env!("OUT_DIR"), "/metal_sources.rs"));

/// The kernels of a GPU.
pub(super) struct Kernels {
    device: Device,
    /// One for each source, or why it does not compile.
    libraries: OnceLock<Vec<Result<Library, String>>>,
    pipelines: RwLock<HashMap<&'static str, ComputePipeline>>,
}

impl Kernels {
    pub(super) fn new(device: Device) -> Self {
        Self { device, libraries: OnceLock::new(), pipelines: RwLock::default() }
    }

    /// A kernel that may be started with as many threads, and bytes of dynamic threadgroup memory.
    pub(super) fn pipeline(
        &self,
        name: &'static str,
        threads: u32,
        shared: usize,
    ) -> Result<ComputePipeline, String> {
        let pipelines = self.pipelines.read().unwrap_or_else(PoisonError::into_inner);
        let known = pipelines.get(name).cloned();
        drop(pipelines);
        let pipeline = match known {
            Some(pipeline) => pipeline,
            None => {
                let made = self.find(name)?;
                let mut pipelines = self.pipelines.write().unwrap_or_else(PoisonError::into_inner);
                pipelines.entry(name).or_insert(made).clone()
            }
        };
        self.check(&pipeline, threads, shared)?;
        Ok(pipeline)
    }

    /// What Metal would leave undefined, where its validation is off.
    fn check(&self, pipeline: &ComputePipeline, threads: u32, shared: usize) -> Result<(), String> {
        let state = pipeline.as_ref();
        let width = state.threadExecutionWidth();
        if width != WARP as usize {
            return Err(format!("simdgroups of {width} threads, it is written for {WARP}"));
        }
        let threads_max = pipeline.max_total_threads_per_threadgroup();
        if threads as usize > threads_max {
            return Err(format!("{threads} threads in a threadgroup, at most {threads_max}"));
        }
        let declared = state.staticThreadgroupMemoryLength();
        let limit = self.device.as_ref().maxThreadgroupMemoryLength();
        if declared + shared > limit {
            return Err(format!(
                "{declared} bytes of threadgroup memory declared, {shared} asked for, at most {limit}"
            ));
        }
        Ok(())
    }

    /// Looks for a kernel in all sources.
    fn find(&self, name: &str) -> Result<ComputePipeline, String> {
        let libraries = self.libraries.get_or_init(|| compile_all(&self.device));
        for library in libraries.iter().flatten() {
            if let Ok(function) = library.get_function(name, None) {
                let made = self.device.new_compute_pipeline_state_with_function(&function);
                return made.map_err(|error| error.to_string());
            }
        }
        // It may be in one of those.
        let failed: Vec<&str> = libraries
            .iter()
            .filter_map(|library| library.as_ref().err())
            .map(String::as_str)
            .collect();
        if failed.is_empty() {
            return Err("none of this build's Metal sources has it".to_owned());
        }
        Err(failed.join("\n"))
    }
}

/// Compiles all sources, side by side: the system's compiler takes a tenth of a second and more for
/// one that it has not seen before.
fn compile_all(device: &Device) -> Vec<Result<Library, String>> {
    let (_, sources) = EMBEDDED;
    thread::scope(|scope| {
        let compilers: Vec<_> =
            sources.iter().map(|source| scope.spawn(|| compile(device, source))).collect();
        let ended = |compiler: thread::ScopedJoinHandle<'_, Result<Library, String>>| {
            compiler.join().unwrap_or_else(|_| Err("a thread that compiles panicked".to_owned()))
        };
        compilers.into_iter().map(ended).collect()
    })
}

fn compile(device: &Device, &(name, text): &Source) -> Result<Library, String> {
    let (common, _) = EMBEDDED;
    let mut whole = String::new();
    for (name, text) in common.iter().chain([&(name, text)]) {
        // Errors name the lines of files.
        whole += &format!("#line 1 \"{name}\"\n{text}\n");
    }
    let library = device.new_library_with_source(&whole, Some(&options()));
    library.map_err(|error| format!("{name}: {error}"))
}

/// MSL 3.1 (macOS 14), the first with `bfloat`.
///
/// Without fast math, which the system's compiler has on unless told otherwise: it takes it that
/// there is neither NaN nor infinity, of which kernels make masks, which they must pass on, and which
/// tests look for; and it may put sums in another order from one pipeline to the next, where a row's
/// bits must not depend on its company. What may be inexact is called by name, `fast::exp`.
fn options() -> Retained<MTLCompileOptions> {
    let options = MTLCompileOptions::new();
    options.setLanguageVersion(MTLLanguageVersion::Version3_1);
    #[expect(deprecated, reason = "what comes after it is not in macOS 14")]
    options.setFastMathEnabled(false);
    options
}
