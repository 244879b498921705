//! Entries of a pool, a tensor whose first dimension counts slots that come and go: gathered into
//! packed words, scattered from them, copied and cleared, as they lie. What an entry means is known to
//! whoever owns the pool. How entries come to the memory of the host is `host.rs`.

mod cpu;
mod gpu;
mod host;
pub mod reference;

use candle_core::{DType, Tensor};

pub(crate) use self::host::Copies;
#[cfg(feature = "cuda")]
pub(crate) use self::host::LANES;
#[cfg(feature = "emulate")]
pub(crate) use self::host::bytes_of;
#[cfg(any(feature = "emulate", feature = "metal"))]
pub(crate) use self::host::bytes_of_mut;
pub use self::host::{read_entries, write_entries};
use crate::access::{Element, View, check, contiguous, distinct, write};
use crate::error::{Error, Result};
use crate::gather_rows::check_indices;
use crate::gpu::Gpu;

/// Where the entries of a list lie among packed words: entry `i` from word `i * stride + offset` on, so
/// that what several tensors have of a slot lies one after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packing {
    /// Words from one entry of the list to the next.
    pub stride: usize,
    /// Words before the first one.
    pub offset: usize,
}

/// An element of a pool: a word, whatever its bits stand for.
pub(crate) trait Word: Element + Copy {
    fn to_word(self) -> u32;
    fn of_word(word: u32) -> Self;
}

impl Word for f32 {
    fn to_word(self) -> u32 {
        self.to_bits()
    }

    fn of_word(word: u32) -> Self {
        Self::from_bits(word)
    }
}

impl Word for u32 {
    fn to_word(self) -> u32 {
        self
    }

    fn of_word(word: u32) -> Self {
        word
    }
}

/// Packs entries: those of `pool`, `[entries, ...]` of f32 or u32, into `packed`, u32, which keeps its
/// other words. An entry may be listed twice.
///
/// # Errors
/// An entry that is not there, a packing in which entries overlap or do not fit, other types, gaps, a
/// device without an implementation, both in the same storage.
pub fn gather_entries(
    packed: &Tensor,
    pool: &Tensor,
    entries: &[u32],
    packing: Packing,
) -> Result<()> {
    const OP: &str = "gather_entries";
    let len = check_packed(OP, packed, pool, entries, packing)?;
    distinct(OP, packed, &[("pool", pool)])?;
    let floats = is_floats(OP, pool)?;
    if let Some(gpu) = Gpu::of(packed) {
        return gpu::gather(gpu, packed, (pool, floats), entries, (len, packing));
    }
    let view = View::new(OP, "pool", pool)?;
    match floats {
        true => gather(OP, packed, view.elements::<f32>()?, entries, (len, packing)),
        false => gather(OP, packed, view.elements::<u32>()?, entries, (len, packing)),
    }
}

/// Unpacks entries: the counterpart of [`gather_entries`]. No entry may be listed twice.
///
/// # Errors
/// As for [`gather_entries`].
pub fn scatter_entries(
    pool: &Tensor,
    packed: &Tensor,
    entries: &[u32],
    packing: Packing,
) -> Result<()> {
    const OP: &str = "scatter_entries";
    let len = check_packed(OP, packed, pool, entries, packing)?;
    distinct(OP, pool, &[("packed", packed)])?;
    let floats = is_floats(OP, pool)?;
    if let Some(gpu) = Gpu::of(pool) {
        return gpu::scatter(gpu, (pool, floats), packed, entries, (len, packing));
    }
    let view = View::new(OP, "packed", packed)?;
    let words = view.elements::<u32>()?;
    match floats {
        true => scatter::<f32>(OP, pool, words, entries, (len, packing)),
        false => scatter::<u32>(OP, pool, words, entries, (len, packing)),
    }
}

