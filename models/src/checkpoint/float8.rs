//! Numbers of one byte and less: E4M3 of OFP8, and E2M1 and E8M0 of the OCP Microscaling formats.
//!
//! Every value is exactly an f32. Matrices decode such codes by themselves; here are the scales,
//! and the definition of what a weight holds.

/// The E4M3 number `code`, in its finite form: no infinities, NaN where all bits but the sign are
/// set.
pub(super) fn e4m3(code: u8) -> f32 {
    const BIAS: i32 = 7;
    const FRACTION: f32 = 8.0;
    let (exponent, fraction) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let magnitude = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => fraction / FRACTION * power_of_two(1 - BIAS),
        _ => (1.0 + fraction / FRACTION) * power_of_two(exponent - BIAS),
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// The E2M1 number in the low four bits of `code`.
pub(super) fn e2m1(code: u8) -> f32 {
    const MAGNITUDES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let magnitude = MAGNITUDES[usize::from(code & 7)];
    if code & 8 == 0 { magnitude } else { -magnitude }
}

/// The E8M0 number `code`: a power of two from 2^-127 on, or NaN.
pub(super) fn e8m0(code: u8) -> f32 {
    const BIAS: i32 = 127;
    if code == u8::MAX { f32::NAN } else { power_of_two(i32::from(code) - BIAS) }
}

/// 2^`exponent`, from -127, where f32 is subnormal already, to 127.
fn power_of_two(exponent: i32) -> f32 {
    const BIAS: i32 = 127;
    debug_assert!((-127..=127).contains(&exponent));
    match u32::try_from(exponent + BIAS) {
        Ok(0) | Err(_) => f32::MIN_POSITIVE / 2.0,
        Ok(biased) => f32::from_bits(biased << (f32::MANTISSA_DIGITS - 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_extremes_are_those_of_the_standards() {
        assert_eq!((e4m3(0x7e), e4m3(0xfe), e4m3(0x08)), (448.0, -448.0, 2f32.powi(-6)));
        assert_eq!((e4m3(0x01), e4m3(0x38), e4m3(0x00)), (2f32.powi(-9), 1.0, 0.0));
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan());
        assert_eq!((e2m1(7), e2m1(9), e2m1(0)), (6.0, -0.5, 0.0));
        assert_eq!((e8m0(127), e8m0(254), e8m0(0)), (1.0, 2f32.powi(127), 2f32.powi(-127)));
        assert!(e8m0(255).is_nan());
    }

    #[test]
    fn codes_rise_with_their_values() {
        assert!((0..0x7e).all(|code| e4m3(code) < e4m3(code + 1)));
        assert!((0..7).all(|code| e2m1(code) < e2m1(code + 1)));
        assert!((0..254).all(|code| e8m0(code) < e8m0(code + 1)));
    }
}
