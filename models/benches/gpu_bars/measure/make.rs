//! Operands: numbers that look random, weights that are made on the device.

use candle_core::{Device, Tensor};
use sconce_kernels::random_words::reference::word;
use sconce_kernels::{AffineFormat, Matrix, RandomRows, ScaleType};

use super::Outcome;

/// Rows of numbers from -1 to 1; a large tensor repeats the first of them.
pub(crate) fn rows(rows: usize, dim: usize, seed: u64, device: &Device) -> Outcome<Tensor> {
    const DISTINCT: usize = 1 << 20;
    let len = rows * dim;
    let number =
        |index: usize| word((index % DISTINCT) as u32, seed) as f32 / 2_147_483_648.0 - 1.0;
    let values: Vec<f32> = (0..len).map(number).collect();
    Ok(Tensor::from_vec(values, (rows, dim), device)?)
}

/// Zeros.
pub(crate) fn zeros(dims: impl Into<candle_core::Shape>, device: &Device) -> Outcome<Tensor> {
    Ok(Tensor::zeros(dims, candle_core::DType::F32, device)?)
}

/// A weight of 4 bits in groups of 64, `[rows, cols]`.
pub(crate) fn weight(rows: usize, cols: usize, seed: u64, device: &Device) -> Outcome<Matrix> {
    let format =
        AffineFormat { bits: 4, group_size: 64, zero_point: None, scales: ScaleType::Bf16 };
    Ok(Matrix::random(&RandomRows { rows, cols, format, seed }, device)?)
}

/// How many operands of `bytes` take turns, so that none is in a cache when its turn comes.
pub(crate) fn copies(cold_bytes: usize, bytes: usize) -> usize {
    cold_bytes.div_ceil(bytes.max(1)).clamp(1, 512)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operands_that_take_turns_fill_more_than_a_cache() {
        assert_eq!(copies(1000, 300), 4);
        assert_eq!(copies(1000, 5000), 1);
        assert_eq!(copies(usize::MAX, 1), 512);
        assert_eq!(copies(1000, 0), 512);
    }
}
