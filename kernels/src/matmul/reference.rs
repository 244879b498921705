//! The definition of `matmul`, on rows as they come from their source: packing is tested with it.

use super::activations::{GROUP, HALF};
use super::format::{AffineRows, DenseRows};

/// Largest magnitude of a group below which it counts as zero.
pub const ZERO: f32 = 1e-30;
/// Largest code of `Int8`.
pub const INT8_MAX: f32 = 127.0;
/// Largest code of `Int16`: 127 * 128 + 63, so that both halves are in -127..=127.
pub const INT16_MAX: f32 = 16_319.0;

/// Values of a row of an affine weight.
pub fn affine_row(source: &dyn AffineRows, row: usize) -> Vec<f32> {
    let AffineRow { codes, scales, biases } = read(source, row);
    let format = source.format();
    let mut values = vec![0.0; codes.len()];
    for (col, value) in values.iter_mut().enumerate() {
        let group = col / format.group_size;
        *value = match format.zero_point {
            Some(zero) => scales[group] * (f32::from(codes[col]) - f32::from(zero)),
            None => scales[group] * f32::from(codes[col]) + biases[group],
        };
    }
    values
}

/// Values of a row of a dense weight.
pub fn dense_row(source: &dyn DenseRows, row: usize) -> Vec<f32> {
    let mut values = vec![0.0; source.cols()];
    source.read_row(row, &mut values);
    values
}

/// The product of f32 activations with the values of a weight's row.
pub fn dot(x: &[f32], weight: &[f32]) -> f32 {
    let mut sum = 0.0;
    for (x, weight) in x.iter().zip(weight) {
        sum += x * weight;
    }
    sum
}

/// A row of activations rounded to integers, one scale for each `GROUP` columns.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedRow {
    /// One for each column.
    pub codes: Vec<i32>,
    /// One for each group.
    pub scales: Vec<f32>,
}

/// Rounds a row to codes of magnitude at most `max`, ties to even. A group with a NaN or an
/// infinity has a NaN as its scale, so that the result shows it.
pub fn quantize(x: &[f32], max: f32) -> QuantizedRow {
    let mut codes = Vec::new();
    let mut scales = Vec::new();
    for group in x.chunks(GROUP) {
        let broken = group.iter().any(|value| !value.is_finite());
        let largest = group.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
        if broken || largest < ZERO {
            codes.extend(group.iter().map(|_| 0));
            scales.push(if broken { f32::NAN } else { 0.0 });
        } else {
            let inverse = max / largest;
            codes.extend(group.iter().map(|value| (value * inverse).round_ties_even() as i32));
            scales.push(largest / max);
        }
    }
    QuantizedRow { codes, scales }
}

/// The product of quantized activations with a weight's row: exact integers within a unit (the
/// smaller of the two groups), f32 across units.
pub fn quantized_dot(x: &QuantizedRow, source: &dyn AffineRows, row: usize) -> f32 {
    let AffineRow { codes, scales, biases } = read(source, row);
    let format = source.format();
    let unit = format.group_size.min(GROUP);
    debug_assert!(unit.is_multiple_of(HALF), "group sizes are multiples of 16");
    let zero = format.zero_point.map_or(0, i64::from);
    let mut total = 0.0;
    for start in (0..codes.len()).step_by(unit) {
        let (mut product, mut sum) = (0_i64, 0_i64);
        for col in start..start + unit {
            product += (i64::from(codes[col]) - zero) * i64::from(x.codes[col]);
            sum += i64::from(x.codes[col]);
        }
        let group = start / format.group_size;
        let scale = x.scales[start / GROUP];
        total += product as f32 * (scales[group] * scale);
        if format.zero_point.is_none() {
            total += biases[group] * (scale * sum as f32);
        }
    }
    total
}

struct AffineRow {
    codes: Vec<u8>,
    scales: Vec<f32>,
    biases: Vec<f32>,
}

fn read(source: &dyn AffineRows, row: usize) -> AffineRow {
    let format = source.format();
    let groups = source.cols() / format.group_size;
    let biases = if format.zero_point.is_some() { 0 } else { groups };
    let mut read = AffineRow {
        codes: vec![0; source.cols()],
        scales: vec![0.0; groups],
        biases: vec![0.0; biases],
    };
    source.read_row(row, &mut read.codes, &mut read.scales, &mut read.biases);
    read
}