/// Copies entry `from` of a pool over entry `to`.
///
/// # Errors
/// An entry that is not there, a pool that is not f32 or u32 and contiguous, a device without an
/// implementation.
pub fn copy_entry(pool: &Tensor, from: u32, to: u32) -> Result<()> {
    const OP: &str = "copy_entry";
    let len = check_pool(OP, pool, &[from, to])?;
    let floats = is_floats(OP, pool)?;
    if let Some(gpu) = Gpu::of(pool) {
        return gpu::copy(gpu, (pool, floats), [from, to], len);
    }
    match floats {
        true => copy::<f32>(OP, pool, [from, to], len),
        false => copy::<u32>(OP, pool, [from, to], len),
    }
}

/// Makes entry `entry` of a pool zero.
///
/// # Errors
/// As for [`copy_entry`].
pub fn clear_entry(pool: &Tensor, entry: u32) -> Result<()> {
    const OP: &str = "clear_entry";
    let len = check_pool(OP, pool, &[entry])?;
    let floats = is_floats(OP, pool)?;
    if let Some(gpu) = Gpu::of(pool) {
        return gpu::clear(gpu, (pool, floats), entry, len);
    }
    match floats {
        true => clear::<f32>(OP, pool, entry, len),
        false => clear::<u32>(OP, pool, entry, len),
    }
}

/// Words of an entry of a pool.
fn entry_len(pool: &Tensor) -> usize {
    pool.dims().iter().skip(1).product()
}

fn gather<T: Word>(
    op: &'static str,
    packed: &Tensor,
    pool: &[T],
    entries: &[u32],
    shape: (usize, Packing),
) -> Result<()> {
    write::<u32, _>(op, packed, |packed| {
        cpu::gather(packed, pool, entries, shape);
        Ok(())
    })
}

fn scatter<T: Word>(
    op: &'static str,
    pool: &Tensor,
    packed: &[u32],
    entries: &[u32],
    shape: (usize, Packing),
) -> Result<()> {
    write::<T, _>(op, pool, |pool| {
        cpu::scatter(pool, packed, entries, shape);
        Ok(())
    })
}

fn copy<T: Word>(op: &'static str, pool: &Tensor, from_to: [u32; 2], len: usize) -> Result<()> {
    write::<T, _>(op, pool, |pool| {
        cpu::copy(pool, from_to, len);
        Ok(())
    })
}

fn clear<T: Word>(op: &'static str, pool: &Tensor, entry: u32, len: usize) -> Result<()> {
    write::<T, _>(op, pool, |pool| {
        cpu::clear(pool, entry, len);
        Ok(())
    })
}

/// Whether a pool holds f32, and not u32.
fn is_floats(op: &'static str, pool: &Tensor) -> Result<bool> {
    match pool.dtype() {
        DType::F32 => Ok(true),
        DType::U32 => Ok(false),
        found => Err(Error::DType { op, operand: "pool", expected: DType::F32, found }),
    }
}

/// Words of an entry of a pool that has these entries.
fn check_pool(op: &'static str, pool: &Tensor, entries: &[u32]) -> Result<usize> {
    check(op, "pool", !pool.dims().is_empty(), || {
        ("[entries, ...]".to_owned(), format!("{:?}", pool.dims()))
    })?;
    contiguous(op, "pool", pool)?;
    check_indices(op, "entries", entries, pool.dims()[0])?;
    Ok(entry_len(pool))
}

/// The same, where they have room in packed words.
fn check_packed(
    op: &'static str,
    packed: &Tensor,
    pool: &Tensor,
    entries: &[u32],
    Packing { stride, offset }: Packing,
) -> Result<usize> {
    let len = check_pool(op, pool, entries)?;
    let end = offset.checked_add(len);
    check(op, "packing", end.is_some_and(|end| end <= stride), || {
        (format!("a stride of {offset} and {len} words or more"), stride.to_string())
    })?;
    let (needed, found) = (entries.len().checked_mul(stride), packed.elem_count());
    check(op, "packed", needed.is_some_and(|needed| needed <= found), || {
        (format!("{} entries {stride} words apart", entries.len()), format!("{found} words"))
    })?;
    contiguous(op, "packed", packed)?;
    Ok(len)
}
