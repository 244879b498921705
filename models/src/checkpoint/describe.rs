//! What is in a checkpoint, for people: formats, types, tensors, metadata.

use std::collections::BTreeMap;

use super::{Checkpoint, Dtype, Format, RowMap};
use crate::error::Error;

/// What a checkpoint holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Description {
    /// Container: `GGUF v3` or `safetensors`.
    pub format: String,
    /// `model_type`.
    pub architecture: String,
    /// Elements of all tensors.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Types, the one with most bytes first.
    pub dtypes: Vec<DtypeShare>,
    /// Tensors, in order of name.
    pub tensors: Vec<TensorSummary>,
    /// Keys and short values: GGUF metadata in the order of the file, or `config.json`.
    pub metadata: Vec<(String, String)>,
}

/// How much of a checkpoint is of one type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DtypeShare {
    /// The type.
    pub dtype: Dtype,
    /// Tensors of the type.
    pub tensors: usize,
    /// Their elements.
    pub elements: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A line of the tensor table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSummary {
    /// Canonical name.
    pub name: String,
    /// Name in the file.
    pub name_in_file: String,
    /// Type.
    pub dtype: Dtype,
    /// Shape, rows first.
    pub shape: Vec<usize>,
    /// Bytes in the file.
    pub bytes: u64,
    /// Whether the file has its rows in another order.
    pub reordered: bool,
    /// The file's name, without its directory.
    pub file: String,
}

impl Checkpoint {
    /// Lists what the checkpoint holds, also where nothing here could load it.
    ///
    /// # Errors
    /// [`Error::Config`] if it does not say what architecture it is of.
    pub fn describe(&self) -> Result<Description, Error> {
        let format = match &self.format {
            Format::Gguf(gguf) => format!("GGUF v{}", gguf.version()),
            Format::HuggingFace(_) => "safetensors".to_string(),
        };
        Ok(Description {
            format,
            architecture: self.config.model_type()?.to_string(),
            parameters: self.parameters(),
            bytes: self.bytes(),
            dtypes: self.dtypes(),
            tensors: self.tensor_summaries(),
            metadata: self.metadata(),
        })
    }

    /// The types of the tensors, the one with most bytes first.
    pub fn dtypes(&self) -> Vec<DtypeShare> {
        let mut shares = BTreeMap::new();
        for tensor in self.tensors() {
            let dtype = tensor.dtype;
            let empty = DtypeShare { dtype, tensors: 0, elements: 0, bytes: 0 };
            let share = shares.entry(dtype).or_insert(empty);
            share.tensors += 1;
            share.elements += tensor.elements() as u64;
            share.bytes += tensor.bytes.len() as u64;
        }
        let mut shares: Vec<DtypeShare> = shares.into_values().collect();
        shares.sort_by_key(|share| std::cmp::Reverse(share.bytes));
        shares
    }

    fn tensor_summaries(&self) -> Vec<TensorSummary> {
        let summary = |tensor: super::TensorView<'_>| TensorSummary {
            name: tensor.name.to_string(),
            name_in_file: tensor.name_in_file.to_string(),
            dtype: tensor.dtype,
            shape: tensor.shape.to_vec(),
            bytes: tensor.bytes.len() as u64,
            reordered: tensor.row_map != RowMap::Identity,
            file: tensor.file.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        };
        self.tensors().map(summary).collect()
    }

    fn metadata(&self) -> Vec<(String, String)> {
        match &self.format {
            Format::Gguf(gguf) => {
                gguf.metadata().map(|(key, value)| (key.to_string(), value.to_string())).collect()
            }
            Format::HuggingFace(_) => {
                let short = super::config::excerpt;
                self.config
                    .values()
                    .iter()
                    .map(|(key, value)| (key.clone(), short(value)))
                    .collect()
            }
        }
    }
}
