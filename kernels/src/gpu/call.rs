//! A call of a kernel: operands are checked and locked one after another, in the order of the
//! kernel's parameters, then it is launched.

use candle_core::{Storage, StorageMutRef, StorageRef, Tensor};

use super::step::{self, Argument};
use super::{Gpu, List};
use crate::access::{Element, bounds, storage_mut};
use crate::error::{Error, Result};

/// Threads that make up a warp, or a simdgroup.
pub(crate) const WARP: u32 = 32;
/// Most arguments of a kernel: what Metal has places for.
pub(super) const ARGUMENTS_MAX: usize = 31;

/// How many threads run a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Grid {
    /// Blocks, or threadgroups.
    pub(crate) blocks: [u32; 3],
    /// Threads of each.
    pub(crate) threads: u32,
    /// Bytes of dynamic shared memory of each.
    pub(crate) shared: usize,
}

impl Grid {
    /// As many blocks in a row, without dynamic shared memory.
    pub(crate) fn row(blocks: usize, threads: u32) -> Self {
        Self::of([blocks, 1, 1], threads)
    }

    /// Blocks along three axes, without dynamic shared memory.
    pub(crate) fn of(blocks: [usize; 3], threads: u32) -> Self {
        // A grid that is too large for 32 bits is too large for every GPU, and refused there.
        let blocks = blocks.map(|count| u32::try_from(count).unwrap_or(u32::MAX));
        Self { blocks, threads, shared: 0 }
    }

    /// For kernels that work on an array of `len`, four elements a thread.
    pub(crate) fn fours(len: usize, threads: u32) -> Self {
        Self::row(len.div_ceil(4).div_ceil(threads as usize), threads)
    }

    /// For kernels that work on rows of `dim`, four elements a thread: blocks `[rows, parts]`.
    pub(crate) fn rows_of_fours(rows: usize, dim: usize, threads_max: u32) -> Self {
        let fours = dim.div_ceil(4);
        let threads = threads_for(fours, threads_max);
        Self::of([rows, fours.div_ceil(threads as usize), 1], threads)
    }

    /// The same with dynamic shared memory.
    pub(crate) fn with_shared(self, bytes: usize) -> Self {
        Self { shared: bytes, ..self }
    }
}

/// Threads of a block that works on `items` side by side: whole warps, at most `threads_max`.
pub(crate) fn threads_for(items: usize, threads_max: u32) -> u32 {
    let items = u32::try_from(items).unwrap_or(u32::MAX).clamp(1, threads_max);
    items.next_multiple_of(WARP).min(threads_max)
}

/// Whether kernels may read these tensors four elements, 16 bytes, at a time: their rows of `width`
/// start at multiples of that. Memory of a device, and of the heap, starts at one too.
pub(crate) fn in_fours(width: usize, tensors: &[&Tensor]) -> bool {
    let start = |tensor: &&Tensor| tensor.layout().start_offset();
    width.is_multiple_of(4) && tensors.iter().map(start).all(|start| start.is_multiple_of(4))
}

/// A kernel's call in the making.
pub(crate) struct Call<'a> {
    op: &'static str,
    gpu: Gpu,
    arguments: Vec<Argument>,
    /// Keeps what the arguments point to.
    held: Vec<Held<'a>>,
}

