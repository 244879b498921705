//! The metadata of a GGUF file: typed values under dotted keys.

use std::collections::HashMap;

use super::reader::{NAME_BYTES_MAX, Reader};
use crate::error::Error;

/// Deepest nesting of arrays; converters write none deeper than one.
const ARRAY_DEPTH_MAX: usize = 4;

/// Most metadata entries; real files have some dozens.
const ENTRIES_MAX: usize = 1 << 16;

/// Elements a list is given room for before they are read; beyond, it grows as they come.
const CAPACITY_MAX: usize = 64;

/// Fewest bytes of a metadata entry: key length, one byte of key, type, one byte of value.
const ENTRY_BYTES_MIN: usize = 8 + 1 + 4 + 1;

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum MetadataValue {
    /// Any of the integer types; all fit.
    Integer(i128),
    /// `f32` or `f64`.
    Float(f64),
    /// `bool`.
    Bool(bool),
    /// `string`.
    String(String),
    /// `array` of any of the types.
    Array(MetadataArray),
}

/// An array of metadata values, in as little memory as its elements need.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "the names are the types'")]
pub enum MetadataArray {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
    Bool(Vec<bool>),
    String(Vec<String>),
    Array(Vec<MetadataArray>),
}

impl MetadataArray {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            MetadataArray::U8(list) => list.len(),
            MetadataArray::I8(list) => list.len(),
            MetadataArray::U16(list) => list.len(),
            MetadataArray::I16(list) => list.len(),
            MetadataArray::U32(list) => list.len(),
            MetadataArray::I32(list) => list.len(),
            MetadataArray::F32(list) => list.len(),
            MetadataArray::U64(list) => list.len(),
            MetadataArray::I64(list) => list.len(),
            MetadataArray::F64(list) => list.len(),
            MetadataArray::Bool(list) => list.len(),
            MetadataArray::String(list) => list.len(),
            MetadataArray::Array(list) => list.len(),
        }
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements, if they are integers.
    pub fn integers(&self) -> Option<Vec<i128>> {
        Some(match self {
            MetadataArray::U8(list) => list.iter().map(|value| i128::from(*value)).collect(),
            MetadataArray::I8(list) => list.iter().map(|value| i128::from(*value)).collect(),
            MetadataArray::U16(list) => list.iter().map(|value| i128::from(*value)).collect(),
            MetadataArray::I16(list) => list.iter().map(|value| i128::from(*value)).collect(),
            MetadataArray::U32(list) => list.iter().map(|value| i128::from(*value)).collect(),
            MetadataArray::I32(list) => list.iter().map(|value| i128::from(*value)).collect(),
            MetadataArray::U64(list) => list.iter().map(|value| i128::from(*value)).collect(),
            MetadataArray::I64(list) => list.iter().map(|value| i128::from(*value)).collect(),
            _ => return None,
        })
    }
}

impl std::fmt::Display for MetadataValue {
    /// The value, short: long strings are cut, arrays only counted.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const CHARS_MAX: usize = 80;
        match self {
            MetadataValue::Integer(value) => write!(f, "{value}"),
            MetadataValue::Float(value) => write!(f, "{value}"),
            MetadataValue::Bool(value) => write!(f, "{value}"),
            MetadataValue::String(text) => match text.char_indices().nth(CHARS_MAX) {
                Some((end, _)) => write!(f, "{:?}...", &text[..end]),
                None => write!(f, "{text:?}"),
            },
            MetadataValue::Array(array) => write!(f, "[{} values]", array.len()),
        }
    }
}

/// Keys in the order of the file, and values by key.
pub(super) type Entries = (Vec<String>, HashMap<String, MetadataValue>);

/// Reads the number of entries and the entries; keys are unique.
pub(super) fn read(reader: &mut Reader<'_>) -> Result<Entries, Error> {
    let count = reader.count(ENTRY_BYTES_MIN, "metadata count")?;
    if count > ENTRIES_MAX {
        return Err(reader.error("metadata count", format!("at most {ENTRIES_MAX}"), count));
    }
    let mut keys = Vec::with_capacity(count.min(CAPACITY_MAX));
    let mut values = HashMap::with_capacity(count.min(CAPACITY_MAX));
    for index in 0..count {
        let key = reader.string(NAME_BYTES_MAX, &format!("metadata key {index}"))?;
        let place = format!("metadata {key}");
        let kind = reader.u32(&place)?;
        let value = value(reader, kind, &place)?;
        if values.insert(key.to_string(), value).is_some() {
            return Err(reader.error(&place, "each key once", "it twice"));
        }
        keys.push(key.to_string());
    }
    Ok((keys, values))
}

