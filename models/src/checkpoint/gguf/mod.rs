//! The GGUF container, versions 2 and 3: header, metadata, tensor table.
//!
//! Parsing gives plain data with offsets and borrows nothing, so it runs on a mapped file and on
//! any bytes alike. It trusts none of them: every count and length is checked against what is left
//! of the file before memory is taken for it. Format: `docs/gguf.md` of the ggml project.

pub mod blocks;
mod config;
mod metadata;
mod names;
mod reader;
mod table;
mod tokenizer;

use std::collections::{HashMap, HashSet};
use std::ops::Range;

pub use metadata::{MetadataArray, MetadataValue};

use super::dtype::Dtype;
use crate::error::Error;
use reader::{NAME_BYTES_MAX, Reader};

/// First bytes of every GGUF file.
pub const MAGIC: [u8; 4] = *b"GGUF";

/// Alignment of tensor data where the file names none.
const ALIGNMENT_DEFAULT: usize = 32;

/// Largest alignment accepted; beyond a huge page it could only waste.
const ALIGNMENT_MAX: usize = 2 << 20;

/// Most dimensions of a tensor.
const DIMENSIONS_MAX: usize = 4;

/// Most tensors of a file; a mixture of experts with a file entry for each expert has some 50,000.
const TENSORS_MAX: usize = 1 << 18;

/// Fewest bytes of a tensor info: name length, number of dimensions, one of them, type, offset.
const TENSOR_INFO_BYTES_MIN: usize = 8 + 4 + 8 + 4 + 8;

/// A parsed GGUF header.
#[derive(Debug, Clone)]
pub struct Gguf {
    file: String,
    version: u32,
    keys: Vec<String>,
    values: HashMap<String, MetadataValue>,
    tensors: Vec<GgufTensor>,
}

/// An entry of the tensor table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensor {
    /// Name in the file.
    pub name: String,
    /// Shape, rows first; the file lists the dimensions the other way round.
    pub shape: Vec<usize>,
    /// Type of the elements.
    pub dtype: Dtype,
    /// Where the data lies in the file; inside it, and disjoint from that of the other tensors.
    pub range: Range<usize>,
}

impl Gguf {
    /// Parses the header of the GGUF file `bytes`, which messages call `file`.
    ///
    /// Memory taken is at most a small multiple of the header's length.
    ///
    /// # Errors
    /// [`Error::Format`] with the place, what was expected there, and what was found.
    pub fn parse(bytes: &[u8], file: &str) -> Result<Gguf, Error> {
        let mut reader = Reader::new(bytes, file);
        let version = version(&mut reader)?;
        let tensor_count = reader.count(TENSOR_INFO_BYTES_MIN, "tensor count")?;
        let (keys, values) = metadata::read(&mut reader)?;
        let mut gguf = Gguf { file: file.to_string(), version, keys, values, tensors: Vec::new() };
        gguf.refuse_splits()?;
        let alignment = gguf.alignment()?;
        gguf.tensors = tensors(&mut reader, tensor_count, alignment, bytes.len())?;
        Ok(gguf)
    }

