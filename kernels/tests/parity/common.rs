//! Seeded numbers, poisoned tensors and the comparison of results.

use candle_core::{Device, Tensor};

/// Small reproducible generator (xorshift64*).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }

    /// Below `limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.next() as usize % limit
    }

    /// In -1..1.
    pub(crate) fn number(&mut self) -> f32 {
        self.next() as f32 / 2_147_483_648.0 - 1.0
    }

    pub(crate) fn numbers(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.number()).collect()
    }
}

/// A tensor of rows with the given elements.
pub(crate) fn tensor(values: &[f32], dim: usize) -> Tensor {
    Tensor::from_slice(values, (values.len() / dim.max(1), dim), &Device::Cpu).unwrap()
}

/// A tensor of one dimension.
pub(crate) fn vector(values: &[f32]) -> Tensor {
    Tensor::from_slice(values, values.len(), &Device::Cpu).unwrap()
}

/// Rows of NaN: what an operator forgets to write shows.
pub(crate) fn poisoned(rows: usize, dim: usize) -> Tensor {
    tensor(&vec![f32::NAN; rows * dim], dim)
}

pub(crate) fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Compares the leading elements; what follows must still be poison. `magnitudes` are what an error
/// is measured against, element by element.
pub(crate) fn compare(
    case: &str,
    found: &[f32],
    expected: &[f32],
    magnitudes: &[f32],
    tolerance: f32,
) {
    let mut worst = (0.0, 0);
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (found - expected).abs() / (magnitudes[index] + f32::MIN_POSITIVE);
        if error.is_nan() || error > worst.0 {
            worst = (error, index);
            if error.is_nan() {
                break;
            }
        }
    }
    let (error, index) = worst;
    assert!(
        error <= tolerance,
        "{case}: largest relative error {error:e} at {index}: found {}, expected {}",
        found[index],
        expected[index]
    );
    let untouched = found[expected.len()..].iter().all(|value| value.is_nan());
    assert!(untouched, "{case}: wrote beyond the live rows");
}
