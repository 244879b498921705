//! Matrices with rows and columns exchanged, as absorbed projections need them. Packings group along
//! columns, so what is turned is stored as plain numbers.

use sconce_kernels::{DenseRows, DenseType, Matrix, MatrixFormat};

use crate::error::Error;

/// How selected rows of a weight become a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Orientation {
    /// Rows are rows, in the packing of the checkpoint.
    AsStored,
    /// Rows are columns, in the plain type that [`turned_format`] names.
    Turned,
}

/// What a turned matrix holds: the type of plain numbers, or f32 for the values of codes.
pub(super) fn turned_format(format: MatrixFormat) -> MatrixFormat {
    MatrixFormat::Dense(turned_type(format))
}

fn turned_type(format: MatrixFormat) -> DenseType {
    match format {
        MatrixFormat::Dense(dense) => dense,
        _ => DenseType::F32,
    }
}

/// `[cols, rows]` of a matrix `[rows, cols]`, by way of its values in f32.
///
/// # Errors
/// A row cannot be read.
pub(super) fn turned_rows(matrix: &Matrix) -> Result<impl DenseRows + use<>, Error> {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let mut values = vec![0.0; rows * cols];
    for (row, values) in values.chunks_exact_mut(cols.max(1)).enumerate() {
        matrix.dequantize_row(row, values)?;
    }
    let dense = turned_type(matrix.format());
    Ok(Turned { outputs: cols, inputs: rows, dense, values })
}

/// The columns of `[rows, cols]` as rows.
struct Turned {
    outputs: usize,
    inputs: usize,
    dense: DenseType,
    /// `[inputs, outputs]`, as stored.
    values: Vec<f32>,
}

impl DenseRows for Turned {
    fn rows(&self) -> usize {
        self.outputs
    }

    fn cols(&self) -> usize {
        self.inputs
    }

    fn format(&self) -> DenseType {
        self.dense
    }

    fn read_row(&self, row: usize, values: &mut [f32]) {
        for (value, stored) in values.iter_mut().zip(self.values.chunks_exact(self.outputs)) {
            *value = stored[row];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use sconce_kernels::{AffineFormat, AffineRows, ScaleType};

    struct Codes;

    impl AffineRows for Codes {
        fn rows(&self) -> usize {
            3
        }

        fn cols(&self) -> usize {
            32
        }

        fn format(&self) -> AffineFormat {
            AffineFormat { bits: 8, group_size: 32, zero_point: None, scales: ScaleType::F32 }
        }

        fn read_row(&self, row: usize, codes: &mut [u8], scales: &mut [f32], biases: &mut [f32]) {
            for (col, code) in codes.iter_mut().enumerate() {
                *code = (row * 40 + col) as u8;
            }
            scales.fill(0.1);
            biases.fill(-3.7);
        }
    }

    fn turn(matrix: &Matrix) -> Matrix {
        Matrix::pack_dense(&turned_rows(matrix).unwrap(), &Device::Cpu).unwrap()
    }

    fn values(matrix: &Matrix) -> Vec<Vec<f32>> {
        let row = |row| {
            let mut values = vec![f32::NAN; matrix.cols()];
            matrix.dequantize_row(row, &mut values).unwrap();
            values
        };
        (0..matrix.rows()).map(row).collect()
    }

    #[test]
    fn turning_exchanges_rows_and_columns_and_keeps_every_value() {
        let stored = Matrix::pack_affine(&Codes, &Device::Cpu).unwrap();
        let turned = turn(&stored);
        assert_eq!((turned.rows(), turned.cols()), (32, 3));
        assert_eq!(turned.format(), turned_format(stored.format()));
        assert_eq!(turned.format(), MatrixFormat::Dense(DenseType::F32));
        let (stored, turned) = (values(&stored), values(&turned));
        for row in 0..3 {
            for col in 0..32 {
                assert_eq!(stored[row][col], turned[col][row]);
            }
        }
    }

    #[test]
    fn plain_numbers_keep_their_type_when_turned() {
        let values_of = (0..6).map(|value| value as f32 * 0.5).collect();
        let source = Turned { outputs: 3, inputs: 2, dense: DenseType::Bf16, values: values_of };
        let matrix = Matrix::pack_dense(&source, &Device::Cpu).unwrap();
        let turned = turn(&matrix);
        assert_eq!(turned.format(), MatrixFormat::Dense(DenseType::Bf16));
        assert_eq!(values(&matrix), [[0.0, 1.5], [0.5, 2.0], [1.0, 2.5]]);
        assert_eq!(values(&turned), [[0.0, 0.5, 1.0], [1.5, 2.0, 2.5]]);
    }
}
