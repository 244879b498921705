//! The tensor table of a GGUF file under canonical names, and the tensor that is configuration.

use super::names::Naming;
use super::{Gguf, GgufTensor, blocks};
use crate::checkpoint::dtype::Dtype;
use crate::checkpoint::tensor::RowMap;
use crate::checkpoint::{TensorEntry, TensorTable};
use crate::error::Error;

/// Divisors of the rotary frequencies, one for each pair of a head.
const ROPE_FREQS: &str = "rope_freqs.weight";

/// How the name of a tensor ends that has gate and up of all experts.
const FUSED_EXPERTS: &str = ".ffn_gate_up_exps.weight";

/// The shape that `transformers` has for a tensor of this name: the converter drops or keeps
/// dimensions of one.
fn canonical_shape(name: &str, shape: &[usize]) -> Vec<usize> {
    match shape {
        [hidden] if name.ends_with(".shared_expert_gate.weight") => vec![1, *hidden],
        [channels, 1, kernel] if name.ends_with(".conv1d.weight") => vec![*channels, *kernel],
        _ => shape.to_vec(),
    }
}

impl Gguf {
    /// The tensors under their canonical names, with the order of their rows.
    ///
    /// # Errors
    /// [`Error::Format`] if two tensors have the same meaning, or the rows of one cannot be put in
    /// order.
    pub(in crate::checkpoint) fn tensor_table(&self) -> Result<TensorTable, Error> {
        let naming = Naming {
            architecture: self.architecture()?,
            head_dim: self.head_dim()?.unwrap_or(0),
            layers: self.layers()?.unwrap_or(usize::MAX),
            fused_experts: self.tensors.iter().any(|tensor| tensor.name.ends_with(FUSED_EXPERTS)),
        };
        let mut table = TensorTable::new();
        for tensor in &self.tensors {
            let place = format!("tensor {}", tensor.name);
            let (name, row_map) = naming.canonical(&tensor.name);
            self.check_row_map(tensor, row_map, &place)?;
            let entry = TensorEntry {
                name_in_file: tensor.name.clone(),
                dtype: tensor.dtype,
                shape: canonical_shape(&name, &tensor.shape),
                file: 0,
                range: tensor.range.clone(),
                row_map,
            };
            if let Some(other) = table.insert(name, entry) {
                let found = format!("{} with the same meaning", other.name_in_file);
                return Err(Error::format(&self.file, place, "one tensor of a kind", found));
            }
        }
        Ok(table)
    }

    /// Rows of interleaved heads must be whole heads, or rows would be read that are not there.
    fn check_row_map(
        &self,
        tensor: &GgufTensor,
        row_map: RowMap,
        place: &str,
    ) -> Result<(), Error> {
        let RowMap::InterleavedHeads { head_dim } = row_map else { return Ok(()) };
        let rows = tensor.shape[0];
        let vector_of_blocks = tensor.shape.len() == 1 && tensor.dtype.is_quantized();
        let fits = head_dim > 0 && head_dim.is_multiple_of(2) && rows.is_multiple_of(head_dim);
        if fits && tensor.shape.len() <= 2 && !vector_of_blocks {
            return Ok(());
        }
        let expected = format!("rows of whole heads of {head_dim}, an even number");
        let found = format!("{} {:?}", tensor.dtype, tensor.shape);
        Err(Error::format(&self.file, place, expected, found))
    }

    /// The values of `rope_freqs.weight` in the file `bytes`, where it has that tensor.
    ///
    /// # Errors
    /// [`Error::Format`] if they are not f32, or too many.
    pub(in crate::checkpoint) fn rope_divisors(
        &self,
        bytes: &[u8],
    ) -> Result<Option<Vec<f32>>, Error> {
        let Some(tensor) = self.tensors.iter().find(|tensor| tensor.name == ROPE_FREQS) else {
            return Ok(None);
        };
        let count = self.head_dim()?.unwrap_or(0) / 2;
        if tensor.dtype != Dtype::F32 || tensor.shape.len() != 1 || tensor.shape[0] > count {
            let found = format!("{} {:?}", tensor.dtype, tensor.shape);
            let expected = format!("F32, at most {count} values: one for each pair of a head");
            return Err(Error::format(&self.file, format!("tensor {ROPE_FREQS}"), expected, found));
        }
        let mut divisors = vec![0.0; tensor.shape[0]];
        blocks::dequantize(Dtype::F32, &bytes[tensor.range.clone()], &mut divisors);
        Ok(Some(divisors))
    }
}
