//! The definition of `matmul`, on rows as they come from their source: packing is tested with it.

use super::activations::{GROUP, HALF};
use super::format::{AffineRows, Code, CodedFormat, CodedRows, DenseRows};

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

/// The value of a code. Formats: OCP Microscaling Formats (MX) v1.0 for E2M1, OFP8 for E4M3, ggml's
/// `kvalues_iq4nl` for IQ4_NL.
pub fn decode(code: Code, byte: u8) -> f32 {
    let minifloat = |exponent_bits: u32, fraction_bits: u32| {
        let bias = (1 << (exponent_bits - 1)) - 1;
        let byte = u32::from(byte);
        let negative = byte >> (exponent_bits + fraction_bits) & 1 == 1;
        let exponent = (byte >> fraction_bits & ((1 << exponent_bits) - 1)) as i32;
        let fraction = (byte & ((1 << fraction_bits) - 1)) as f32 / (1 << fraction_bits) as f32;
        let magnitude = match exponent {
            0 => fraction * 2_f32.powi(1 - bias),
            exponent => (1.0 + fraction) * 2_f32.powi(exponent - bias),
        };
        if negative { -magnitude } else { magnitude }
    };
    match code {
        Code::E2m1 => minifloat(2, 1),
        Code::E4m3 if byte & 0x7f == 0x7f => f32::NAN,
        Code::E4m3 => minifloat(4, 3),
        Code::Iq4Nl => {
            let values =
                [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113_i8];
            f32::from(values[usize::from(byte)])
        }
    }
}

/// Values of a row of a coded weight. A code that is not a number makes its group so.
pub fn coded_row(source: &dyn CodedRows, row: usize) -> Vec<f32> {
    let CodedRow { codes, scales } = read_coded(source, row);
    let CodedFormat { code, group_size, .. } = source.format();
    let mut values = Vec::new();
    for (group, codes) in codes.chunks(group_size).enumerate() {
        let broken = codes.iter().any(|byte| decode(code, *byte).is_nan());
        let scale = if broken { f32::NAN } else { scales[group] };
        values.extend(codes.iter().map(|byte| scale * decode(code, *byte)));
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

/// The same for a coded weight whose codes are integers: multiples of 1, or of 0.5 for E2M1.
pub fn quantized_coded_dot(x: &QuantizedRow, source: &dyn CodedRows, row: usize) -> f32 {
    let CodedRow { codes, scales } = read_coded(source, row);
    let CodedFormat { code, group_size, .. } = source.format();
    let step = if code == Code::E2m1 { 0.5 } else { 1.0 };
    let unit = group_size.min(GROUP);
    let mut total = 0.0;
    for start in (0..codes.len()).step_by(unit) {
        let mut product = 0_i64;
        for col in start..start + unit {
            product += (decode(code, codes[col]) / step) as i64 * i64::from(x.codes[col]);
        }
        let scale = scales[start / group_size] * step;
        total += product as f32 * (scale * x.scales[start / GROUP]);
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

struct CodedRow {
    codes: Vec<u8>,
    scales: Vec<f32>,
}

fn read_coded(source: &dyn CodedRows, row: usize) -> CodedRow {
    let groups = source.cols() / source.format().group_size;
    let mut read = CodedRow { codes: vec![0; source.cols()], scales: vec![0.0; groups] };
    source.read_row(row, &mut read.codes, &mut read.scales);
    read
}
