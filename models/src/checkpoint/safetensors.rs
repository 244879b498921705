//! The safetensors container: header of one file, and the index over the shards of a checkpoint.
//!
//! The `safetensors` crate parses and checks the header; here its refusals get the file and the
//! tensor, and its types our names.

use std::collections::BTreeMap;
use std::ops::Range;

use safetensors::tensor::{SafeTensorError, SafeTensors};
use serde_json::Value;

use super::config::excerpt;
use super::dtype::Dtype;
use crate::error::Error;

/// Most files of one checkpoint; the largest public ones have some hundreds.
const SHARDS_MAX: usize = 4096;

/// An entry of the header of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SafetensorsEntry {
    /// Name of the tensor.
    pub name: String,
    /// Shape, rows first.
    pub shape: Vec<usize>,
    /// Type of the elements.
    pub dtype: Dtype,
    /// Where the data lies in the file, and inside it.
    pub range: Range<usize>,
}

/// Reads the header of the safetensors file `bytes`, which messages call `file`. The entries are
/// in the order of their data, which they cover without gap or overlap.
///
/// # Errors
/// [`Error::Format`] with the place, what was expected there, and what was found.
pub fn parse(bytes: &[u8], file: &str) -> Result<Vec<SafetensorsEntry>, Error> {
    let (header_len, metadata) =
        SafeTensors::read_metadata(bytes).map_err(|error| refusal(bytes, file, error))?;
    let data = size_of::<u64>() + header_len;
    let mut entries = Vec::with_capacity(metadata.tensors().len());
    for (name, info) in metadata.tensors() {
        let Some(dtype) = dtype(info.dtype) else {
            let found = format!("{:?}", info.dtype);
            let expected = "a type of whole bytes";
            return Err(Error::format(file, format!("tensor {name}"), expected, found));
        };
        let (start, end) = info.data_offsets;
        let range = data + start..data + end;
        entries.push(SafetensorsEntry { name, shape: info.shape.clone(), dtype, range });
    }
    entries.sort_unstable_by(|a, b| (a.range.start, &a.name).cmp(&(b.range.start, &b.name)));
    Ok(entries)
}

/// Reads the text of `model.safetensors.index.json`: for each tensor, the file that holds it.
///
/// # Errors
/// [`Error::Format`] if there is no `weight_map`, or a file in it is not a plain file name: an
/// index may not reach outside of its directory.
pub fn parse_index(text: &str, file: &str) -> Result<BTreeMap<String, String>, Error> {
    let json: Value =
        serde_json::from_str(text).map_err(|error| Error::format(file, "index", "JSON", error))?;
    let Some(Value::Object(map)) = json.get("weight_map") else {
        return Err(Error::format(file, "weight_map", "an object", "none"));
    };
    let mut shards = std::collections::BTreeSet::new();
    let mut weight_map = BTreeMap::new();
    for (name, shard) in map {
        let place = || format!("weight_map of tensor {name}");
        let Value::String(shard) = shard else {
            return Err(Error::format(file, place(), "a file name", excerpt(shard)));
        };
        let plain = !shard.starts_with('.') && !shard.contains(['/', '\\', ':', '\0']);
        if !plain || !shard.ends_with(".safetensors") {
            let expected = "the plain name of a .safetensors file beside the index";
            return Err(Error::format(file, place(), expected, format!("{shard:?}")));
        }
        shards.insert(shard.as_str());
        if shards.len() > SHARDS_MAX {
            let expected = format!("at most {SHARDS_MAX} files");
            return Err(Error::format(file, "weight_map", expected, "more"));
        }
        weight_map.insert(name.clone(), shard.clone());
    }
    Ok(weight_map)
}

/// Our name of a type; `None` for those smaller than a byte and unknown ones.
fn dtype(dtype: safetensors::Dtype) -> Option<Dtype> {
    use safetensors::Dtype as Theirs;
    Some(match dtype {
        Theirs::F64 => Dtype::F64,
        Theirs::F32 => Dtype::F32,
        Theirs::F16 => Dtype::F16,
        Theirs::BF16 => Dtype::BF16,
        Theirs::F8_E4M3 => Dtype::F8_E4M3,
        Theirs::F8_E5M2 => Dtype::F8_E5M2,
        Theirs::F8_E8M0 => Dtype::F8_E8M0,
        Theirs::I64 => Dtype::I64,
        Theirs::I32 => Dtype::I32,
        Theirs::I16 => Dtype::I16,
        Theirs::I8 => Dtype::I8,
        Theirs::U64 => Dtype::U64,
        Theirs::U32 => Dtype::U32,
        Theirs::U16 => Dtype::U16,
        Theirs::U8 => Dtype::U8,
        Theirs::BOOL => Dtype::Bool,
        _ => return None,
    })
}