    /// Version of the format, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Metadata in the order of the file.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, &MetadataValue)> {
        self.keys.iter().map(|key| (key.as_str(), &self.values[key]))
    }

    /// The value under `key`.
    pub fn value(&self, key: &str) -> Option<&MetadataValue> {
        self.values.get(key)
    }

    /// Tensor table in the order of the file.
    pub fn tensors(&self) -> &[GgufTensor] {
        &self.tensors
    }

    /// `general.architecture`, as the converter names it.
    ///
    /// # Errors
    /// [`Error::Config`] if it is missing.
    pub fn architecture(&self) -> Result<&str, Error> {
        self.string("general.architecture")?
            .ok_or_else(|| self.error("general.architecture", "a string", "nothing"))
    }

    /// The string under `key`.
    ///
    /// # Errors
    /// [`Error::Config`] if it is of another type.
    pub fn string(&self, key: &str) -> Result<Option<&str>, Error> {
        match self.value(key) {
            None => Ok(None),
            Some(MetadataValue::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.error(key, "a string", other)),
        }
    }

    /// The flag under `key`.
    ///
    /// # Errors
    /// [`Error::Config`] if it is of another type.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, Error> {
        match self.value(key) {
            None => Ok(None),
            Some(MetadataValue::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.error(key, "a bool", other)),
        }
    }

    /// The non-negative integer under `key`.
    ///
    /// # Errors
    /// [`Error::Config`] if it is of another type or does not fit.
    pub fn unsigned<T: TryFrom<i128>>(&self, key: &str) -> Result<Option<T>, Error> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match value {
            MetadataValue::Integer(integer) if *integer >= 0 => T::try_from(*integer).ok(),
            _ => None,
        }
        .map(Some)
        .ok_or_else(|| self.error(key, "a non-negative integer in range", value))
    }

    /// An error about the metadata under `key`.
    pub(super) fn error(&self, key: &str, expected: &str, found: impl ToString) -> Error {
        Error::Config {
            file: self.file.clone(),
            key: key.to_string(),
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    fn alignment(&self) -> Result<usize, Error> {
        const KEY: &str = "general.alignment";
        match self.unsigned::<usize>(KEY)? {
            None => Ok(ALIGNMENT_DEFAULT),
            Some(alignment) if alignment.is_power_of_two() && alignment <= ALIGNMENT_MAX => {
                Ok(alignment)
            }
            Some(other) => Err(self.error(KEY, "a power of two up to 2097152", other)),
        }
    }

    fn refuse_splits(&self) -> Result<(), Error> {
        const KEY: &str = "split.count";
        match self.unsigned::<u64>(KEY)? {
            Some(count) if count > 1 => {
                Err(self.error(KEY, "a whole model in one file (merge the splits first)", count))
            }
            _ => Ok(()),
        }
    }
}

fn version(reader: &mut Reader<'_>) -> Result<u32, Error> {
    let magic: [u8; 4] = reader.array("magic")?;
    if magic != MAGIC {
        return Err(reader.error("magic", "GGUF", magic.escape_ascii()));
    }
    match reader.u32("version")? {
        version @ (2 | 3) => Ok(version),
        other if matches!(other.swap_bytes(), 1..=0xffff) => Err(reader.error(
            "version",
            "a little-endian file (big-endian tensors would have to be swapped element by element)",
            format!("version {} in big-endian order", other.swap_bytes()),
        )),
        other => Err(reader.error("version", "2 or 3", other)),
    }
}

fn tensors(
    reader: &mut Reader<'_>,
    count: usize,
    alignment: usize,
    file_len: usize,
) -> Result<Vec<GgufTensor>, Error> {
    if count > TENSORS_MAX {
        return Err(reader.error("tensor count", format!("at most {TENSORS_MAX}"), count));
    }
    let mut infos = Vec::new();
    let mut names = HashSet::new();
    for index in 0..count {
        let name = reader.string(NAME_BYTES_MAX, &format!("name of tensor {index}"))?;
        let place = format!("tensor {name}");
        if !names.insert(name) {
            return Err(reader.error(&place, "each tensor once", "it twice"));
        }
        infos.push(tensor_info(reader, name, &place)?);
    }
    let data = reader.position().next_multiple_of(alignment);
    for (info, offset) in &mut infos {
        place_data(reader, info, *offset, alignment, data..file_len)?;
    }
    let tensors: Vec<GgufTensor> = infos.into_iter().map(|(info, _)| info).collect();
    refuse_overlaps(reader, &tensors)?;
    Ok(tensors)
}

/// Name, shape and type, with the length of the data in `range`, and the offset of the data.
fn tensor_info(
    reader: &mut Reader<'_>,
    name: &str,
    place: &str,
) -> Result<(GgufTensor, u64), Error> {
    let dimensions = reader.u32(place)? as usize;
    if !(1..=DIMENSIONS_MAX).contains(&dimensions) {
        let expected = format!("1 to {DIMENSIONS_MAX} dimensions");
        return Err(reader.error(place, expected, dimensions));
    }
    let mut shape = Vec::with_capacity(dimensions);
    for _ in 0..dimensions {
        let size = reader.u64(place)?;
        match usize::try_from(size) {
            Ok(size) if size > 0 => shape.push(size),
            _ => return Err(reader.error(place, "dimensions of at least 1", size)),
        }
    }
    shape.reverse();
    let id = reader.u32(place)?;
    let Some(dtype) = Dtype::from_ggml(id) else {
        return Err(reader.error(place, "a known tensor type", format!("type number {id}")));
    };
    let row = shape[dimensions - 1];
    if row % dtype.block_elements() != 0 {
        let expected = format!("rows of whole {dtype} blocks of {}", dtype.block_elements());
        return Err(reader.error(place, expected, format!("rows of {row} elements")));
    }
    let elements = shape.iter().try_fold(1usize, |product, size| product.checked_mul(*size));
    let Some(len) = elements.and_then(|elements| dtype.bytes(elements)) else {
        return Err(reader.error(place, "a size below 2^64 bytes", format!("shape {shape:?}")));
    };
    let offset = reader.u64(place)?;
    Ok((GgufTensor { name: name.to_string(), shape, dtype, range: 0..len }, offset))
}

/// Moves `info.range` to its place in the file, `data` being where tensor data may lie.
fn place_data(
    reader: &Reader<'_>,
    info: &mut GgufTensor,
    offset: u64,
    alignment: usize,
    data: Range<usize>,
) -> Result<(), Error> {
    let place = format!("tensor {}", info.name);
    let len = info.range.len();
    if !offset.is_multiple_of(alignment as u64) {
        return Err(reader.error(&place, format!("an offset divisible by {alignment}"), offset));
    }
    let start = usize::try_from(offset).ok().and_then(|offset| data.start.checked_add(offset));
    let range = start.and_then(|start| Some(start..start.checked_add(len)?));
    match range {
        Some(range) if range.end <= data.end => {
            info.range = range;
            Ok(())
        }
        _ => {
            let expected = format!(
                "{len} bytes of {} {:?} at offset {offset} of the data",
                info.dtype, info.shape
            );
            let have = data.end.saturating_sub(data.start);
            Err(reader.error(&place, expected, format!("{have} bytes of data in the file")))
        }
    }
}

/// Tensors that share bytes would let a small file ask for much memory.
fn refuse_overlaps(reader: &Reader<'_>, tensors: &[GgufTensor]) -> Result<(), Error> {
    let mut order: Vec<&GgufTensor> = tensors.iter().collect();
    order.sort_unstable_by_key(|tensor| tensor.range.start);
    for pair in order.windows(2) {
        if pair[0].range.end > pair[1].range.start {
            let expected = format!("data after that of {}", pair[0].name);
            let found = format!("an overlap at offset {} of the file", pair[1].range.start);
            return Err(reader.error(&format!("tensor {}", pair[1].name), expected, found));
        }
    }
    Ok(())
}
