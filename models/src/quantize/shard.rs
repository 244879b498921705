//! A safetensors file that is written piece by piece: the header first, then data where it belongs.
//!
//! The library of the format wants all data at once; a shard is gigabytes.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::checkpoint::Dtype;
use crate::error::Error;

/// The header's length is rounded up to this, so that the data is aligned.
const HEADER_ALIGNMENT: usize = 8;

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TensorSpec {
    /// Name in the file.
    pub(super) name: String,
    /// Type.
    pub(super) dtype: Dtype,
    /// Shape, rows first.
    pub(super) shape: Vec<usize>,
}

impl TensorSpec {
    /// Bytes of its data.
    pub(super) fn bytes(&self) -> u64 {
        self.dtype.block_bytes() as u64
            * self.shape.iter().map(|size| *size as u64).product::<u64>()
    }
}

/// A file whose tensors are known and whose data is being filled in.
#[derive(Debug)]
pub(super) struct ShardWriter {
    path: PathBuf,
    file: File,
    /// Where the data of each tensor begins, in the order in which they were given.
    offsets: Vec<u64>,
}

impl ShardWriter {
    /// Creates the file and writes its header. Tensors of wide types come first, so that each is
    /// aligned to its type.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn create(path: &Path, tensors: &[TensorSpec]) -> Result<Self, Error> {
        let mut order: Vec<usize> = (0..tensors.len()).collect();
        order.sort_by_key(|index| std::cmp::Reverse(tensors[*index].dtype.block_bytes()));
        let mut header = Map::new();
        header.insert("__metadata__".into(), json!({"format": "mlx"}));
        let mut starts = vec![0; tensors.len()];
        let mut end = 0;
        for index in order {
            let tensor = &tensors[index];
            starts[index] = end;
            end += tensor.bytes();
            let entry = json!({
                "dtype": tensor.dtype.name(),
                "shape": tensor.shape,
                "data_offsets": [starts[index], end],
            });
            header.insert(tensor.name.clone(), entry);
        }
        let mut header = Value::Object(header).to_string();
        let padding = header.len().next_multiple_of(HEADER_ALIGNMENT) - header.len();
        header.extend(std::iter::repeat_n(' ', padding));

        let data = (size_of::<u64>() + header.len()) as u64;
        let mut file = File::create_new(path).map_err(Error::io(path))?;
        file.write_all(&(header.len() as u64).to_le_bytes())
            .and_then(|()| file.write_all(header.as_bytes()))
            .and_then(|()| file.set_len(data + end))
            .map_err(Error::io(path))?;
        let offsets = starts.into_iter().map(|start| data + start).collect();
        Ok(Self { path: path.to_path_buf(), file, offsets })
    }

    /// Writes `bytes` of the tensor of this index, `at` bytes after its beginning.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn write(&mut self, tensor: usize, at: u64, bytes: &[u8]) -> Result<(), Error> {
        self.file
            .seek(SeekFrom::Start(self.offsets[tensor] + at))
            .and_then(|_| self.file.write_all(bytes))
            .map_err(Error::io(&self.path))
    }

    /// Waits until all data is on disk.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn finish(self) -> Result<(), Error> {
        self.file.sync_all().map_err(Error::io(&self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::safetensors;

    #[test]
    fn what_is_written_in_any_order_is_read_back_aligned() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model.safetensors");
        let spec = |name: &str, dtype, shape: &[usize]| TensorSpec {
            name: name.into(),
            dtype,
            shape: shape.to_vec(),
        };
        let tensors = [
            spec("scales", Dtype::U8, &[3]),
            spec("norm", Dtype::BF16, &[3]),
            spec("codes", Dtype::U32, &[2, 1]),
        ];
        let mut shard = ShardWriter::create(&path, &tensors).unwrap();
        shard.write(2, 4, &[5, 6, 7, 8]).unwrap();
        shard.write(0, 0, b"xyz").unwrap();
        shard.write(1, 0, b"abcdef").unwrap();
        shard.write(2, 0, &[1, 2, 3, 4]).unwrap();
        shard.finish().unwrap();

        let bytes = std::fs::read(&path).unwrap();
        let entries = safetensors::parse(&bytes, "model.safetensors").unwrap();
        let data = |name: &str| {
            let entry = entries.iter().find(|entry| entry.name == name).unwrap();
            assert!(entry.range.start.is_multiple_of(entry.dtype.block_bytes()), "{entry:?}");
            &bytes[entry.range.clone()]
        };
        assert_eq!(data("codes"), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!((data("norm"), data("scales")), (&b"abcdef"[..], &b"xyz"[..]));
    }
}
