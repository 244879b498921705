//! The arithmetic of matmul: one panel of 16 outputs times a few rows of activations, in registers.
//!
//! Every output has one f32 accumulator that runs over the columns in order, so the bits of a row
//! do not depend on how many rows share the tile.

use super::activations::{GROUP, HALF};
use super::codes::{E2M1, IQ4_NL, Integers};
use super::matrix::LINE;
use super::{
    Code, DensePanels, DenseType, GroupPanels, Matrix, PANEL, Packed, Quantized, ScaleType,
};
use crate::simd::{Simd, prefetch};

/// What is multiplied.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    /// Planes of quantized activations with codes, in integers.
    Quantized { x: Quantized<'a>, weight: &'a GroupPanels, integers: Integers },
    /// f32 activations with unpacked codes.
    Affine { x: &'a [f32], cols: usize, weight: &'a GroupPanels, zero: Option<u8> },
    /// f32 activations with decoded codes.
    Coded { x: &'a [f32], cols: usize, weight: &'a GroupPanels, code: Code },
    /// f32 activations with widened elements.
    Dense { x: &'a [f32], cols: usize, weight: &'a DensePanels },
}

impl<'a> Source<'a> {
    /// The product of a weight with rows of activations, in integers where both are such.
    pub(crate) fn new(weight: &'a Matrix, x: &'a [f32], quantized: Option<Quantized<'a>>) -> Self {
        let cols = weight.cols();
        match (&weight.packed, weight.integers(), quantized) {
            (_, Some((weight, integers)), Some(x)) => Self::Quantized { x, weight, integers },
            (Packed::Dense(weight), ..) => Self::Dense { x, cols, weight },
            (Packed::Affine(format, weight), ..) => {
                Self::Affine { x, cols, weight, zero: format.zero_point }
            }
            (Packed::Coded(format, weight), ..) => {
                Self::Coded { x, cols, weight, code: format.code }
            }
        }
    }

    /// Whether the products are those of integers.
    pub(super) fn is_quantized(&self) -> bool {
        matches!(self, Self::Quantized { .. })
    }

    /// Lines of a tile that make one row.
    #[inline(always)]
    pub(super) fn planes(&self) -> usize {
        match self {
            Self::Quantized { x, .. } => x.planes,
            Self::Affine { .. } | Self::Coded { .. } | Self::Dense { .. } => 1,
        }
    }
}

/// Multiplies `count` rows (1, 2, 4 or 8; planes, if quantized) from `first` on with a panel.
/// `QUANTIZED` says what the source is, so that only such sources' code is compiled.
///
/// # Safety
/// The processor has the instructions of `S`; the panel and the rows exist; they are at most two, or
/// `S::TILE_ROWS`.
#[inline(always)]
pub(super) unsafe fn tile<S: Simd, const QUANTIZED: bool>(
    source: Source<'_>,
    panel: usize,
    first: usize,
    count: usize,
    out: &mut [[f32; PANEL]; 8],
) {
    // What a level never asks for is not compiled for it: most of a crate's code is here.
    // SAFETY: the caller's promise.
    unsafe {
        if S::TILE_ROWS >= 8 && count == 8 {
            rows::<S, 8, QUANTIZED>(source, panel, first, out);
        } else if S::TILE_ROWS >= 4 && count == 4 {
            rows::<S, 4, QUANTIZED>(source, panel, first, out);
        } else if count == 2 {
            rows::<S, 2, QUANTIZED>(source, panel, first, out);
        } else {
            debug_assert_eq!(count, 1, "tiles have 1, 2, 4 or 8 rows");
            rows::<S, 1, QUANTIZED>(source, panel, first, out);
        }
    }
}

#[inline(always)]
unsafe fn rows<S: Simd, const R: usize, const QUANTIZED: bool>(
    source: Source<'_>,
    panel: usize,
    first: usize,
    out: &mut [[f32; PANEL]; 8],
) {
    // SAFETY: the caller's promise; a row of `out` has 16 elements.
    unsafe {
        let acc = if QUANTIZED {
            quantized_source::<S, R>(source, panel, first)
        } else {
            exact_source::<S, R>(source, panel, first)
        };
        for r in 0..R {
            S::store(out[r].as_mut_ptr(), acc[r]);
        }
    }
}

