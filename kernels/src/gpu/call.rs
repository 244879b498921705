//! A call of a kernel: operands are checked and locked one after another, in the order of the
//! kernel's parameters, then it is launched.

use candle_core::{Storage, StorageMutRef, StorageRef, Tensor};

use super::Gpu;
use super::step::{self, Argument};
use crate::access::{Element, bounds, location, storage_mut};
use crate::error::{Error, Result};

/// Threads that make up a warp, or a simdgroup.
pub(crate) const WARP: u32 = 32;
/// Most arguments of a kernel: what Metal has places for.
const ARGUMENTS_MAX: usize = 31;

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
    List(#[expect(dead_code, reason = "an argument points to it")] Box<[u32]>),
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
        let (mut storage, _) = storage_mut(tensor);
        let found = storage.dtype();
        let address = match &mut *storage {
            Storage::Cpu(storage) => T::of_mut(storage).map(|all| all.as_ptr().addr()),
            other => return Err(Error::Unsupported { op: self.op, device: location(other) }),
        };
        self.address::<T>(operand, address, range.start, found)?;
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
        let address = match &*storage {
            Storage::Cpu(storage) => T::of(storage).map(|all| all.as_ptr().addr()),
            other => return Err(Error::Unsupported { op: self.op, device: location(other) }),
        };
        self.address::<T>(operand, address, range.start, storage.dtype())?;
        self.held.push(Held::Read(storage));
        Ok(self)
    }

    /// A list that the host made, copied to where the kernel can read it.
    ///
    /// # Errors
    /// No room for it among the lists of the step.
    pub(crate) fn list(&mut self, words: &[u32]) -> Result<&mut Self> {
        if let Some(place) = step::list(self.op, words) {
            self.arguments.push(Argument::List(place?));
            return Ok(self);
        }
        let words: Box<[u32]> = words.into();
        self.arguments.push(Argument::Address(words.as_ptr().addr() as u64));
        self.held.push(Held::List(words));
        Ok(self)
    }

    /// A number.
    pub(crate) fn word(&mut self, value: u32) -> &mut Self {
        self.arguments.push(Argument::Word(value));
        self
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

    /// Adds where an operand starts, or refuses its type.
    fn address<T: Element>(
        &mut self,
        operand: &'static str,
        storage: Option<usize>,
        start: usize,
        found: candle_core::DType,
    ) -> Result<()> {
        let Some(address) = storage else {
            return Err(Error::DType { op: self.op, operand, expected: T::DTYPE, found });
        };
        let address = address + start * size_of::<T>();
        self.arguments.push(Argument::Address(address as u64));
        Ok(())
    }
}
