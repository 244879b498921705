//! The elements behind CPU tensors, to read and to write in place, copies of those of tensors on
//! GPUs, and the checks every operator makes on its operands. No arithmetic here.

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, DType, DeviceLocation, Layout, Storage, StorageMutRef, StorageRef, Tensor,
};

use crate::error::{Error, Result};
#[cfg(feature = "cuda")]
use crate::gpu::cuda;
#[cfg(feature = "metal")]
use crate::gpu::metal;

/// Copies the leading rows of `[capacity, dim]` out: `values.len()` elements from the start.
///
/// # Errors
/// A tensor that is not f32, contiguous and at least as large as `values`; a device that fails.
pub fn read_rows(tensor: &Tensor, values: &mut [f32]) -> Result<()> {
    const OP: &str = "read_rows";
    #[cfg(feature = "cuda")]
    if let Storage::Cuda(storage) = &*tensor.storage_and_layout().0 {
        let range = copied::<f32>(OP, tensor, values.len())?;
        return cuda::to_host(OP, storage, range, values);
    }
    #[cfg(feature = "metal")]
    if let Storage::Metal(storage) = &*tensor.storage_and_layout().0 {
        let range = copied::<f32>(OP, tensor, values.len())?;
        return metal::to_host(OP, storage, range, values);
    }
    let view = View::new(OP, "tensor", tensor)?;
    let source = view.slice()?;
    check(OP, "tensor", source.len() >= values.len(), || {
        (format!("at least {} elements", values.len()), source.len().to_string())
    })?;
    values.copy_from_slice(&source[..values.len()]);
    Ok(())
}

/// Copies the leading words of a tensor out: `words.len()` elements from the start.
///
/// # Errors
/// A tensor that is not u32, contiguous and at least as large as `words`; a device that fails.
pub fn read_words(tensor: &Tensor, words: &mut [u32]) -> Result<()> {
    const OP: &str = "read_words";
    #[cfg(feature = "cuda")]
    if let Storage::Cuda(storage) = &*tensor.storage_and_layout().0 {
        let range = copied::<u32>(OP, tensor, words.len())?;
        return cuda::to_host(OP, storage, range, words);
    }
    #[cfg(feature = "metal")]
    if let Storage::Metal(storage) = &*tensor.storage_and_layout().0 {
        let range = copied::<u32>(OP, tensor, words.len())?;
        return metal::to_host(OP, storage, range, words);
    }
    let view = View::new(OP, "tensor", tensor)?;
    let source = view.elements::<u32>()?;
    check(OP, "tensor", source.len() >= words.len(), || {
        (format!("at least {} elements", words.len()), source.len().to_string())
    })?;
    words.copy_from_slice(&source[..words.len()]);
    Ok(())
}

/// Copies `values` over the start of a tensor, as for the cosines and sines of a step.
///
/// # Errors
/// A tensor that is not f32, contiguous and at least as large as `values`; a device that fails.
pub fn write_rows(tensor: &Tensor, values: &[f32]) -> Result<()> {
    const OP: &str = "write_rows";
    #[cfg(feature = "cuda")]
    if tensor.device().is_cuda() {
        let range = copied::<f32>(OP, tensor, values.len())?;
        let (mut storage, _) = storage_mut(tensor);
        let Storage::Cuda(storage) = &mut *storage else {
            return Err(Error::Unsupported { op: OP, device: location(&storage) });
        };
        return cuda::from_host(OP, storage, range, values);
    }
    #[cfg(feature = "metal")]
    if tensor.device().is_metal() {
        let range = copied::<f32>(OP, tensor, values.len())?;
        let (mut storage, _) = storage_mut(tensor);
        let Storage::Metal(storage) = &mut *storage else {
            return Err(Error::Unsupported { op: OP, device: location(&storage) });
        };
        return metal::from_host(OP, storage, range, values);
    }
    write(OP, tensor, |target| {
        let len = target.len();
        check(OP, "tensor", len >= values.len(), || {
            (format!("at least {} elements", values.len()), len.to_string())
        })?;
        target[..values.len()].copy_from_slice(values);
        Ok(())
    })
}

/// Where the leading elements of a tensor are that are copied from or to the host.
#[cfg(any(feature = "cuda", feature = "metal"))]
fn copied<T: Element>(
    op: &'static str,
    tensor: &Tensor,
    len: usize,
) -> Result<std::ops::Range<usize>> {
    let (operand, found) = ("tensor", tensor.dtype());
    if found != T::DTYPE {
        return Err(Error::DType { op, operand, expected: T::DTYPE, found });
    }
    let range = bounds(op, operand, tensor.layout())?;
    check(op, operand, range.len() >= len, || {
        (format!("at least {len} elements"), range.len().to_string())
    })?;
    Ok(range.start..range.start + len)
}