/// A tile of a source with quantized activations.
#[inline(always)]
unsafe fn quantized_source<S: Simd, const R: usize>(
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

/// A tile of a source with f32 activations.
#[inline(always)]
unsafe fn exact_source<S: Simd, const R: usize>(
    source: Source<'_>,
    panel: usize,
    first: usize,
) -> [S::F; R] {
    // SAFETY: the caller's promise.
    unsafe {
        match source {
            Source::Quantized { .. } => unreachable!("quantized sources are called such"),
            Source::Affine { x, cols, weight, zero } => {
                let x = x.as_ptr().add(first * cols);
                match weight.layout.nibbles {
                    true => affine::<S, R, 8>(x, cols, weight, zero, panel),
                    false => affine::<S, R, 4>(x, cols, weight, zero, panel),
                }
            }
            Source::Coded { x, cols, weight, code } => {
                let x = x.as_ptr().add(first * cols);
                match code {
                    Code::E2m1 => looked_up::<S, R>(x, cols, weight, &E2M1, panel),
                    Code::Iq4Nl => looked_up::<S, R>(x, cols, weight, &IQ4_NL, panel),
                    Code::E4m3 => e4m3::<S, R>(x, cols, weight, panel),
                }
            }
            Source::Dense { x, cols, weight } => {
                let x = x.as_ptr().add(first * cols);
                match weight.dense_type {
                    DenseType::F32 => dense::<S, R, 0>(x, cols, weight, panel),
                    DenseType::Bf16 => dense::<S, R, 1>(x, cols, weight, panel),
                    DenseType::F16 => dense::<S, R, 2>(x, cols, weight, panel),
                }
            }
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
/// The same of scales, of which there are fewer.
const SCALES_AHEAD: usize = 512;

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

/// f32 activations with codes that are unpacked in registers.
#[inline(always)]
unsafe fn affine<S: Simd, const R: usize, const BLOCK: usize>(
    x: *const f32,
    cols: usize,
    weight: &GroupPanels,
    zero: Option<u8>,
    panel: usize,
) -> [S::F; R] {
    // SAFETY: the caller's promise; blocks cover all columns.
    unsafe {
        let codes = weight.codes.as_ptr().add(panel * weight.stride).cast::<u8>();
        let scales = Scales::new(weight, panel);
        let size = weight.layout.group_size;
        let mut acc = [S::splat(0.0); R];
        for group in 0..cols / size {
            let scale = scales.scale::<S>(group);
            // With a zero point: scale * (code - zero) + 0; else scale * (code - 0) + bias.
            let (zero, bias) = match zero {
                Some(zero) => (S::splat(f32::from(zero)), S::splat(0.0)),
                None => (S::splat(0.0), scales.bias::<S>(group)),
            };
            for block in 0..size / BLOCK {
                let col = group * size + block * BLOCK;
                let line = S::load_codes(codes.add(col / BLOCK * LINE));
                let terms = Terms { scale, zero, bias };
                if BLOCK == 8 {
                    quad::<S, R>(&mut acc, S::low(line), terms, x.add(col), cols);
                    quad::<S, R>(&mut acc, S::high(line), terms, x.add(col + 4), cols);
                } else {
                    quad::<S, R>(&mut acc, line, terms, x.add(col), cols);
                }
            }
        }
        acc
    }
}

/// What makes values of codes, for 16 outputs.
#[derive(Clone, Copy)]
struct Terms<F> {
    scale: F,
    zero: F,
    bias: F,
}

/// Four columns of f32 activations.
#[inline(always)]
unsafe fn quad<S: Simd, const R: usize>(
    acc: &mut [S::F; R],
    codes: S::C,
    terms: Terms<S::F>,
    x: *const f32,
    cols: usize,
) {
    // SAFETY: the caller's promise: four columns of each row can be read.
    unsafe {
        let codes =
            [S::byte::<0>(codes), S::byte::<1>(codes), S::byte::<2>(codes), S::byte::<3>(codes)];
        for (j, code) in codes.into_iter().enumerate() {
            let value = S::fma(terms.scale, S::sub(code, terms.zero), terms.bias);
            for r in 0..R {
                acc[r] = S::fma_splat(value, x.add(r * cols + j), acc[r]);
            }
        }
    }
}

/// f32 activations with codes of four bits that are looked up in a table of 16 values.
#[inline(always)]
unsafe fn looked_up<S: Simd, const R: usize>(
    x: *const f32,
    cols: usize,
    weight: &GroupPanels,
    table: &[f32; 16],
    panel: usize,
) -> [S::F; R] {
    // SAFETY: the caller's promise; blocks of 8 columns cover all of them.
    unsafe {
        let mut codes = weight.codes.as_ptr().add(panel * weight.stride).cast::<u8>();
        let scales = Scales::new(weight, panel);
        let size = weight.layout.group_size;
        let table = S::load(table.as_ptr());
        let mut acc = [S::splat(0.0); R];
        for group in 0..cols / size {
            let scale = scales.scale::<S>(group);
            for block in 0..size / 8 {
                let x = x.add(group * size + block * 8);
                let line = S::load_codes(codes);
                codes = codes.add(LINE);
                let low = [
                    S::lookup::<0>(table, line),
                    S::lookup::<8>(table, line),
                    S::lookup::<16>(table, line),
                    S::lookup::<24>(table, line),
                ];
                scaled_quad::<S, R>(&mut acc, low, scale, x, cols);
                let high = [
                    S::lookup::<4>(table, line),
                    S::lookup::<12>(table, line),
                    S::lookup::<20>(table, line),
                    S::lookup::<28>(table, line),
                ];
                scaled_quad::<S, R>(&mut acc, high, scale, x.add(4), cols);
            }
        }
        acc
    }
}

/// f32 activations with FP8 codes.
#[inline(always)]
unsafe fn e4m3<S: Simd, const R: usize>(
    x: *const f32,
    cols: usize,
    weight: &GroupPanels,
    panel: usize,
) -> [S::F; R] {
    // SAFETY: the caller's promise; blocks of 4 columns cover all of them.
    unsafe {
        let mut codes = weight.codes.as_ptr().add(panel * weight.stride).cast::<u8>();
        let scales = Scales::new(weight, panel);
        let size = weight.layout.group_size;
        let mut acc = [S::splat(0.0); R];
        for group in 0..cols / size {
            let scale = scales.scale::<S>(group);
            for block in 0..size / 4 {
                let line = S::load_codes(codes);
                codes = codes.add(LINE);
                let values = [
                    S::e4m3::<0>(line),
                    S::e4m3::<1>(line),
                    S::e4m3::<2>(line),
                    S::e4m3::<3>(line),
                ];
                scaled_quad::<S, R>(&mut acc, values, scale, x.add(group * size + block * 4), cols);
            }
        }
        acc
    }
}

/// Four columns of f32 activations with decoded values.
#[inline(always)]
unsafe fn scaled_quad<S: Simd, const R: usize>(
    acc: &mut [S::F; R],
    values: [S::F; 4],
    scale: S::F,
    x: *const f32,
    cols: usize,
) {
    // SAFETY: the caller's promise: four columns of each row can be read.
    unsafe {
        for (j, value) in values.into_iter().enumerate() {
            let value = S::mul(scale, value);
            for r in 0..R {
                acc[r] = S::fma_splat(value, x.add(r * cols + j), acc[r]);
            }
        }
    }
}

/// f32 activations with dense elements: f32 (0), bf16 (1) or f16 (2).
#[inline(always)]
unsafe fn dense<S: Simd, const R: usize, const TYPE: usize>(
    x: *const f32,
    cols: usize,
    weight: &DensePanels,
    panel: usize,
) -> [S::F; R] {
    // SAFETY: the caller's promise; the panel has 16 elements for each column.
    unsafe {
        let elements = weight.elements.as_ptr().add(panel * weight.stride);
        let mut acc = [S::splat(0.0); R];
        for col in 0..cols {
            let value = match TYPE {
                0 => S::load(elements.cast::<f32>().add(col * PANEL)),
                1 => S::load_bf16(elements.cast::<u16>().add(col * PANEL)),
                _ => S::load_f16(elements.cast::<u16>().add(col * PANEL)),
            };
            for r in 0..R {
                acc[r] = S::fma_splat(value, x.add(r * cols + col), acc[r]);
            }
        }
        acc
    }
}

/// The scales and biases of a panel.
#[derive(Clone, Copy)]
struct Scales {
    start: *const u8,
    scale_type: ScaleType,
    /// Vectors for each group: 2 with biases.
    vectors: usize,
}

impl Scales {
    /// # Safety
    /// The panel exists.
    #[inline(always)]
    unsafe fn new(weight: &GroupPanels, panel: usize) -> Self {
        // SAFETY: the caller's promise.
        let start = unsafe { weight.scales.as_ptr().add(panel * weight.scales_stride) };
        let vectors = if weight.layout.biased { 2 } else { 1 };
        Self { start: start.cast(), scale_type: weight.layout.scales, vectors }
    }

    /// Asks for numbers that come after those of a group.
    #[inline(always)]
    fn prefetch(&self, group: usize) {
        let bytes = group * self.vectors * PANEL * self.scale_type.width();
        prefetch(self.start.wrapping_add(bytes + SCALES_AHEAD));
    }

    #[inline(always)]
    unsafe fn scale<S: Simd>(&self, group: usize) -> S::F {
        // SAFETY: the caller's promise: the group exists.
        unsafe { self.vector::<S>(group * self.vectors) }
    }

    #[inline(always)]
    unsafe fn bias<S: Simd>(&self, group: usize) -> S::F {
        // SAFETY: the caller's promise: the group exists and has biases.
        unsafe { self.vector::<S>(group * self.vectors + 1) }
    }

    #[inline(always)]
    unsafe fn vector<S: Simd>(&self, index: usize) -> S::F {
        // SAFETY: the caller's promise: the vector exists.
        unsafe {
            match self.scale_type {
                ScaleType::F32 => S::load(self.start.cast::<f32>().add(index * PANEL)),
                ScaleType::F16 => S::load_f16(self.start.cast::<u16>().add(index * PANEL)),
                ScaleType::Bf16 => S::load_bf16(self.start.cast::<u16>().add(index * PANEL)),
                ScaleType::E8m0 => S::load_e8m0(self.start.add(index * PANEL)),
            }
        }
    }
}