fn value(reader: &mut Reader<'_>, kind: u32, place: &str) -> Result<MetadataValue, Error> {
    use MetadataValue::{Array, Bool, Float, Integer};
    Ok(match kind {
        0 => Integer(u8::from_le_bytes(reader.array(place)?).into()),
        1 => Integer(i8::from_le_bytes(reader.array(place)?).into()),
        2 => Integer(u16::from_le_bytes(reader.array(place)?).into()),
        3 => Integer(i16::from_le_bytes(reader.array(place)?).into()),
        4 => Integer(u32::from_le_bytes(reader.array(place)?).into()),
        5 => Integer(i32::from_le_bytes(reader.array(place)?).into()),
        6 => Float(f32::from_le_bytes(reader.array(place)?).into()),
        7 => match reader.array::<1>(place)? {
            [byte @ (0 | 1)] => Bool(byte == 1),
            [byte] => return Err(reader.error(place, "a bool, 0 or 1", byte)),
        },
        8 => MetadataValue::String(reader.string(usize::MAX, place)?.to_string()),
        9 => Array(array(reader, place, 1)?),
        10 => Integer(u64::from_le_bytes(reader.array(place)?).into()),
        11 => Integer(i64::from_le_bytes(reader.array(place)?).into()),
        12 => Float(f64::from_le_bytes(reader.array(place)?)),
        other => return Err(reader.error(place, "a value type from 0 to 12", other)),
    })
}

fn array(reader: &mut Reader<'_>, place: &str, depth: usize) -> Result<MetadataArray, Error> {
    if depth > ARRAY_DEPTH_MAX {
        let expected = format!("arrays nested at most {ARRAY_DEPTH_MAX} deep");
        return Err(reader.error(place, expected, "a deeper one"));
    }
    let kind = reader.u32(place)?;
    Ok(match kind {
        0 => MetadataArray::U8(numbers(reader, place, u8::from_le_bytes)?),
        1 => MetadataArray::I8(numbers(reader, place, i8::from_le_bytes)?),
        2 => MetadataArray::U16(numbers(reader, place, u16::from_le_bytes)?),
        3 => MetadataArray::I16(numbers(reader, place, i16::from_le_bytes)?),
        4 => MetadataArray::U32(numbers(reader, place, u32::from_le_bytes)?),
        5 => MetadataArray::I32(numbers(reader, place, i32::from_le_bytes)?),
        6 => MetadataArray::F32(numbers(reader, place, f32::from_le_bytes)?),
        7 => MetadataArray::Bool(numbers(reader, place, |[byte]: [u8; 1]| byte != 0)?),
        8 => {
            let count = reader.count(size_of::<u64>(), place)?;
            let mut list = Vec::with_capacity(count.min(CAPACITY_MAX));
            for _ in 0..count {
                list.push(reader.string(usize::MAX, place)?.to_string());
            }
            MetadataArray::String(list)
        }
        9 => {
            // An inner array is at least its type and its count.
            let count = reader.count(size_of::<u32>() + size_of::<u64>(), place)?;
            let mut list = Vec::with_capacity(count.min(CAPACITY_MAX));
            for _ in 0..count {
                list.push(array(reader, place, depth + 1)?);
            }
            MetadataArray::Array(list)
        }
        10 => MetadataArray::U64(numbers(reader, place, u64::from_le_bytes)?),
        11 => MetadataArray::I64(numbers(reader, place, i64::from_le_bytes)?),
        12 => MetadataArray::F64(numbers(reader, place, f64::from_le_bytes)?),
        other => return Err(reader.error(place, "an element type from 0 to 12", other)),
    })
}

fn numbers<T, const N: usize>(
    reader: &mut Reader<'_>,
    place: &str,
    decode: impl Fn([u8; N]) -> T,
) -> Result<Vec<T>, Error> {
    let count = reader.count(N, place)?;
    let bytes = reader.take(count * N, place)?;
    let (chunks, _) = bytes.as_chunks::<N>();
    Ok(chunks.iter().map(|chunk| decode(*chunk)).collect())
}