/// What tensors of operands hold: numbers, or words whose bytes mean something to one operator.
pub(crate) trait Element: Sized {
    /// The tensor type.
    const DTYPE: DType;

    /// All elements of a storage, if they are of this type.
    fn of(storage: &CpuStorage) -> Option<&[Self]>;

    /// The same, to be written.
    fn of_mut(storage: &mut CpuStorage) -> Option<&mut [Self]>;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;

    fn of(storage: &CpuStorage) -> Option<&[Self]> {
        if let CpuStorage::F32(values) = storage { Some(values) } else { None }
    }

    fn of_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        if let CpuStorage::F32(values) = storage { Some(values) } else { None }
    }
}

impl Element for u32 {
    const DTYPE: DType = DType::U32;

    fn of(storage: &CpuStorage) -> Option<&[Self]> {
        if let CpuStorage::U32(values) = storage { Some(values) } else { None }
    }

    fn of_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        if let CpuStorage::U32(values) = storage { Some(values) } else { None }
    }
}

/// A tensor whose elements are being read; holds the storage's lock.
pub(crate) struct View<'a> {
    op: &'static str,
    operand: &'static str,
    storage: StorageRef<'a>,
    layout: &'a Layout,
}

impl<'a> View<'a> {
    pub(crate) fn new(op: &'static str, operand: &'static str, tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        Ok(Self { op, operand, storage, layout })
    }

    /// The elements, in row-major order.
    pub(crate) fn slice(&self) -> Result<&[f32]> {
        self.elements()
    }

    /// The elements of any type, in row-major order.
    pub(crate) fn elements<T: Element>(&self) -> Result<&[T]> {
        let storage = match &*self.storage {
            Storage::Cpu(storage) => storage,
            other => {
                return Err(Error::Unsupported { op: self.op, device: location(other) });
            }
        };
        let range = bounds(self.op, self.operand, self.layout)?;
        match T::of(storage) {
            Some(elements) => Ok(&elements[range]),
            None => Err(dtype::<T>(self.op, self.operand, storage)),
        }
    }
}

/// A tensor's storage, locked for writing, and where the tensor's elements lie in it.
///
/// Takes no memory, unlike the tensor library's in-place operations, which gather the dimensions of
/// a tensor into a vector to see whether its elements overlap: what writes checks for itself that
/// the layout is contiguous. A storage that is being read meanwhile is waited for.
pub fn storage_mut(tensor: &Tensor) -> (StorageMutRef<'_>, &Layout) {
    let (guard, layout) = tensor.storage_and_layout();
    let lock = StorageRef::rwlock(&guard);
    drop(guard);
    (lock.write(), layout)
}