/// What the library refused, with what it does not say.
fn refusal(bytes: &[u8], file: &str, error: SafeTensorError) -> Error {
    let len = bytes.len();
    let header_len = bytes.first_chunk().map(|length| u64::from_le_bytes(*length));
    match error {
        SafeTensorError::HeaderTooSmall => {
            Error::format(file, "header", "its length in 8 bytes", format!("{len} bytes"))
        }
        SafeTensorError::HeaderTooLarge | SafeTensorError::InvalidHeaderLength => Error::format(
            file,
            "header",
            format!("a length up to 100000000 that the file's {len} bytes hold"),
            header_len.unwrap_or_default(),
        ),
        SafeTensorError::InvalidOffset(name) => Error::format(
            file,
            format!("tensor {name}"),
            "data that begins where that of the one before ends",
            "a gap, an overlap or an end before the beginning",
        ),
        SafeTensorError::MetadataIncompleteBuffer => Error::format(
            file,
            "data",
            "tensors that fill the file to its end",
            format!("another length than the file's {len} bytes"),
        ),
        SafeTensorError::TensorInvalidInfo | SafeTensorError::ValidationOverflow => {
            wrong_size(bytes, file).unwrap_or_else(|| {
                Error::format(file, "header", "sizes that fit shapes and types", error)
            })
        }
        other => Error::format(file, "header", "a JSON object of tensor infos", other),
    }
}

/// The first tensor whose data has not the size that its shape and type ask for.
fn wrong_size(bytes: &[u8], file: &str) -> Option<Error> {
    let header_len = usize::try_from(u64::from_le_bytes(*bytes.first_chunk()?)).ok()?;
    let header = bytes.get(size_of::<u64>()..)?.get(..header_len)?;
    let json: Value = serde_json::from_slice(header).ok()?;
    json.as_object()?.iter().filter(|(name, _)| *name != "__metadata__").find_map(|(name, info)| {
        let theirs: safetensors::Dtype = serde_json::from_value(info.get("dtype")?.clone()).ok()?;
        let shape: Vec<u64> = serde_json::from_value(info.get("shape")?.clone()).ok()?;
        let (start, end): (u64, u64) =
            serde_json::from_value(info.get("data_offsets")?.clone()).ok()?;
        let bits = shape
            .iter()
            .try_fold(1u64, |product, size| product.checked_mul(*size))
            .and_then(|elements| elements.checked_mul(theirs.bitsize() as u64));
        if bits.is_some_and(|bits| Some(bits / 8) == end.checked_sub(start)) {
            return None;
        }
        let size =
            bits.map_or("more than 2^64 bits".to_string(), |bits| format!("{} bytes", bits / 8));
        let expected = format!("{size} for {theirs:?} {shape:?}");
        let found = format!("{} bytes", end.saturating_sub(start));
        Some(Error::format(file, format!("tensor {name}"), expected, found))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    #[test]
    fn a_header_gives_the_place_of_each_tensor() {
        let header = r#"{"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},
            "a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
        let entries = parse(&file(header, 16), "x.safetensors").unwrap();
        let start = 8 + header.len();
        assert_eq!(entries[0].range, start..start + 4);
        assert_eq!((entries[1].name.as_str(), entries[1].dtype), ("b", Dtype::BF16));
        assert_eq!(entries[1].shape, [2, 3]);
    }

    #[test]
    fn a_shape_that_lies_names_the_tensor_and_both_sizes() {
        let header = r#"{"a":{"dtype":"F32","shape":[5],"data_offsets":[0,4]}}"#;
        let error = parse(&file(header, 4), "x.safetensors").unwrap_err().to_string();
        let expected = "x.safetensors: tensor a: expected 20 bytes for F32 [5], found 4 bytes";
        assert_eq!(error, expected);
    }

    #[test]
    fn a_truncated_file_is_refused() {
        let header = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
        let bytes = file(header, 4);
        for len in 0..bytes.len() {
            assert!(parse(&bytes[..len], "x").is_err());
        }
    }

    #[test]
    fn an_index_may_not_leave_its_directory() {
        let index = |shard: &str| {
            let json = serde_json::json!({"weight_map": {"a": shard}});
            parse_index(&json.to_string(), "index.json")
        };
        assert_eq!(index("model-1.safetensors").unwrap()["a"], "model-1.safetensors");
        for shard in
            ["../x.safetensors", "/x.safetensors", "a/x.safetensors", ".safetensors", "x.bin"]
        {
            let error = index(shard).unwrap_err().to_string();
            assert!(error.contains("tensor a") && error.contains(shard), "{error}");
        }
    }
}
