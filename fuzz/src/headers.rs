//! Any bytes as the header of a checkpoint: parsed or refused, and what was parsed lies inside the
//! file.

use std::path::Path;

use sconce_models::checkpoint::gguf::Gguf;
use sconce_models::checkpoint::safetensors;

use crate::files;

const FIXTURES: &str = "models/tests/fixtures";

pub(crate) fn gguf(bytes: &[u8]) {
    let Ok(gguf) = Gguf::parse(bytes, "fuzz.gguf") else { return };
    for tensor in gguf.tensors() {
        assert!(tensor.range.end <= bytes.len(), "{} lies inside the file", tensor.name);
        let elements = tensor.shape.iter().product();
        assert_eq!(tensor.dtype.bytes(elements), Some(tensor.range.len()), "{}", tensor.name);
    }
}

pub(crate) fn gguf_seeds() -> Vec<Vec<u8>> {
    files(FIXTURES, |path| has_extension(path, "gguf"))
}

pub(crate) fn safetensors(bytes: &[u8]) {
    let Ok(entries) = safetensors::parse(bytes, "fuzz.safetensors") else { return };
    for tensor in entries {
        assert!(tensor.range.end <= bytes.len(), "{} lies inside the file", tensor.name);
        let elements = tensor.shape.iter().product();
        assert_eq!(tensor.dtype.bytes(elements), Some(tensor.range.len()), "{}", tensor.name);
    }
}

pub(crate) fn safetensors_seeds() -> Vec<Vec<u8>> {
    let header = |text: &str, data: usize| {
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(text.as_bytes());
        bytes.resize(bytes.len() + data, 0x3c);
        bytes
    };
    let mut seeds =
        files(&format!("{FIXTURES}/qwen3_f32"), |path| has_extension(path, "safetensors"));
    seeds.push(header(r#"{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}"#, 24));
    seeds.push(header(
        r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[],"data_offsets":[0,2]}}"#,
        2,
    ));
    seeds.push(header(r#"{"c":{"dtype":"F8_E4M3","shape":[0],"data_offsets":[0,0]}}"#, 0));
    seeds
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}
