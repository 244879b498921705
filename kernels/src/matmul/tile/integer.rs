//! Tiles with quantized activations: integer dots, scaled once a unit of columns.

use super::Source;
use super::scales::Scales;
use crate::matmul::activations::{GROUP, HALF};
use crate::matmul::codes::Integers;
use crate::matmul::matrix::LINE;
use crate::matmul::{GroupPanels, Quantized};
use crate::simd::{Simd, prefetch};

/// A tile of a source with quantized activations.
#[inline(always)]
pub(super) unsafe fn source<S: Simd, const R: usize>(
    source: Source<'_>,
    panel: usize,
    first: usize,
) -> [S::F; R] {
    let Source::Quantized { x, weight, integers } = source else {
        unreachable!("only quantized sources are called such");
    };
    let call = Integral { x, weight, integers, panel, first };
    // SAFETY: the caller's promise.
    unsafe {
        match (weight.layout.nibbles, weight.layout.group_size < GROUP) {
            (true, false) => nibbles::<S, R, GROUP>(call),
            (true, true) => nibbles::<S, R, HALF>(call),
            (false, false) => quantized::<S, R, BYTES, GROUP>(call),
            (false, true) => quantized::<S, R, BYTES, HALF>(call),
        }
    }
}

/// One tile of integer products.
#[derive(Clone, Copy)]
struct Integral<'a> {
    x: Quantized<'a>,
    weight: &'a GroupPanels,
    integers: Integers,
    panel: usize,
    first: usize,
}

/// Lines of a tile up to which weights are read faster than they are computed with.
const FEW_LINES: usize = 2;
/// How far ahead of those that are computed with codes are fetched, in bytes; panels follow one
/// another in memory.
const AHEAD: usize = 2048;

/// How codes become unsigned bytes: they are bytes already.
const BYTES: usize = 0;
/// Nibbles are spread out.
const NIBBLES: usize = 1;
/// Nibbles are looked up in a table of bytes below 128.
const TABLE: usize = 2;
/// Nibbles are looked up in a table of any bytes.
const WIDE_TABLE: usize = 3;

/// Integer dots of nibbles with units of `UNIT` columns.
#[inline(always)]
unsafe fn nibbles<S: Simd, const R: usize, const UNIT: usize>(call: Integral<'_>) -> [S::F; R] {
    // SAFETY: the caller's promise.
    unsafe {
        match (call.integers.table.is_some(), call.integers.wide) {
            (false, _) => quantized::<S, R, NIBBLES, UNIT>(call),
            (true, false) => quantized::<S, R, TABLE, UNIT>(call),
            (true, true) => quantized::<S, R, WIDE_TABLE, UNIT>(call),
        }
    }
}

/// Integer dots over units of `UNIT` columns, a few columns to a line of codes.
#[inline(always)]
unsafe fn quantized<S: Simd, const R: usize, const CODES: usize, const UNIT: usize>(
    call: Integral<'_>,
) -> [S::F; R] {
    let Integral { x, weight, integers, panel, first } = call;
    let block = if CODES == BYTES { 4 } else { 8 };
    // SAFETY: the caller's promise; the panel's lines and the planes' groups cover all columns.
    unsafe {
        let mut codes = weight.codes.as_ptr().add(panel * weight.stride).cast::<u8>();
        let scales = Scales::new(weight, panel);
        let table = S::load_table(integers.table.unwrap_or_default().as_ptr());
        let width = x.groups * GROUP;
        let planes = x.codes.as_ptr().add(first * width);
        let x_scales = x.scales.as_ptr().add(first * x.groups);
        let x_offsets = x.offsets.as_ptr().add(first * x.groups);
        let x_sums = x.sums.as_ptr().add(first * x.groups * 2);
        let units = weight.stride * block / UNIT;
        let mut acc = [S::splat(0.0); R];
        for unit in 0..units {
            let group = unit * UNIT / GROUP;
            let mut dots = [S::int_splat(0); R];
            for line in 0..UNIT / block {
                if R <= FEW_LINES {
                    prefetch(codes.wrapping_add(AHEAD));
                }
                let at = planes.add(unit * UNIT + line * block);
                dot_line::<S, R, CODES>(&mut dots, S::load_codes(codes), table, at, width);
                codes = codes.add(LINE);
            }
            // A group size is a power of two, and a division would take as long as the unit.
            let index = (unit * UNIT) >> weight.layout.group_size.trailing_zeros();
            if R <= FEW_LINES {
                scales.prefetch(index);
            }
            let mut scale = scales.scale::<S>(index);
            if let Some(zero) = integers.zero {
                for r in 0..R {
                    let sum = unit_sum::<UNIT>(x_sums.add(r * x.groups * 2), unit);
                    dots[r] = S::int_sub(dots[r], S::int_splat(zero * sum));
                }
            } else {
                let bias = scales.bias::<S>(index);
                for r in 0..R {
                    let offset = match UNIT == GROUP {
                        true => *x_offsets.add(r * x.groups + group),
                        false => {
                            let sum = unit_sum::<UNIT>(x_sums.add(r * x.groups * 2), unit);
                            *x_scales.add(r * x.groups + group) * sum as f32
                        }
                    };
                    acc[r] = S::fma(bias, S::splat(offset), acc[r]);
                }
            }
            if CODES == TABLE || CODES == WIDE_TABLE {
                scale = S::mul(scale, S::splat(integers.unit));
            }
            for r in 0..R {
                let both = S::mul(scale, S::splat(*x_scales.add(r * x.groups + group)));
                acc[r] = S::fma(S::int_to_float(dots[r]), both, acc[r]);
            }
        }
        acc
    }
}

/// Adds the products of one line of codes with the activations at `x`, whose planes are `width`
/// apart.
#[inline(always)]
unsafe fn dot_line<S: Simd, const R: usize, const CODES: usize>(
    dots: &mut [S::I; R],
    line: S::C,
    table: S::C,
    x: *const i8,
    width: usize,
) {
    // SAFETY: the caller's promise; nibbles are below 16.
    unsafe {
        if CODES == BYTES {
            for r in 0..R {
                dots[r] = S::dot::<true>(dots[r], line, x.add(r * width));
            }
            return;
        }
        let (mut low, mut high) = (S::low(line), S::high(line));
        if CODES == TABLE || CODES == WIDE_TABLE {
            (low, high) = (S::lookup_bytes(table, low), S::lookup_bytes(table, high));
        }
        for r in 0..R {
            let x = x.add(r * width);
            if CODES == WIDE_TABLE {
                dots[r] = S::dot::<true>(dots[r], low, x);
                dots[r] = S::dot::<true>(dots[r], high, x.add(4));
            } else {
                dots[r] = S::dot::<false>(dots[r], low, x);
                dots[r] = S::dot::<false>(dots[r], high, x.add(4));
            }
        }
    }
}

/// Sum of the codes of a unit, from the sums of a plane's halves.
#[inline(always)]
unsafe fn unit_sum<const UNIT: usize>(sums: *const i32, unit: usize) -> i32 {
    // SAFETY: the caller's promise: the unit exists.
    unsafe {
        match UNIT == GROUP {
            true => *sums.add(2 * unit) + *sums.add(2 * unit + 1),
            false => *sums.add(unit),
        }
    }
}
