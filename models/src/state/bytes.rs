//! Entries of the pool's tensors as bytes, and copied and cleared in place: one pass each, and no tensor
//! in between. What an entry is, is `transfer.rs`. Memory of the CPU only, like the operators.

use bytemuck::{cast_slice, cast_slice_mut};
use candle_core::{CpuStorage, Layout, Result, Storage, Tensor, bail};
use sconce_kernels::storage_mut;

// Pages and points are stored and sent as they lie in memory.
const _: () = assert!(cfg!(target_endian = "little"), "state is little-endian");

/// Bytes of an element, f32 or u32.
pub(crate) const ELEMENT: usize = 4;

/// Appends entry `index` of the first dimension of a contiguous tensor.
///
/// # Errors
/// A tensor of another type, or on a device whose memory cannot be read directly.
pub(crate) fn read(tensor: &Tensor, index: u32, into: &mut Vec<u8>) -> Result<()> {
    let (storage, layout) = tensor.storage_and_layout();
    let all: &[u8] = match &*storage {
        Storage::Cpu(CpuStorage::F32(values)) => cast_slice(values),
        Storage::Cpu(CpuStorage::U32(words)) => cast_slice(words),
        _ => bail!("{:?} state on {:?} cannot be read", tensor.dtype(), tensor.device().location()),
    };
    into.extend_from_slice(&all[entry(layout, index)?]);
    Ok(())
}

/// Writes entry `index` of the first dimension of a contiguous tensor: exactly its bytes.
///
/// # Errors
/// A tensor of another type, or on a device whose memory cannot be written directly.
pub(crate) fn write(tensor: &Tensor, index: u32, bytes: &[u8]) -> Result<()> {
    change(tensor, |all, layout| {
        let target = &mut all[entry(layout, index)?];
        if target.len() != bytes.len() {
            bail!("an entry has {} bytes, found {}", target.len(), bytes.len());
        }
        target.copy_from_slice(bytes);
        Ok(())
    })
}

/// Copies entry `from` over entry `index`.
///
/// # Errors
/// As for [`write`].
pub(crate) fn copy(tensor: &Tensor, from: u32, index: u32) -> Result<()> {
    change(tensor, |all, layout| {
        all.copy_within(entry(layout, from)?, entry(layout, index)?.start);
        Ok(())
    })
}

/// Makes all elements of entry `index` zero.
///
/// # Errors
/// As for [`write`].
pub(crate) fn clear(tensor: &Tensor, index: u32) -> Result<()> {
    change(tensor, |all, layout| {
        all[entry(layout, index)?].fill(0);
        Ok(())
    })
}

/// Hands the tensor's memory to `body`, and where its entries lie in it.
fn change(tensor: &Tensor, body: impl FnOnce(&mut [u8], &Layout) -> Result<()>) -> Result<()> {
    let (mut storage, layout) = storage_mut(tensor);
    let all: &mut [u8] = match &mut *storage {
        Storage::Cpu(CpuStorage::F32(values)) => cast_slice_mut(values),
        Storage::Cpu(CpuStorage::U32(words)) => cast_slice_mut(words),
        _ => {
            bail!(
                "{:?} state on {:?} cannot be written",
                tensor.dtype(),
                tensor.device().location()
            )
        }
    };
    body(all, layout)
}

/// Bytes of entry `index`.
fn entry(layout: &Layout, index: u32) -> Result<std::ops::Range<usize>> {
    let (Some((start, _)), [entries, rest @ ..]) = (layout.contiguous_offsets(), layout.dims())
    else {
        bail!("state must be contiguous");
    };
    let (index, len) = (index as usize, rest.iter().product::<usize>());
    if index >= *entries {
        bail!("entry {index} of {entries}");
    }
    Ok((start + index * len) * ELEMENT..(start + (index + 1) * len) * ELEMENT)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn an_entry_is_read_as_it_was_written_and_others_stay() {
        let tensor = Tensor::zeros((3, 2, 2), DType::F32, &Device::Cpu).unwrap();
        let values = [1.5_f32, -0.0, f32::MIN_POSITIVE, 3.0];
        write(&tensor, 1, cast_slice(&values)).unwrap();
        let mut bytes = vec![7];
        read(&tensor, 1, &mut bytes).unwrap();
        assert_eq!((bytes[0], &bytes[1..]), (7, cast_slice(&values)));
        assert_eq!(&bytes[1..5], 1.5_f32.to_le_bytes());
        bytes.clear();
        read(&tensor, 0, &mut bytes).unwrap();
        read(&tensor, 2, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 32]);
    }

    #[test]
    fn an_entry_is_copied_and_cleared_and_others_stay() {
        let numbers = || Tensor::arange(1_f32, 7.0, &Device::Cpu).unwrap().reshape((3, 2)).unwrap();
        let rows = |tensor: &Tensor| tensor.to_vec2::<f32>().unwrap();
        let (back, forth, cleared) = (numbers(), numbers(), numbers());
        copy(&back, 2, 0).unwrap();
        assert_eq!(rows(&back), [[5.0, 6.0], [3.0, 4.0], [5.0, 6.0]]);
        copy(&forth, 0, 1).unwrap();
        assert_eq!(rows(&forth), [[1.0, 2.0], [1.0, 2.0], [5.0, 6.0]]);
        clear(&cleared, 1).unwrap();
        assert_eq!(rows(&cleared), [[1.0, 2.0], [0.0, 0.0], [5.0, 6.0]]);
    }

    #[test]
    fn what_is_not_there_or_does_not_fit_is_an_error() {
        let tensor = Tensor::zeros((3, 2), DType::F32, &Device::Cpu).unwrap();
        assert!(read(&tensor, 3, &mut Vec::new()).is_err());
        assert!(write(&tensor, 3, &[0; 8]).is_err());
        assert!(write(&tensor, 0, &[0; 4]).is_err());
        assert!(copy(&tensor, 3, 0).is_err() && copy(&tensor, 0, 3).is_err());
        assert!(clear(&tensor, 3).is_err());
        assert!(read(&tensor.t().unwrap(), 0, &mut Vec::new()).is_err());
        let half = tensor.to_dtype(DType::F16).unwrap();
        assert!(read(&half, 0, &mut Vec::new()).is_err());
        assert!(write(&half, 0, &[0; 4]).is_err());
    }
}
