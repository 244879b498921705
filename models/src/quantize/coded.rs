//! Quantization of one group to floats of 4 or 8 bits with a shared scale: MXFP4 and MXFP8 of the
//! OCP Microscaling specification (v1.0), and NVFP4 without a scale of the tensor.
//!
//! Numbers are those of `mlx.core.quantize` on a CPU (mlx 0.32.4), which computes in the type of the
//! weight: every intermediate result is rounded to it. Earlier versions of mlx took the nearest power
//! of two instead of the next one, and so cut off the largest values.

use sconce_kernels::DenseType;

use super::PackingMode;
use super::element::round;

/// Values of the E2M1 codes 0 to 7; bit 3 is the sign.
const E2M1: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
const E2M1_MAX: f32 = 6.0;
const E4M3_MAX: f32 = 448.0;

/// Codes of the largest E4M3, of its sign, and of 2^0 among the E8M0.
const E4M3_MAX_CODE: u8 = 0x7e;
const SIGN: u8 = 0x80;
const E8M0_BIAS: i32 = 127;

/// Writes the codes of `values`, one group of finite numbers of type `source`, and gives the code
/// of the scale: E8M0, or for NVFP4 E4M3.
///
/// Of two codes that are equally near the one of smaller magnitude is taken. A group that is all
/// zero, or in NVFP4 so small that its scale becomes zero, gets code 0 throughout.
pub(super) fn quantize_group(
    values: &[f32],
    mode: PackingMode,
    source: DenseType,
    codes: &mut [u8],
) -> u8 {
    let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    let eight_bits = mode == PackingMode::Mxfp8;
    let wanted = round(source, largest / if eight_bits { E4M3_MAX } else { E2M1_MAX });
    let (code, scale) = match mode {
        PackingMode::Nvfp4 => {
            let code = encode_e4m3(wanted);
            (code, decode_e4m3(code))
        }
        _ => encode_e8m0(wanted),
    };
    for (code, value) in codes.iter_mut().zip(values) {
        let scaled = round(source, value / scale);
        *code = if eight_bits { encode_e4m3(scaled) } else { encode_e2m1(scaled, source) };
    }
    code
}

/// The least power of two that is no less than `scale`, as E8M0, and what the code means; 1 for 0.
/// So nothing is cut off. Below 2^-127, where mlx wraps around, the smallest is taken.
fn encode_e8m0(scale: f32) -> (u8, f32) {
    if scale == 0.0 {
        return (E8M0_BIAS as u8, 1.0);
    }
    let (binade, fraction) = (scale.to_bits() >> 23, scale.to_bits() & 0x7f_ffff);
    // A subnormal has the biased exponent 0, and is below 2^-126, whose code is 1.
    let code = binade + u32::from(fraction != 0);
    let code = if binade == 0 && scale <= 2.0_f32.powi(-E8M0_BIAS) { 0 } else { code };
    (code as u8, 2.0_f32.powi(code as i32 - E8M0_BIAS))
}

/// The nearest E2M1.
fn encode_e2m1(value: f32, source: DenseType) -> u8 {
    // Up to here differences to both neighbours are exact in every type, so the midpoints decide.
    const EXACT_MAX: f32 = 8.0;
    let magnitude = value.abs();
    if magnitude > EXACT_MAX || magnitude.is_nan() {
        return encode_far_e2m1(value, source);
    }
    let code = E2M1.windows(2).filter(|pair| magnitude > (pair[0] + pair[1]) / 2.0).count() as u8;
    if code > 0 && value < 0.0 { code | 8 } else { code }
}

/// As [`encode_e2m1`] where rounded differences to several codes may be equal: the first of the
/// smallest, which for infinities is code 0.
fn encode_far_e2m1(value: f32, source: DenseType) -> u8 {
    let mut best = (f32::INFINITY, 0);
    for code in 0..16 {
        let magnitude = E2M1[usize::from(code & 7)];
        let candidate = if code < 8 { magnitude } else { -magnitude };
        let distance = round(source, (value - candidate).abs());
        if distance < best.0 {
            best = (distance, code);
        }
    }
    best.1
}

/// The nearest E4M3 of the OCP 8-bit specification, ties to even; the largest beyond its range.
fn encode_e4m3(value: f32) -> u8 {
    /// Exponent of the smallest normal number, and bits of its fraction.
    const EXPONENT_MIN: i32 = -6;
    const FRACTION_BITS: i32 = 3;
    let sign = if value.is_sign_negative() { SIGN } else { 0 };
    let magnitude = value.abs();
    if magnitude.is_nan() || magnitude >= E4M3_MAX {
        return sign | E4M3_MAX_CODE;
    }
    let exponent = ((magnitude.to_bits() >> 23) as i32 - 127).max(EXPONENT_MIN);
    // Rounded to units in the last place; eight of them are the next binade, whose code follows.
    let units = (magnitude * 2.0_f32.powi(FRACTION_BITS - exponent)).round_ties_even() as i32;
    let code = ((exponent - EXPONENT_MIN) << FRACTION_BITS) + units;
    sign | code as u8
}

/// What the code of a scale means.
pub(super) fn decode_scale(code: u8, mode: PackingMode) -> f32 {
    match mode {
        PackingMode::Nvfp4 => decode_e4m3(code),
        _ => 2.0_f32.powi(i32::from(code) - E8M0_BIAS),
    }
}

/// The value of an E4M3 code that is not NaN.
fn decode_e4m3(code: u8) -> f32 {
    let (exponent, fraction) = (i32::from(code >> 3 & 0xf), f32::from(code & 7));
    let magnitude = match exponent {
        0 => fraction * 2.0_f32.powi(-9),
        _ => (8.0 + fraction) * 2.0_f32.powi(exponent - 10),
    };
    if code & SIGN == 0 { magnitude } else { -magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_e4m3_is_encoded_as_itself() {
        for code in (0..=u8::MAX).filter(|code| code & 0x7f != 0x7f) {
            assert_eq!(encode_e4m3(decode_e4m3(code)), code);
        }
        assert_eq!(decode_e4m3(E4M3_MAX_CODE), E4M3_MAX);
        assert_eq!(encode_e4m3(1e9), E4M3_MAX_CODE);
        assert_eq!(encode_e4m3(f32::NEG_INFINITY), E4M3_MAX_CODE | SIGN);
    }

    #[test]
    fn near_and_far_e2m1_agree_where_both_are_exact() {
        for step in -512..=512 {
            let value = step as f32 / 64.0;
            let near = encode_e2m1(value, DenseType::F32);
            assert_eq!(near, encode_far_e2m1(value, DenseType::F32), "{value}");
        }
    }

    #[test]
    fn groups_of_nothing_get_scale_one_and_the_smallest_get_the_smallest_scale() {
        let mut codes = [0xff; 32];
        let zero = quantize_group(&[0.0; 32], PackingMode::Mxfp4, DenseType::F32, &mut codes);
        assert_eq!((zero, codes), (127, [0; 32]));
        let tiny = quantize_group(&[1e-40; 32], PackingMode::Mxfp8, DenseType::F32, &mut codes);
        assert_eq!(tiny, 0);
    }
}
