//! Apple GPUs: kernels are encoded into the commands of the tensors' device, which starts them in
//! that order and keeps apart what one writes and another reads. Which device tensors are on is
//! decided elsewhere.

mod copy;
mod entries;
mod kernels;

use std::fmt;
use std::sync::{PoisonError, RwLock};

use candle_core::backend::BackendStorage;
use candle_core::{DType, MetalDevice, MetalStorage};
use candle_metal_kernels::RESOURCE_OPTIONS;
use candle_metal_kernels::metal::{Buffer, ComputeCommandEncoder};
use objc2_metal::MTLSize;

pub(crate) use self::copy::{from_host, to_host};
pub(crate) use self::entries::is_open_to_host;
use self::kernels::Kernels;
use super::call::{ARGUMENTS_MAX, Grid};
use super::step::{Argument, Recording};
use super::wait;
use crate::error::Error;

/// Threadgroup memory is given in multiples of as many bytes.
const SHARED_STEP: usize = 16;

/// A GPU, in the order of one device's commands.
#[derive(Clone, Copy)]
pub(crate) struct Metal(&'static State);

/// What lives as long as the process, once a device's first operator has run: kernels stay compiled.
struct State {
    device: MetalDevice,
    kernels: Kernels,
}

/// Devices that operators have run on. A process opens few.
static DEVICES: RwLock<Vec<&'static State>> = RwLock::new(Vec::new());

/// Where an operand starts: a buffer and an offset, which Metal takes apart from one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    /// Where the tensor library's buffer is, which its tensor or its list keeps.
    buffer: usize,
    /// In bytes.
    offset: usize,
    /// Whether a kernel writes there: kernels that read what others write wait for these.
    written: bool,
}

impl Place {
    fn new(buffer: &Buffer, offset: usize, written: bool) -> Self {
        Self { buffer: std::ptr::from_ref(buffer).expose_provenance(), offset, written }
    }
}

impl fmt::Debug for Metal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Metal({:?})", self.0.device.id())
    }
}

impl Metal {
    /// The GPU that operators on tensors of a device run on.
    pub(crate) fn of(device: &MetalDevice) -> Self {
        let known = |devices: &[&'static State]| {
            devices.iter().find(|state| state.device.id() == device.id()).map(|state| Self(state))
        };
        if let Some(gpu) = known(&DEVICES.read().unwrap_or_else(PoisonError::into_inner)) {
            return gpu;
        }
        let mut devices = DEVICES.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(gpu) = known(&devices) {
            return gpu;
        }
        let kernels = Kernels::new(device.metal_device().clone());
        let state = Box::leak(Box::new(State { device: device.clone(), kernels }));
        devices.push(state);
        Self(state)
    }

    /// Whether a storage is on this GPU, and in the order of its commands.
    pub(crate) fn has(self, storage: &MetalStorage) -> bool {
        storage.device().id() == self.0.device.id()
    }

    /// A list of the host, copied to where the GPU reads it.
    pub(crate) fn upload(self, words: &[u32]) -> Result<Uploaded, String> {
        // There are no buffers without bytes. One of its own, which the tensor library does not hand
        // on: commands keep it until they are done.
        let words = if words.is_empty() { &[0] } else { words };
        let device = self.0.device.metal_device();
        let buffer = device.new_buffer_with_data(
            words.as_ptr().cast(),
            size_of_val(words),
            RESOURCE_OPTIONS,
        );
        buffer.map(|buffer| Uploaded(Box::new(buffer))).map_err(|error| error.to_string())
    }

    /// Starts a kernel.
    ///
    /// # Safety
    /// As for [`Gpu::start`](super::Gpu::start); buffers of places live.
    pub(super) unsafe fn start(
        self,
        kernel: &'static str,
        grid: Grid,
        arguments: &[Argument],
        lists: Option<&Uploaded>,
    ) -> Result<(), String> {
        let Grid { blocks, threads, shared } = grid;
        if arguments.len() > ARGUMENTS_MAX {
            return Err(format!("at most {ARGUMENTS_MAX} arguments, found {}", arguments.len()));
        }
        let pipeline = self.0.kernels.pipeline(kernel, threads, shared)?;
        let commands = self.0.device.command_encoder().map_err(|error| error.to_string())?;
        let encoder: &ComputeCommandEncoder = commands.as_ref();
        encoder.set_compute_pipeline_state(&pipeline);
        for (index, argument) in arguments.iter().enumerate() {
            match *argument {
                Argument::Word(word) => encoder.set_bytes(index, &word),
                Argument::List(place) => {
                    let lists = lists.ok_or("a list of a step outside of one")?;
                    encoder.set_input_buffer(index, Some(&lists.0), place as usize * 4);
                }
                Argument::Buffer(Place { buffer, offset, written }) => {
                    // SAFETY: exposed by `Place::new`; the caller's promise.
                    let buffer = unsafe { &*std::ptr::with_exposed_provenance::<Buffer>(buffer) };
                    if written {
                        encoder.set_output_buffer(index, Some(buffer), offset);
                    } else {
                        encoder.set_input_buffer(index, Some(buffer), offset);
                    }
                }
                Argument::Address(_) => return Err("an operand that is not a buffer".to_owned()),
            }
        }
        if shared > 0 {
            encoder.set_threadgroup_memory_length(0, shared.next_multiple_of(SHARED_STEP));
        }
        encoder.dispatch_thread_groups(size(blocks), size([threads, 1, 1]));
        // It holds the commands, which are about to be handed on.
        drop(commands);
        if wait::each_kernel()? {
            self.0.device.flush_and_wait_current().map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Starts the kernels of a step. They run while later ones are encoded; the tensor library hands
    /// them to the GPU by tens, and the rest when a result is read.
    ///
    /// # Errors
    /// The first kernel that could not be started; no room for lists.
    ///
    /// # Safety
    /// As for [`start`](Self::start), for each launch.
    pub(super) unsafe fn submit(self, recording: &Recording) -> Result<(), Error> {
        let lists = self.upload(&recording.lists);
        let lists = lists.map_err(|what| Error::Device { op: "lists of a step", what })?;
        for launch in &recording.launches {
            let arguments = &recording.arguments[launch.arguments.clone()];
            // SAFETY: the caller's promise.
            let started =
                unsafe { self.start(launch.kernel, launch.grid, arguments, Some(&lists)) };
            started.map_err(|what| Error::Kernel { op: launch.op, kernel: launch.kernel, what })?;
        }
        Ok(())
    }
}

/// A list where the GPU reads it, for kernels that are started before it is dropped.
pub(crate) struct Uploaded(
    /// At a place that does not move.
    Box<Buffer>,
);

impl Uploaded {
    pub(crate) fn place(&self) -> Place {
        Place::new(&self.0, 0, false)
    }
}

/// Where element `start` of a storage is; none if they are of another type.
pub(crate) fn place_of(
    storage: &MetalStorage,
    dtype: DType,
    start: usize,
    written: bool,
) -> Option<Place> {
    let offset = start * dtype.size_in_bytes();
    (storage.dtype() == dtype).then(|| Place::new(storage.buffer(), offset, written))
}

fn size(counts: [u32; 3]) -> MTLSize {
    let [width, height, depth] = counts.map(|count| count as usize);
    MTLSize { width, height, depth }
}
