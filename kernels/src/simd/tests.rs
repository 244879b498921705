//! Every operation of every level against the arithmetic it stands for.

use super::{Kernel, LANES, Simd, dispatch, exp};
use crate::isa::Isa;

struct Exp([f32; LANES]);

impl Kernel for Exp {
    type Output = [f32; LANES];

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> [f32; LANES] {
        let mut out = [f32::NAN; LANES];
        // SAFETY: the caller's promise; both arrays have 16 elements.
        unsafe { S::store(out.as_mut_ptr(), exp::<S>(S::load(self.0.as_ptr()))) };
        out
    }
}

#[test]
fn exp_is_within_two_units_in_the_last_place() {
    for isa in Isa::available() {
        for step in 0..10_800 {
            let x: [f32; LANES] =
                std::array::from_fn(|lane| -87.0 + (step * LANES + lane) as f32 / 1000.0);
            for (x, found) in x.into_iter().zip(dispatch(isa, Exp(x))) {
                let expected = f64::from(x).exp();
                let error = (f64::from(found) - expected).abs() / expected;
                assert!(error < 2.5e-7, "{isa}: exp({x}) = {found}, off by {error:e}");
            }
        }
    }
}

#[test]
fn exp_of_what_lies_outside_is_zero_large_or_nan() {
    for isa in Isa::available() {
        let mut x = [0.0; LANES];
        x[..4].copy_from_slice(&[f32::NEG_INFINITY, -88.0, f32::NAN, 1000.0]);
        let out = dispatch(isa, Exp(x));
        assert_eq!((out[0], out[1]), (0.0, 0.0), "{isa}");
        assert!(out[2].is_nan(), "{isa}");
        assert!(out[3] > 1e38, "{isa}");
        assert_eq!(out[4], 1.0, "{isa}");
    }
}

/// Integer operations: dots of all codes with all bytes, byte extraction, narrowing.
struct Integers {
    codes: [u8; 64],
    x: [i8; 4],
}

#[derive(Debug, PartialEq)]
struct IntegersOut {
    wide: [f32; LANES],
    low: [f32; LANES],
    high: [f32; LANES],
    third: [f32; LANES],
    narrow: [i8; LANES],
    sum: i32,
}

impl Kernel for Integers {
    type Output = IntegersOut;

    const PRODUCTS: bool = true;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> IntegersOut {
        let mut out = IntegersOut {
            wide: [0.0; LANES],
            low: [0.0; LANES],
            high: [0.0; LANES],
            third: [0.0; LANES],
            narrow: [0; LANES],
            sum: 0,
        };
        // SAFETY: the caller's promise; the arrays have the lengths the operations need.
        unsafe {
            let codes = S::load_codes(self.codes.as_ptr());
            let zero = S::int_splat(5);
            let x = self.x.as_ptr();
            let wide = S::dot::<true>(zero, codes, x);
            S::store(out.wide.as_mut_ptr(), S::int_to_float(wide));
            let low = S::dot::<false>(zero, S::low(codes), x);
            S::store(out.low.as_mut_ptr(), S::int_to_float(low));
            let high = S::dot::<false>(zero, S::high(codes), x);
            S::store(out.high.as_mut_ptr(), S::int_to_float(high));
            S::store(out.third.as_mut_ptr(), S::byte::<2>(codes));
            let narrow = S::int_sub(S::round(S::byte::<3>(S::high(codes))), S::int_splat(7));
            S::store_i8(out.narrow.as_mut_ptr(), narrow);
            out.sum = S::int_sum(wide);
        }
        out
    }
}

#[test]
fn integer_products_are_exact_for_every_code_and_extreme_activations() {
    for x in [[127, 127, 127, 127], [-127, -127, -127, -127], [127, -127, 3, -1], [0, 1, 2, 4]] {
        for start in (0..=u8::MAX).step_by(5) {
            let codes: [u8; 64] = std::array::from_fn(|i| {
                if start == 255 { 255 } else { start.wrapping_add((i * 7) as u8) }
            });
            let dot = |lane: usize, f: fn(u8) -> u8| {
                let products = (0..4).map(|j| i32::from(f(codes[4 * lane + j])) * i32::from(x[j]));
                5 + products.sum::<i32>()
            };
            let expected = IntegersOut {
                wide: std::array::from_fn(|lane| dot(lane, |code| code) as f32),
                low: std::array::from_fn(|lane| dot(lane, |code| code & 15) as f32),
                high: std::array::from_fn(|lane| dot(lane, |code| code >> 4) as f32),
                third: std::array::from_fn(|lane| f32::from(codes[4 * lane + 2])),
                narrow: std::array::from_fn(|lane| (codes[4 * lane + 3] >> 4) as i8 - 7),
                sum: (0..LANES).map(|lane| dot(lane, |code| code)).sum(),
            };
            for isa in Isa::available() {
                assert_eq!(dispatch(isa, Integers { codes, x }), expected, "{isa}");
            }
        }
    }
}
