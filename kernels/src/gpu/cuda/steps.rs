//! Steps on a GPU: their lists go there in one copy, and a step that launches what one before it
//! did is replayed as a graph, which costs the host a few microseconds instead of as many for each
//! kernel.

use std::hash::BuildHasher;
use std::sync::Arc;

use candle_core::cuda_backend::cudarc::driver::sys::{
    CUgraphInstantiate_flags, CUstreamCaptureMode,
};
use candle_core::cuda_backend::cudarc::driver::{CudaGraph, CudaStream, DriverError, result};
use rustc_hash::FxBuildHasher;

use super::modules::said;
use super::{Cuda, Uploaded};
use crate::error::Error;
use crate::gpu::replays::{Found, Replays};
use crate::gpu::step::{LIST_WORDS_MAX, Recording};
use crate::gpu::wait;

/// The steps of a GPU.
pub(super) struct Steps {
    /// Where lists lie, from the first step that has any.
    lists: Option<Uploaded>,
    replays: Replays<Graph>,
    /// Where steps are captured: on the GPU's own stream others may be copying meanwhile, as a load of
    /// another model does, which a capture would take for a part of the step.
    capturing: Option<Arc<CudaStream>>,
}

/// A step to be replayed.
struct Graph(CudaGraph);

// SAFETY: a graph is used by one thread at a time, which the lock around `Steps` sees to; the driver
// does not ask that it is always the same.
unsafe impl Send for Graph {}

impl Steps {
    pub(super) fn new() -> Self {
        Self { lists: None, replays: Replays::new(), capturing: None }
    }

    /// Runs the launches of a step.
    ///
    /// # Safety
    /// As for [`Gpu::submit`](crate::gpu::Gpu).
    pub(super) unsafe fn submit(&mut self, gpu: Cuda, recording: &Recording) -> Result<(), Error> {
        let failed = |what| Error::Device { op: "step", what };
        let lists = self.copy_lists(gpu, &recording.lists).map_err(failed)?;
        if wait::each_kernel().map_err(failed)? {
            // None of a graph could be waited for by itself.
            // SAFETY: the caller's promise.
            return unsafe { launch_all(gpu, gpu.stream(), recording, lists) };
        }
        let hash = hash_of(recording);
        match self.replays.find(hash, recording) {
            Found::Graph(graph) => graph.replay(gpu).map_err(|error| failed(said(error))),
            // SAFETY: the caller's promise.
            Found::New => unsafe { launch_all(gpu, gpu.stream(), recording, lists) },
            Found::Again => {
                // SAFETY: the caller's promise.
                let graph = Graph(unsafe { self.capture(gpu, recording, lists) }?);
                graph.replay(gpu).map_err(|error| failed(said(error)))?;
                self.replays.keep(hash, recording, graph);
                Ok(())
            }
        }
    }

    /// A graph of the launches, none of which runs yet.
    ///
    /// # Safety
    /// As for [`submit`](Self::submit), each time that the graph is launched.
    unsafe fn capture(
        &mut self,
        gpu: Cuda,
        recording: &Recording,
        lists: u64,
    ) -> Result<CudaGraph, Error> {
        let failed = |error| {
            let what = format!("graph: {}", said(error));
            Error::Device { op: "step", what }
        };
        let stream = match &self.capturing {
            Some(stream) => stream,
            None => self.capturing.insert(gpu.stream().context().new_stream().map_err(failed)?),
        };
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        stream.begin_capture(mode).map_err(failed)?;
        // SAFETY: the caller's promise; nothing runs on this stream.
        let launched = unsafe { launch_all(gpu, stream, recording, lists) };
        // Ended in any case: nothing else can be captured before.
        let ended = stream.end_capture(CUgraphInstantiate_flags(0));
        launched?;
        let empty = || Error::Device { op: "step", what: "graph: is empty".to_owned() };
        ended.map_err(failed)?.ok_or_else(empty)
    }

    /// Copies the lists of a step to their place, in the order of the stream: after all kernels that
    /// read those of the step before.
    fn copy_lists(&mut self, gpu: Cuda, words: &[u32]) -> Result<u64, String> {
        if words.is_empty() {
            return Ok(0);
        }
        let address = match &self.lists {
            Some(lists) => lists.address(),
            None => self.lists.insert(gpu.reserve(LIST_WORDS_MAX)?).address(),
        };
        gpu.copy_words(address, words)?;
        Ok(address)
    }
}

impl Graph {
    /// Starts the step in the order of the GPU's stream.
    fn replay(&self, gpu: Cuda) -> Result<(), DriverError> {
        let stream = gpu.stream();
        stream.context().bind_to_thread()?;
        // SAFETY: the graph lives as long as this. Its kernels take what `Steps::submit` was promised,
        // by whoever submits the step now.
        unsafe { result::graph::launch(self.0.cu_graph_exec(), stream.cu_stream()) }
    }
}

/// A quick one, as it is taken of thousands of arguments in each step; equal steps are compared.
fn hash_of(recording: &Recording) -> u64 {
    FxBuildHasher.hash_one((&recording.launches, &recording.arguments))
}

/// Launches one kernel after another on a stream.
///
/// # Safety
/// As for [`Steps::submit`].
unsafe fn launch_all(
    gpu: Cuda,
    stream: &CudaStream,
    recording: &Recording,
    lists: u64,
) -> Result<(), Error> {
    for launch in &recording.launches {
        let arguments = &recording.arguments[launch.arguments.clone()];
        // SAFETY: the caller's promise.
        let started =
            unsafe { gpu.start_on(stream, launch.kernel, launch.grid, (arguments, lists)) };
        started.map_err(|what| Error::Kernel { op: launch.op, kernel: launch.kernel, what })?;
    }
    Ok(())
}
