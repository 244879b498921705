//! Dense weights on their way into quantized ones: several tensors after one another, transposed
//! blocks, or a vector with one added. What of a checkpoint becomes what is said in `layout.rs`.

use sconce_kernels::{DenseRows, DenseType};

use crate::checkpoint::{Checkpoint, DenseWeight, Dtype, MatrixRows, RowSelection, Weight};
use crate::error::Error;

/// Types of full precision. FP8 weights can be read as plain numbers too, and are none.
const PLAIN: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::BF16];

/// How the rows of a weight are made from those of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Recipe {
    /// The selected rows of one tensor after those of another, such as experts stored one by one.
    Rows(Vec<(String, RowSelection)>),
    /// The values of a tensor plus one.
    PlusOne(String),
    /// The selected rows of a tensor in blocks of `block`, each block transposed.
    Transposed { name: String, selection: RowSelection, block: usize },
}

impl Recipe {
    /// All of one tensor.
    pub(super) fn tensor(name: &str) -> Recipe {
        Recipe::Rows(vec![(name.to_string(), RowSelection::all())])
    }

    /// The rows, ready to be read; only [`Recipe::Transposed`] holds them in memory.
    ///
    /// # Errors
    /// A tensor that is missing, is quantized already or has no readable type; tensors of one
    /// weight that differ in type or columns.
    pub(super) fn open<'a>(
        &self,
        checkpoint: &'a Checkpoint,
    ) -> Result<Box<dyn DenseRows + 'a>, Error> {
        Ok(match self {
            Recipe::Rows(parts) => Box::new(StackedRows::open(checkpoint, parts)?),
            Recipe::PlusOne(name) => {
                Box::new(PlusOne(dense(checkpoint, name, RowSelection::all())?))
            }
            Recipe::Transposed { name, selection, block } => {
                let rows = dense(checkpoint, name, selection.clone())?;
                Box::new(InMemory::transposed(&rows, *block))
            }
        })
    }

    /// The type of its values.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub(super) fn dense_type(&self, checkpoint: &Checkpoint) -> Result<DenseType, Error> {
        Ok(match self {
            Recipe::Rows(parts) => StackedRows::open(checkpoint, parts)?.format(),
            Recipe::PlusOne(name) => dense(checkpoint, name, RowSelection::all())?.format(),
            Recipe::Transposed { name, selection, .. } => {
                dense(checkpoint, name, selection.clone())?.format()
            }
        })
    }
}

/// Rows of plain numbers of a tensor.
///
/// # Errors
/// [`Error::AlreadyQuantized`] for anything else, besides those of reading.
pub(super) fn dense<'a>(
    checkpoint: &'a Checkpoint,
    name: &str,
    selection: RowSelection,
) -> Result<DenseWeight<'a>, Error> {
    let weight = checkpoint.weight(name)?;
    match weight.matrix_rows(selection)? {
        MatrixRows::Dense(rows) if is_plain(&weight) => Ok(rows),
        _ => Err(already_quantized(&weight)),
    }
}

/// Verifies that a weight is of F32, F16 or BF16.
///
/// # Errors
/// [`Error::AlreadyQuantized`].
pub(crate) fn expect_full_precision(weight: &Weight<'_>) -> Result<(), Error> {
    if is_plain(weight) { Ok(()) } else { Err(already_quantized(weight)) }
}

fn is_plain(weight: &Weight<'_>) -> bool {
    PLAIN.iter().any(|dtype| dtype.name() == weight.format_name())
}

fn already_quantized(weight: &Weight<'_>) -> Error {
    Error::AlreadyQuantized {
        file: weight.file().display().to_string(),
        place: format!("tensor {}", weight.name()),
        found: weight.format_name(),
    }
}

/// Rows of several tensors, one after another.
struct StackedRows<'a> {
    parts: Vec<DenseWeight<'a>>,
    /// Number of the first row of each part, then of all rows.
    starts: Vec<usize>,
}

impl<'a> StackedRows<'a> {
    fn open(checkpoint: &'a Checkpoint, parts: &[(String, RowSelection)]) -> Result<Self, Error> {
        let mut stack = StackedRows { parts: Vec::with_capacity(parts.len()), starts: vec![0] };
        for (name, selection) in parts {
            let part = dense(checkpoint, name, selection.clone())?;
            let first = stack.parts.first().unwrap_or(&part);
            let (expected, found) = (kind(first), kind(&part));
            if expected != found {
                let place = format!("tensor {name}");
                let file = checkpoint.path().display();
                return Err(Error::format(
                    file,
                    place,
                    format!("{expected:?}"),
                    format!("{found:?}"),
                ));
            }
            stack.starts.push(stack.rows() + part.rows());
            stack.parts.push(part);
        }
        Ok(stack)
    }
}

/// What the tensors of one weight must have in common.
fn kind(rows: &DenseWeight<'_>) -> (DenseType, usize) {
    (rows.format(), rows.cols())
}

impl DenseRows for StackedRows<'_> {
    fn rows(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    fn cols(&self) -> usize {
        self.parts.first().map_or(0, DenseRows::cols)
    }

    fn format(&self) -> DenseType {
        self.parts.first().map_or(DenseType::F32, DenseRows::format)
    }

    fn read_row(&self, row: usize, values: &mut [f32]) {
        let part = self.starts.partition_point(|start| *start <= row) - 1;
        self.parts[part].read_row(row - self.starts[part], values);
    }
}

/// A tensor with one added to each value; the sum is rounded when it is stored.
struct PlusOne<'a>(DenseWeight<'a>);

impl DenseRows for PlusOne<'_> {
    fn rows(&self) -> usize {
        self.0.rows()
    }

    fn cols(&self) -> usize {
        self.0.cols()
    }

    fn format(&self) -> DenseType {
        self.0.format()
    }

    fn read_row(&self, row: usize, values: &mut [f32]) {
        self.0.read_row(row, values);
        values.iter_mut().for_each(|value| *value += 1.0);
    }
}

/// Rows that had to be rearranged.
struct InMemory {
    values: Vec<f32>,
    cols: usize,
    format: DenseType,
}

impl InMemory {
    /// Transposes each block of `block` rows.
    fn transposed(source: &dyn DenseRows, block: usize) -> Self {
        let width = source.cols();
        let mut values = vec![0.0; source.rows() * width];
        let mut line = vec![0.0; width];
        for row in 0..source.rows() {
            source.read_row(row, &mut line);
            let start = row / block * block * width + row % block;
            for (value, target) in line.iter().zip(values[start..].iter_mut().step_by(block)) {
                *target = *value;
            }
        }
        InMemory { values, cols: block, format: source.format() }
    }
}

impl DenseRows for InMemory {
    fn rows(&self) -> usize {
        self.values.len() / self.cols.max(1)
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn format(&self) -> DenseType {
        self.format
    }

    fn read_row(&self, row: usize, values: &mut [f32]) {
        values.copy_from_slice(&self.values[row * self.cols..][..self.cols]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_transposed_each_by_itself() {
        let source = InMemory {
            values: (0..12).map(|value| value as f32).collect(),
            cols: 3,
            format: DenseType::Bf16,
        };
        let turned = InMemory::transposed(&source, 2);
        assert_eq!((turned.rows(), turned.cols(), turned.format()), (6, 2, DenseType::Bf16));
        let expected = [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11].map(|value| value as f32);
        assert_eq!(turned.values, expected);
    }
}