enum Held<'a> {
    Read(#[expect(dead_code, reason = "a lock")] StorageRef<'a>),
    Write(#[expect(dead_code, reason = "a lock")] StorageMutRef<'a>),
    List(#[allow(dead_code, reason = "an argument points to it, if there is any list")] List),
}

impl<'a> Call<'a> {
    /// A call without arguments so far. Outputs and inputs must be distinct: an output's lock would
    /// wait for that of an input in the same storage forever.
    pub(crate) fn new(op: &'static str, gpu: Gpu) -> Self {
        Self { op, gpu, arguments: Vec::with_capacity(ARGUMENTS_MAX), held: Vec::new() }
    }

    /// A tensor that the kernel writes.
    ///
    /// # Errors
    /// Another type than `T`, gaps, another device.
    pub(crate) fn write<T: Element>(
        &mut self,
        operand: &'static str,
        tensor: &'a Tensor,
    ) -> Result<&mut Self> {
        let range = bounds(self.op, operand, tensor.layout())?;
        let (storage, _) = storage_mut(tensor);
        self.operand::<T>(operand, &storage, range.start, true)?;
        self.held.push(Held::Write(storage));
        Ok(self)
    }

    /// A tensor that the kernel reads.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    pub(crate) fn read<T: Element>(
        &mut self,
        operand: &'static str,
        tensor: &'a Tensor,
    ) -> Result<&mut Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let range = bounds(self.op, operand, layout)?;
        self.operand::<T>(operand, &storage, range.start, false)?;
        self.held.push(Held::Read(storage));
        Ok(self)
    }

    /// A list that the host made, copied to where the kernel can read it.
    ///
    /// # Errors
    /// No room for it among the lists of the step, or on the device.
    pub(crate) fn list(&mut self, words: &[u32]) -> Result<&mut Self> {
        if let Some(place) = step::list(self.op, words) {
            self.arguments.push(Argument::List(place?));
            return Ok(self);
        }
        let op = self.op;
        let list = self.gpu.list(words).map_err(|what| Error::Device { op, what })?;
        self.arguments.push(list.argument());
        self.held.push(Held::List(list));
        Ok(self)
    }

    /// A number.
    pub(crate) fn word(&mut self, value: u32) -> &mut Self {
        self.arguments.push(Argument::Word(value));
        self
    }

    /// A condition.
    pub(crate) fn flag(&mut self, value: bool) -> &mut Self {
        self.word(u32::from(value))
    }

    /// A size or a count.
    ///
    /// # Errors
    /// One that 32 bits do not hold.
    pub(crate) fn size(&mut self, operand: &'static str, value: usize) -> Result<&mut Self> {
        let word = u32::try_from(value).map_err(|_| Error::Shape {
            op: self.op,
            operand,
            expected: format!("at most {}", u32::MAX),
            found: value.to_string(),
        })?;
        Ok(self.word(word))
    }

    /// A real number.
    pub(crate) fn real(&mut self, value: f32) -> &mut Self {
        self.word(value.to_bits())
    }

    /// Starts the kernel, or records that it is to be started in its step; an empty grid is done at
    /// once.
    ///
    /// # Errors
    /// A kernel that does not exist, cannot be started, or fails.
    ///
    /// # Safety
    /// The kernel takes just these arguments, and reads and writes within them.
    pub(crate) unsafe fn launch(&self, kernel: &'static str, grid: Grid) -> Result<()> {
        if grid.blocks.contains(&0) {
            return Ok(());
        }
        if step::record(self.op, kernel, grid, &self.arguments) {
            return Ok(());
        }
        // SAFETY: the caller's promise; outside of steps there are no lists of one.
        let started = unsafe { self.gpu.start(kernel, grid, &self.arguments, 0) };
        started.map_err(|what| Error::Kernel { op: self.op, kernel, what })
    }

    /// Adds where an operand starts, or refuses its type or its device.
    fn operand<T: Element>(
        &mut self,
        operand: &'static str,
        storage: &Storage,
        start: usize,
        written: bool,
    ) -> Result<()> {
        let op = self.op;
        let elsewhere = |device| Error::Elsewhere { op, operand, device };
        let found = self.gpu.operand::<T>(storage, start, written).map_err(elsewhere)?;
        let Some(argument) = found else {
            let found = storage.dtype();
            return Err(Error::DType { op, operand, expected: T::DTYPE, found });
        };
        self.arguments.push(argument);
        Ok(())
    }
}

#[cfg(all(test, feature = "emulate"))]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::gpu::{Language, emulate, step};

    /// What comes of a launch of a kernel with no arguments.
    fn launch(kernel: &'static str) -> Result<()> {
        let gpu = Gpu::of_device(&Device::Cpu).expect("called where one is emulated");
        // SAFETY: there is no such kernel, or it takes arguments and is not started without.
        unsafe { Call::new("an_op", gpu).launch(kernel, Grid::row(1, 32)) }
    }

    fn in_both_languages(body: impl Fn(Language)) {
        [Language::Cuda, Language::Metal]
            .into_iter()
            .for_each(|language| emulate(language, || body(language)));
    }

    #[test]
    fn a_kernel_that_is_missing_is_an_error_with_its_name() {
        in_both_languages(|language| {
            let error = launch("no_such_kernel").unwrap_err();
            let named =
                matches!(error, Error::Kernel { op: "an_op", kernel: "no_such_kernel", .. });
            assert!(named, "{language:?}: {error:?}");
            let what = format!("no {language:?} kernel is called no_such_kernel");
            assert_eq!(error.to_string(), format!("an_op: kernel no_such_kernel: {what}"));
        });
    }

    #[test]
    fn in_a_step_it_is_one_too_and_ends_the_step_there() {
        in_both_languages(|language| {
            let out = Tensor::new(&[[9_f32, 9.0]], &Device::Cpu).unwrap();
            let values = || out.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let doubled = |factor| crate::scale(&out, factor, 1);
            let error = step(&Device::Cpu, || {
                doubled(2.0)?;
                // Of its recording nothing is known yet.
                launch("no_such_kernel")?;
                doubled(3.0)
            })
            .unwrap_err();
            let text = error.to_string();
            assert!(text.starts_with("an_op: kernel no_such_kernel: "), "{language:?}: {text}");
            assert_eq!(values(), [18.0, 18.0], "{language:?}");
            // The next step is as if this had not been.
            step(&Device::Cpu, || doubled(0.5)).unwrap();
            assert_eq!(values(), [9.0, 9.0], "{language:?}");
        });
    }

    #[test]
    fn a_kernel_that_cannot_be_started_is_an_error_with_its_name() {
        in_both_languages(|language| {
            let error = launch("rms_norm").unwrap_err().to_string();
            assert!(error.starts_with("an_op: kernel rms_norm: "), "{language:?}: {error}");
            assert!(error.contains("0 arguments"), "{language:?}: {error}");
        });
    }
}
