//! Every operation of every level against the arithmetic it stands for.

use half::{bf16, f16};

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
    low_bytes: [i8; LANES],
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
            low_bytes: [0; LANES],
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
            S::store_i8(out.low_bytes.as_mut_ptr(), wide);
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
                low_bytes: std::array::from_fn(|lane| dot(lane, |code| code) as i8),
                sum: (0..LANES).map(|lane| dot(lane, |code| code)).sum(),
            };
            for isa in Isa::available() {
                assert_eq!(dispatch(isa, Integers { codes, x }), expected, "{isa}");
            }
        }
    }
}

/// What becomes of 16 numbers, or of the bits of numbers in other types.
struct Unary<'a> {
    x: [f32; LANES],
    halves: &'a [u16; LANES],
    bytes: &'a [u8; 64],
}

#[derive(Debug)]
struct UnaryOut {
    f16: [f32; LANES],
    bf16: [f32; LANES],
    e8m0: [f32; LANES],
    e4m3: [[f32; LANES]; 4],
    abs: [f32; LANES],
    rounded: [f32; LANES],
    sum: f32,
    largest: f32,
}

impl Kernel for Unary<'_> {
    type Output = UnaryOut;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> UnaryOut {
        // SAFETY: the caller's promise; the arrays have the lengths the operations need.
        unsafe {
            let x = S::load(self.x.as_ptr());
            let codes = S::load_codes(self.bytes.as_ptr());
            UnaryOut {
                f16: lanes::<S>(S::load_f16(self.halves.as_ptr())),
                bf16: lanes::<S>(S::load_bf16(self.halves.as_ptr())),
                e8m0: lanes::<S>(S::load_e8m0(self.bytes.as_ptr())),
                e4m3: [
                    lanes::<S>(S::e4m3::<0>(codes)),
                    lanes::<S>(S::e4m3::<1>(codes)),
                    lanes::<S>(S::e4m3::<2>(codes)),
                    lanes::<S>(S::e4m3::<3>(codes)),
                ],
                abs: lanes::<S>(S::abs(x)),
                rounded: lanes::<S>(S::int_to_float(S::round(x))),
                sum: S::sum(x),
                largest: S::largest(x),
            }
        }
    }
}

/// # Safety
/// The processor has the instructions of `S`.
#[inline(always)]
unsafe fn lanes<S: Simd>(value: S::F) -> [f32; LANES] {
    let mut out = [f32::NAN; LANES];
    // SAFETY: the caller's promise; the array has 16 elements.
    unsafe { S::store(out.as_mut_ptr(), value) };
    out
}

/// Bits, of which all that stand for no number are alike.
fn number_bits(value: f32) -> u32 {
    if value.is_nan() { f32::NAN.to_bits() } else { value.to_bits() }
}

#[test]
fn numbers_of_every_type_are_widened_exactly() {
    for first in (0..=u16::MAX).step_by(LANES) {
        let halves: [u16; LANES] = std::array::from_fn(|lane| first + lane as u16);
        let bytes: [u8; 64] = std::array::from_fn(|at| (first as usize + at) as u8);
        for isa in Isa::available() {
            let out = dispatch(isa, Unary { x: [0.0; LANES], halves: &halves, bytes: &bytes });
            for lane in 0..LANES {
                let (half, byte) = (halves[lane], bytes[lane]);
                let expected = f16::from_bits(half).to_f32();
                let found = number_bits(out.f16[lane]);
                assert_eq!(found, number_bits(expected), "{isa} f16 {half:x}");
                let expected = bf16::from_bits(half).to_f32();
                let found = number_bits(out.bf16[lane]);
                assert_eq!(found, number_bits(expected), "{isa} bf16 {half:x}");
                let power = if byte == 255 { f64::NAN } else { 2_f64.powi(i32::from(byte) - 127) };
                let found = number_bits(out.e8m0[lane]);
                assert_eq!(found, number_bits(power as f32), "{isa} e8m0 {byte}");
                for j in 0..4 {
                    let byte = bytes[4 * lane + j];
                    assert_eq!(out.e4m3[j][lane], e4m3(byte), "{isa} e4m3 {byte:x}");
                }
            }
        }
    }
}

/// An FP8 number by its definition, without those that are NaN.
fn e4m3(byte: u8) -> f32 {
    let (exponent, fraction) = (i32::from(byte >> 3 & 15), f32::from(byte & 7) / 8.0);
    let size = match exponent {
        0 => fraction * 2_f32.powi(-6),
        _ => (1.0 + fraction) * 2_f32.powi(exponent - 7),
    };
    if byte < 128 { size } else { -size }
}

