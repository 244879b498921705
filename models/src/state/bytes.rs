//! Entries of the pool's tensors as bytes, and copied and cleared in place, wherever the pool is. What
//! an entry is, is `transfer.rs`.

use candle_core::{CpuStorage, Storage, Tensor};
use sconce_kernels::{Result, clear_entry, copy_entry, gpu, memory, read_entries, write_entries};

// Pages and points are stored and sent as they lie in memory.
const _: () = assert!(cfg!(target_endian = "little"), "state is little-endian");

/// Bytes of an element, f32 or u32.
pub(crate) const ELEMENT: usize = 4;

/// Bytes of an entry of the first dimension.
pub(crate) fn entry_len(tensor: &Tensor) -> usize {
    tensor.dims().iter().skip(1).product::<usize>() * ELEMENT
}

/// Entry `index` of the first dimension of a contiguous tensor.
///
/// # Errors
/// A tensor of another type, an entry that is not there, a device that fails.
pub(crate) fn read(tensor: &Tensor, index: u32) -> Result<Vec<u8>> {
    let mut bytes = vec![0; entry_len(tensor)];
    read_entries(&[tensor], &[index], &mut [&mut bytes])?;
    Ok(bytes)
}

/// Writes entry `index` of the first dimension of a contiguous tensor: exactly its bytes.
///
/// # Errors
/// As for [`read`].
pub(crate) fn write(tensor: &Tensor, index: u32, bytes: &[u8]) -> Result<()> {
    write_entries(&[tensor], &[index], &[bytes])
}

/// Copies entry `from` of each of some tensors over entry `to`.
///
/// # Errors
/// As for [`read`].
pub(crate) fn copy(tensors: &[&Tensor], from: u32, to: u32) -> Result<()> {
    on_each(tensors, |tensor| copy_entry(tensor, from, to))
}

/// Makes all elements of entry `index` of each of some tensors zero.
///
/// # Errors
/// As for [`read`].
pub(crate) fn clear(tensors: &[&Tensor], index: u32) -> Result<()> {
    on_each(tensors, |tensor| clear_entry(tensor, index))
}

/// Asks for huge pages behind a tensor that was not written yet: what is read is read from end to end.
pub(crate) fn prefer_huge_pages(tensor: &Tensor) {
    match &*tensor.storage_and_layout().0 {
        Storage::Cpu(CpuStorage::F32(values)) => memory::prefer_huge_pages(values),
        Storage::Cpu(CpuStorage::U32(words)) => memory::prefer_huge_pages(words),
        // A GPU's memory is its driver's to arrange.
        _ => {}
    }
}

/// Does the same to all tensors, which are on one device, in one step of a GPU.
fn on_each(tensors: &[&Tensor], body: impl Fn(&Tensor) -> Result<()>) -> Result<()> {
    let Some(first) = tensors.first() else { return Ok(()) };
    gpu::step(first.device(), || tensors.iter().try_for_each(|tensor| body(tensor)))
}

#[cfg(test)]
mod tests {
    use bytemuck::cast_slice;
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn an_entry_is_read_as_it_was_written_and_others_stay() {
        let tensor = Tensor::zeros((3, 2, 2), DType::F32, &Device::Cpu).unwrap();
        let values = [1.5_f32, -0.0, f32::MIN_POSITIVE, 3.0];
        write(&tensor, 1, cast_slice(&values)).unwrap();
        let bytes = read(&tensor, 1).unwrap();
        assert_eq!(bytes, cast_slice::<f32, u8>(&values));
        assert_eq!(&bytes[..4], 1.5_f32.to_le_bytes());
        assert_eq!([read(&tensor, 0).unwrap(), read(&tensor, 2).unwrap()], [[0; 16]; 2]);
    }

    #[test]
    fn an_entry_is_copied_and_cleared_and_others_stay() {
        let numbers = || Tensor::arange(1_f32, 7.0, &Device::Cpu).unwrap().reshape((3, 2)).unwrap();
        let rows = |tensor: &Tensor| tensor.to_vec2::<f32>().unwrap();
        let (one, other) = (numbers(), numbers());
        copy(&[&one, &other], 2, 0).unwrap();
        for tensor in [&one, &other] {
            assert_eq!(rows(tensor), [[5.0, 6.0], [3.0, 4.0], [5.0, 6.0]]);
        }
        clear(&[&one], 1).unwrap();
        assert_eq!(rows(&one), [[5.0, 6.0], [0.0, 0.0], [5.0, 6.0]]);
        assert_eq!(rows(&other)[1], [3.0, 4.0]);
        assert!(copy(&[], 0, 1).is_ok() && clear(&[], 0).is_ok());
    }

    #[test]
    fn what_is_not_there_or_does_not_fit_is_an_error() {
        let tensor = Tensor::zeros((3, 2), DType::F32, &Device::Cpu).unwrap();
        assert!(read(&tensor, 3).is_err());
        assert!(write(&tensor, 3, &[0; 8]).is_err());
        assert!(write(&tensor, 0, &[0; 4]).is_err());
        assert!(copy(&[&tensor], 3, 0).is_err() && copy(&[&tensor], 0, 3).is_err());
        assert!(clear(&[&tensor], 3).is_err());
        assert!(read(&tensor.t().unwrap(), 0).is_err());
        let half = tensor.to_dtype(DType::F16).unwrap();
        assert!(read(&half, 0).is_err());
        assert!(write(&half, 0, &[0; 4]).is_err());
    }
}