/// Hands the elements of `out` to `body`, to be written.
///
/// The lock on its storage is held meanwhile: operands must be distinct, see [`distinct`].
pub(crate) fn write<T, F>(op: &'static str, out: &Tensor, body: F) -> Result<()>
where
    T: Element,
    F: FnOnce(&mut [T]) -> Result<()>,
{
    let (mut storage, layout) = storage_mut(out);
    let storage = match &mut *storage {
        Storage::Cpu(storage) => storage,
        other => return Err(Error::Unsupported { op, device: location(other) }),
    };
    let range = bounds(op, "out", layout)?;
    let found = BackendStorage::dtype(storage);
    match T::of_mut(storage) {
        Some(elements) => body(&mut elements[range]),
        None => Err(Error::DType { op, operand: "out", expected: T::DTYPE, found }),
    }
}

/// Refuses an operand that lives in the same allocation as the output: reading it while the
/// output is locked for writing would wait forever.
pub(crate) fn distinct(
    op: &'static str,
    out: &Tensor,
    inputs: &[(&'static str, &Tensor)],
) -> Result<()> {
    let target = address(out);
    match inputs.iter().find(|(_, tensor)| address(tensor) == target) {
        Some((operand, _)) => Err(Error::Aliased { op, operand }),
        None => Ok(()),
    }
}

/// Where the storage lies, as an identity.
fn address(tensor: &Tensor) -> *const Storage {
    let (storage, _) = tensor.storage_and_layout();
    &raw const *storage
}

/// `(capacity, dim)` of a tensor of rows, of which at least `rows` must exist.
pub(crate) fn rows_of(
    op: &'static str,
    operand: &'static str,
    tensor: &Tensor,
    rows: usize,
) -> Result<(usize, usize)> {
    match *tensor.dims() {
        [capacity, dim] if capacity >= rows => Ok((capacity, dim)),
        _ => Err(Error::Shape {
            op,
            operand,
            expected: format!("[at least {rows}, dim]"),
            found: format!("{:?}", tensor.dims()),
        }),
    }
}

/// Length of a tensor of one dimension.
pub(crate) fn vector_of(op: &'static str, operand: &'static str, tensor: &Tensor) -> Result<usize> {
    match *tensor.dims() {
        [dim] => Ok(dim),
        _ => Err(Error::Shape {
            op,
            operand,
            expected: "[dim]".to_owned(),
            found: format!("{:?}", tensor.dims()),
        }),
    }
}

/// Refuses a shape; `texts` makes what was expected and what was found.
pub(crate) fn check(
    op: &'static str,
    operand: &'static str,
    holds: bool,
    texts: impl FnOnce() -> (String, String),
) -> Result<()> {
    if holds {
        return Ok(());
    }
    let (expected, found) = texts();
    Err(Error::Shape { op, operand, expected, found })
}

/// Refuses a last dimension other than `expected`.
pub(crate) fn check_dim(
    op: &'static str,
    operand: &'static str,
    found: usize,
    expected: usize,
) -> Result<()> {
    check(op, operand, found == expected, || {
        (format!("[rows, {expected}]"), format!("[rows, {found}]"))
    })
}

/// Refuses a tensor with gaps before anything is written.
pub(crate) fn contiguous(op: &'static str, operand: &'static str, tensor: &Tensor) -> Result<()> {
    bounds(op, operand, tensor.layout()).map(drop)
}

/// Where the elements of a tensor lie in its storage; refuses gaps.
pub(crate) fn bounds(
    op: &'static str,
    operand: &'static str,
    layout: &Layout,
) -> Result<std::ops::Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => Err(Error::NotContiguous {
            op,
            operand,
            shape: layout.dims().to_vec(),
            strides: layout.stride().to_vec(),
        }),
    }
}

fn dtype<T: Element>(op: &'static str, operand: &'static str, storage: &CpuStorage) -> Error {
    Error::DType { op, operand, expected: T::DTYPE, found: BackendStorage::dtype(storage) }
}

/// The device of a storage.
pub(crate) fn location(storage: &Storage) -> DeviceLocation {
    storage.device().location()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn what_was_written_is_read_back() {
        let tensor = Tensor::zeros((3, 2), DType::F32, &Device::Cpu).unwrap();
        write_rows(&tensor, &[1.0, 2.0, 3.0]).unwrap();
        let mut values = [9.0; 4];
        read_rows(&tensor, &mut values).unwrap();
        assert_eq!(values, [1.0, 2.0, 3.0, 0.0]);
    }

    #[test]
    fn a_tensor_that_is_too_small_is_refused() {
        let tensor = Tensor::zeros((1, 2), DType::F32, &Device::Cpu).unwrap();
        let error = write_rows(&tensor, &[0.0; 3]).unwrap_err().to_string();
        assert_eq!(error, "write_rows: tensor must be at least 3 elements, found 2");
        assert!(read_rows(&tensor, &mut [0.0; 3]).is_err());
    }

    #[test]
    fn another_type_and_a_transposed_tensor_are_refused() {
        let ints = Tensor::zeros((2, 2), DType::U32, &Device::Cpu).unwrap();
        assert!(matches!(write_rows(&ints, &[0.0]), Err(Error::DType { .. })));
        assert!(matches!(read_rows(&ints, &mut [0.0]), Err(Error::DType { .. })));
        let turned = Tensor::zeros((3, 2), DType::F32, &Device::Cpu).unwrap().t().unwrap();
        assert!(matches!(write_rows(&turned, &[0.0]), Err(Error::NotContiguous { .. })));
        assert!(matches!(read_rows(&turned, &mut [0.0]), Err(Error::NotContiguous { .. })));
    }

    #[test]
    fn a_view_of_the_output_is_not_distinct_from_it() {
        let tensor = Tensor::zeros((4, 2), DType::F32, &Device::Cpu).unwrap();
        let view = tensor.narrow(0, 1, 2).unwrap();
        assert!(matches!(distinct("op", &tensor, &[("x", &view)]), Err(Error::Aliased { .. })));
        let other = Tensor::zeros((4, 2), DType::F32, &Device::Cpu).unwrap();
        assert!(distinct("op", &tensor, &[("x", &other)]).is_ok());
    }
}
