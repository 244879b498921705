//! What is in a checkpoint, for people: container, packings, weights, metadata.

use std::collections::BTreeMap;

use super::{Checkpoint, Format, RowMap, TensorEntry, Weight};
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
    /// Packings, the one with most bytes first.
    pub formats: Vec<FormatShare>,
    /// Weights, in order of name.
    pub weights: Vec<WeightSummary>,
    /// Keys and short values: GGUF metadata in the order of the file, or `config.json`.
    pub metadata: Vec<(String, String)>,
}

/// How much of a checkpoint is packed in one way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormatShare {
    /// The packing, such as `BF16`, `Q4_K` or `affine 4-bit g64`.
    pub format: String,
    /// Weights that are packed so.
    pub weights: usize,
    /// Their elements.
    pub elements: u64,
    /// Their bytes, scales included.
    pub bytes: u64,
}

/// A line of the table of weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightSummary {
    /// Canonical name.
    pub name: String,
    /// Name in the file; that of its codes, where it consists of several tensors.
    pub name_in_file: String,
    /// The packing.
    pub format: String,
    /// Shape as a model sees it, rows first.
    pub shape: Vec<usize>,
    /// Bytes in the file, scales included.
    pub bytes: u64,
    /// Whether the file has its rows in another order.
    pub reordered: bool,
    /// The file's name, without its directory.
    pub file: String,
}

impl WeightSummary {
    fn elements(&self) -> u64 {
        self.shape.iter().product::<usize>() as u64
    }
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
            Format::Random(_) => "none".to_string(),
        };
        let weights = self.weight_summaries();
        Ok(Description {
            format,
            architecture: self.config.model_type()?.to_string(),
            parameters: self.parameters(),
            bytes: self.bytes(),
            formats: formats(&weights),
            weights,
            metadata: self.metadata(),
        })
    }

    fn weight_summaries(&self) -> Vec<WeightSummary> {
        let entries = self.tensors.iter().filter(|(name, _)| self.whole_of(name).is_none());
        entries.map(|(name, entry)| self.weight_summary(name, entry)).collect()
    }

    /// The weight, or where its tensors do not make one, the tensor that it would be.
    fn weight_summary(&self, name: &str, entry: &TensorEntry) -> WeightSummary {
        let weight =
            self.weight(name).unwrap_or_else(|_| Weight::of_tensor(self.view(name, entry)));
        WeightSummary {
            name: name.to_string(),
            name_in_file: entry.name_in_file.clone(),
            format: weight.format_name(),
            shape: weight.shape().to_vec(),
            bytes: weight.bytes_in_file(),
            reordered: entry.row_map != RowMap::Identity,
            file: weight.file().file_name().unwrap_or_default().to_string_lossy().into_owned(),
        }
    }

    fn metadata(&self) -> Vec<(String, String)> {
        match &self.format {
            Format::Gguf(gguf) => {
                gguf.metadata().map(|(key, value)| (key.to_string(), value.to_string())).collect()
            }
            Format::HuggingFace(_) | Format::Random(_) => {
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

/// How much of the weights is packed in which way, most bytes first.
fn formats(weights: &[WeightSummary]) -> Vec<FormatShare> {
    let mut shares = BTreeMap::new();
    for weight in weights {
        let format = weight.format.clone();
        let empty = FormatShare { format, weights: 0, elements: 0, bytes: 0 };
        let share = shares.entry(&weight.format).or_insert(empty);
        share.weights += 1;
        share.elements += weight.elements();
        share.bytes += weight.bytes;
    }
    let mut shares: Vec<FormatShare> = shares.into_values().collect();
    shares.sort_by_key(|share| std::cmp::Reverse(share.bytes));
    shares
}