#[test]
fn signs_are_dropped_halves_go_to_even_and_lanes_are_summed_and_compared() {
    let x: [f32; LANES] = std::array::from_fn(|lane| (lane as f32 - 9.0) / 2.0);
    for isa in Isa::available() {
        let out = dispatch(isa, Unary { x, halves: &[0; LANES], bytes: &[0; 64] });
        assert_eq!(out.abs, x.map(f32::abs), "{isa}");
        assert_eq!(out.rounded, x.map(f32::round_ties_even), "{isa}");
        assert_eq!((out.sum, out.largest), (-12.0, 3.0), "{isa}");
    }
}

/// Comparisons of numbers and of what is none.
struct Compared([f32; LANES], [f32; LANES]);

impl Kernel for Compared {
    type Output = [[f32; LANES]; 3];

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> [[f32; LANES]; 3] {
        // SAFETY: the caller's promise; both arrays have 16 elements.
        unsafe {
            let (a, b) = (S::load(self.0.as_ptr()), S::load(self.1.as_ptr()));
            [
                lanes::<S>(S::max(a, b)),
                lanes::<S>(S::min(a, b)),
                lanes::<S>(S::zero_below(a, b, S::splat(7.0))),
            ]
        }
    }
}

#[test]
fn comparisons_take_the_second_operand_where_one_is_not_a_number() {
    let few = [1.0, -1.0, 0.0, f32::NAN];
    let a: [f32; LANES] = std::array::from_fn(|lane| few[lane / 4]);
    let b: [f32; LANES] = std::array::from_fn(|lane| few[lane % 4]);
    for isa in Isa::available() {
        let [max, min, kept] = dispatch(isa, Compared(a, b));
        for (lane, (a, b)) in a.into_iter().zip(b).enumerate() {
            let expected = [
                if a > b { a } else { b },
                if a < b { a } else { b },
                if a < b { 0.0 } else { 7.0 },
            ];
            let found = [max[lane], min[lane], kept[lane]];
            assert_eq!(found.map(number_bits), expected.map(number_bits), "{isa} {a} {b}");
        }
    }
}

/// Entries of a table of numbers and of one of bytes.
struct LookedUp<'a> {
    table: &'a [f32; LANES],
    byte_table: &'a [u8; 16],
    codes: &'a [u8; 64],
}

impl Kernel for LookedUp<'_> {
    type Output = ([[f32; LANES]; 3], [[f32; LANES]; 4]);

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> Self::Output {
        // SAFETY: the caller's promise; the arrays have the lengths the operations need, and low
        // halves of bytes are below 16.
        unsafe {
            let table = S::load(self.table.as_ptr());
            let codes = S::load_codes(self.codes.as_ptr());
            let bytes = S::lookup_bytes(S::load_table(self.byte_table.as_ptr()), S::low(codes));
            let numbers = [
                lanes::<S>(S::lookup::<0>(table, codes)),
                lanes::<S>(S::lookup::<12>(table, codes)),
                lanes::<S>(S::lookup::<28>(table, codes)),
            ];
            let bytes = [
                lanes::<S>(S::byte::<0>(bytes)),
                lanes::<S>(S::byte::<1>(bytes)),
                lanes::<S>(S::byte::<2>(bytes)),
                lanes::<S>(S::byte::<3>(bytes)),
            ];
            (numbers, bytes)
        }
    }
}

#[test]
fn tables_are_read_at_every_entry() {
    let table: [f32; LANES] = std::array::from_fn(|entry| entry as f32 * 3.5 - 8.0);
    let byte_table: [u8; 16] = std::array::from_fn(|entry| 255 - 11 * entry as u8);
    for shift in 0..=255_u8 {
        let codes: [u8; 64] = std::array::from_fn(|at| (at as u8).wrapping_mul(7) ^ shift);
        for isa in Isa::available() {
            let call = LookedUp { table: &table, byte_table: &byte_table, codes: &codes };
            let (numbers, bytes) = dispatch(isa, call);
            for lane in 0..LANES {
                let quad = &codes[4 * lane..][..4];
                let entries = [quad[0] & 15, quad[1] >> 4, quad[3] >> 4];
                let expected = entries.map(|entry| table[usize::from(entry)]);
                assert_eq!([0, 1, 2].map(|i| numbers[i][lane]), expected, "{isa} {quad:?}");
                let byte = |j: usize| f32::from(byte_table[usize::from(quad[j] & 15)]);
                let found = [0, 1, 2, 3].map(|j| bytes[j][lane]);
                assert_eq!(found, [0, 1, 2, 3].map(byte), "{isa} {quad:?}");
            }
        }
    }
}
