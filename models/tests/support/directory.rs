//! Hugging Face directories made of tensors given in a test.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::HashMap;

use safetensors::tensor::{Dtype, TensorView, serialize};
use sconce_models::Checkpoint;
use serde_json::Value;
use tempfile::TempDir;

/// A tensor to write: name, type, shape, bytes.
pub(crate) type Entry = (String, Dtype, Vec<usize>, Vec<u8>);

/// A tensor whose bytes count up from 0, again and again.
pub(crate) fn counted(name: &str, dtype: Dtype, shape: &[usize]) -> Entry {
    let len = shape.iter().product::<usize>() * dtype.bitsize() / 8;
    (name.to_string(), dtype, shape.to_vec(), (0..len).map(|byte| byte as u8).collect())
}

/// A tensor of f32 numbers.
pub(crate) fn numbers(name: &str, shape: &[usize], values: &[f32]) -> Entry {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    (name.to_string(), Dtype::F32, shape.to_vec(), bytes)
}

/// A directory with `config` and these tensors.
pub(crate) fn write(config: &Value, tensors: &[Entry]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
    let views: HashMap<&str, TensorView<'_>> = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| {
            (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        })
        .collect();
    let file = directory.path().join("model.safetensors");
    std::fs::write(file, serialize(views, None).unwrap()).unwrap();
    directory
}

/// Opens such a directory.
pub(crate) fn open(config: &Value, tensors: &[Entry]) -> Checkpoint {
    Checkpoint::open(write(config, tensors).path()).unwrap()
}
