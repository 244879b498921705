//! One tensor of a checkpoint, as its bytes lie in the file: type, shape, rows.
//!
//! Rows are the unit here, since every packing keeps a row contiguous; values are decoded by
//! `gguf::blocks`. No copy is made before a caller asks for one.

use std::path::Path;

use super::dtype::Dtype;
use super::gguf::blocks;
use crate::error::Error;

/// Where the rows of a tensor lie in its file, when not in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowMap {
    /// Row `r` is row `r` of the file.
    Identity,
    /// Rows of each head are interleaved for a rotation of neighbouring pairs: the two halves
    /// `[0, head_dim / 2)` and `[head_dim / 2, head_dim)` alternate, as the GGUF converter stores
    /// the q and k projections of llama. Undone here, so that rope always rotates halves.
    InterleavedHeads {
        /// Rows of a head; even.
        head_dim: usize,
    },
}

impl RowMap {
    /// The row of the file that holds row `row` of the tensor.
    pub fn row_in_file(self, row: usize) -> usize {
        match self {
            RowMap::Identity => row,
            RowMap::InterleavedHeads { head_dim } => {
                let (head, within) = (row / head_dim, row % head_dim);
                let half = head_dim / 2;
                head * head_dim + 2 * (within % half) + within / half
            }
        }
    }
}

/// A tensor as it lies in a checkpoint.
///
/// Shapes are in the order of the model code, rows first: a linear layer is `[out, in]`. A tensor
/// of one dimension is one row, and of more than two, `[.., rows, elements]`, all rows in turn.
#[derive(Debug, Clone, Copy)]
pub struct TensorView<'a> {
    /// Canonical name, as in `transformers` checkpoints.
    pub name: &'a str,
    /// Name in the file.
    pub name_in_file: &'a str,
    /// Type of the elements.
    pub dtype: Dtype,
    /// Shape, rows first.
    pub shape: &'a [usize],
    /// All bytes, in the order of the file; use [`TensorView::row`] to honour `rows`.
    pub bytes: &'a [u8],
    /// The file it lies in.
    pub file: &'a Path,
    /// Order of the rows in the file.
    pub row_map: RowMap,
}

impl<'a> TensorView<'a> {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Number of rows: the product of all dimensions but the last. One for a vector, unless its
    /// elements are permuted: then each is a row of its own.
    pub fn rows(&self) -> usize {
        self.elements() / self.row_elements().max(1)
    }

    /// Elements of a row.
    pub fn row_elements(&self) -> usize {
        match (self.shape, self.row_map) {
            ([_], RowMap::InterleavedHeads { .. }) => 1,
            (shape, _) => shape.last().copied().unwrap_or(1),
        }
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.bytes.len() / self.rows().max(1)
    }

    /// Bytes of row `row`, which is below [`TensorView::rows`].
    pub fn row(&self, row: usize) -> &'a [u8] {
        let len = self.row_bytes();
        &self.bytes[self.row_map.row_in_file(row) * len..][..len]
    }

    /// Checks that the values can be decoded.
    ///
    /// # Errors
    /// [`Error::UnsupportedDtype`] naming tensor and type.
    pub fn expect_readable(&self) -> Result<(), Error> {
        if self.dtype.is_readable() {
            return Ok(());
        }
        Err(Error::UnsupportedDtype {
            file: self.file.display().to_string(),
            tensor: self.name.to_string(),
            found: self.dtype.name(),
            supported: Dtype::READABLE,
        })
    }

    /// All values in f32, row after row: the definition of what the tensor holds.
    ///
    /// # Errors
    /// [`Error::UnsupportedDtype`].
    pub fn to_f32(&self) -> Result<Vec<f32>, Error> {
        self.expect_readable()?;
        let mut values = vec![0.0; self.elements()];
        let row_elements = self.row_elements();
        for (row, out) in values.chunks_exact_mut(row_elements.max(1)).enumerate() {
            blocks::dequantize(self.dtype, self.row(row), out);
        }
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view<'a>(shape: &'a [usize], bytes: &'a [u8], row_map: RowMap) -> TensorView<'a> {
        let file = Path::new("test.gguf");
        TensorView { name: "t", name_in_file: "t", dtype: Dtype::F32, shape, bytes, file, row_map }
    }

    #[test]
    fn interleaved_heads_are_read_as_halves() {
        // The file alternates rows of the halves, 0 4 1 5 2 6 3 7: row 1 is its third.
        let map = RowMap::InterleavedHeads { head_dim: 8 };
        let rows: Vec<usize> = (0..10).map(|row| map.row_in_file(row)).collect();
        assert_eq!(rows, [0, 2, 4, 6, 1, 3, 5, 7, 8, 10]);

        let bytes: Vec<u8> = (0..8).flat_map(|value| (value as f32).to_le_bytes()).collect();
        let expected = [0.0, 2.0, 4.0, 6.0, 1.0, 3.0, 5.0, 7.0];
        assert_eq!(view(&[8, 1], &bytes, map).to_f32().unwrap(), expected);
        assert_eq!(view(&[8], &bytes, map).to_f32().unwrap(), expected);
    }
}
