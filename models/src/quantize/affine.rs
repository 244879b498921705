//! Affine quantization of one group, `value = scale * code + bias`, as `mlx.core.quantize` does it
//! on a CPU (mlx 0.32): in f32, from the edge of larger magnitude, which a code hits exactly.

use sconce_kernels::DenseType;

use super::element::round;

/// Smallest magnitude of a scale: a group of equal values has no range to divide.
const SCALE_MIN: f32 = 1e-7;

/// Writes the codes of `values`, one group of finite numbers, and gives scale and bias, both
/// rounded to `source`, the type of the weight. Codes are chosen before that rounding.
pub(super) fn quantize_group(
    values: &[f32],
    bits: u8,
    source: DenseType,
    codes: &mut [u8],
) -> (f32, f32) {
    let steps = ((1_u32 << bits) - 1) as f32;
    let (min, max) = values
        .iter()
        .fold((f32::INFINITY, f32::NEG_INFINITY), |(min, max), v| (min.min(*v), max.max(*v)));
    let negative_edge = min.abs() > max.abs();
    let step = ((max - min) / steps).max(SCALE_MIN);
    let (edge, mut scale) = if negative_edge { (min, step) } else { (max, -step) };
    let mut bias = 0.0;
    // The code of zero, so that zero is a value too; the scale gives way for it.
    let zero_code = (edge / scale).round_ties_even();
    if zero_code != 0.0 {
        scale = edge / zero_code;
        bias = edge;
    }
    for (code, value) in codes.iter_mut().zip(values) {
        *code = ((value - bias) / scale).round_ties_even().clamp(0.0, steps) as u8;
    }
    (round(source, scale), round(source, bias))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_and_the_larger_edge_are_hit_exactly() {
        let mut codes = [0; 4];
        let values = [0.0, 0.3, -1.5, 0.9];
        let (scale, bias) = quantize_group(&values, 4, DenseType::F32, &mut codes);
        let value = |index: usize| scale * f32::from(codes[index]) + bias;
        assert_eq!(value(2), -1.5);
        assert!(value(0).abs() < 1e-6, "{}", value(0));
    }

    #[test]
    fn numbers_that_are_not_finite_give_codes_within_bounds() {
        let mut codes = [0xff; 4];
        quantize_group(&[f32::NAN, f32::INFINITY, -1.0, 2.0], 4, DenseType::F16, &mut codes);
        assert!(codes.iter().all(|code| *code < 16));
    }
}
