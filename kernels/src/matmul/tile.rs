//! The arithmetic of matmul: one panel of 16 outputs times a few rows of activations, in registers.
//!
//! Every output has one f32 accumulator that runs over the columns in order, so the bits of a row
//! do not depend on how many rows share the tile.

use super::activations::{GROUP, HALF};
use super::matrix::LINE;
use super::{AffinePanels, DensePanels, DenseType, PANEL, Quantized, ScaleType};
use crate::simd::Simd;

/// What is multiplied.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    /// Planes of quantized activations with codes, in integers.
    Quantized { x: Quantized<'a>, weight: &'a AffinePanels },
    /// f32 activations with unpacked codes.
    Affine { x: &'a [f32], cols: usize, weight: &'a AffinePanels },
    /// f32 activations with widened elements.
    Dense { x: &'a [f32], cols: usize, weight: &'a DensePanels },
}

/// Multiplies `count` rows (1, 2, 4 or 8; planes, if quantized) from `first` on with a panel.
///
/// # Safety
/// The processor has the instructions of `S`; the panel and the rows exist.
#[inline(always)]
pub(super) unsafe fn tile<S: Simd>(
    source: Source<'_>,
    panel: usize,
    first: usize,
    count: usize,
    out: &mut [[f32; PANEL]; 8],
) {
    // SAFETY: the caller's promise.
    unsafe {
        match count {
            1 => rows::<S, 1>(source, panel, first, out),
            2 => rows::<S, 2>(source, panel, first, out),
            4 => rows::<S, 4>(source, panel, first, out),
            _ => rows::<S, 8>(source, panel, first, out),
        }
    }
}

#[inline(always)]
unsafe fn rows<S: Simd, const R: usize>(
    source: Source<'_>,
    panel: usize,
    first: usize,
    out: &mut [[f32; PANEL]; 8],
) {
    // SAFETY: the caller's promise; a row of `out` has 16 elements.
    unsafe {
        let acc: [S::F; R] = match source {
            Source::Quantized { x, weight } => {
                match (weight.nibbles(), weight.format.group_size < GROUP) {
                    (true, false) => quantized::<S, R, 8, GROUP>(x, weight, panel, first),
                    (true, true) => quantized::<S, R, 8, HALF>(x, weight, panel, first),
                    (false, false) => quantized::<S, R, 4, GROUP>(x, weight, panel, first),
                    (false, true) => quantized::<S, R, 4, HALF>(x, weight, panel, first),
                }
            }
            Source::Affine { x, cols, weight } => {
                let x = x.as_ptr().add(first * cols);
                match weight.nibbles() {
                    true => affine::<S, R, 8>(x, cols, weight, panel),
                    false => affine::<S, R, 4>(x, cols, weight, panel),
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
        };
        for r in 0..R {
            S::store(out[r].as_mut_ptr(), acc[r]);
        }
    }
}

/// Integer dots over units of `UNIT` columns, blocks of `BLOCK` columns to a line of codes.
#[inline(always)]
unsafe fn quantized<S: Simd, const R: usize, const BLOCK: usize, const UNIT: usize>(
    x: Quantized<'_>,
    weight: &AffinePanels,
    panel: usize,
    first: usize,
) -> [S::F; R] {
    // SAFETY: the caller's promise; the panel's lines and the planes' groups cover all columns.
    unsafe {
        let mut codes = weight.codes.as_ptr().add(panel * weight.stride).cast::<u8>();
        let scales = Scales::new(weight, panel);
        let width = x.groups * GROUP;
        let planes = x.codes.as_ptr().add(first * width);
        let x_scales = x.scales.as_ptr().add(first * x.groups);
        let x_offsets = x.offsets.as_ptr().add(first * x.groups);
        let x_sums = x.sums.as_ptr().add(first * x.groups * 2);
        let zero = weight.format.zero_point.map(i32::from);
        let units = weight.stride * BLOCK / UNIT;
        let mut acc = [S::splat(0.0); R];
        for unit in 0..units {
            let group = unit * UNIT / GROUP;
            let mut dots = [S::int_splat(0); R];
            for block in 0..UNIT / BLOCK {
                let line = S::load_codes(codes);
                codes = codes.add(LINE);
                let at = planes.add(unit * UNIT + block * BLOCK);
                if BLOCK == 8 {
                    let (low, high) = (S::low(line), S::high(line));
                    for r in 0..R {
                        let at = at.add(r * width);
                        dots[r] = S::dot::<false>(dots[r], low, at);
                        dots[r] = S::dot::<false>(dots[r], high, at.add(4));
                    }
                } else {
                    for r in 0..R {
                        dots[r] = S::dot::<true>(dots[r], line, at.add(r * width));
                    }
                }
            }
            // A group size is a power of two, and a division would take as long as the unit.
            let index = (unit * UNIT) >> weight.format.group_size.trailing_zeros();
            let scale = scales.scale::<S>(index);
            if let Some(zero) = zero {
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
            for r in 0..R {
                let both = S::mul(scale, S::splat(*x_scales.add(r * x.groups + group)));
                acc[r] = S::fma(S::int_to_float(dots[r]), both, acc[r]);
            }
        }
        acc
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
    weight: &AffinePanels,
    panel: usize,
) -> [S::F; R] {
    // SAFETY: the caller's promise; blocks cover all columns.
    unsafe {
        let codes = weight.codes.as_ptr().add(panel * weight.stride).cast::<u8>();
        let scales = Scales::new(weight, panel);
        let size = weight.format.group_size;
        let zero = weight.format.zero_point;
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
    unsafe fn new(weight: &AffinePanels, panel: usize) -> Self {
        // SAFETY: the caller's promise.
        let start = unsafe { weight.scales.as_ptr().add(panel * weight.scales_stride) };
        let vectors = if weight.format.zero_point.is_some() { 1 } else { 2 };
        Self { start: start.cast(), scale_type: weight.format.scales, vectors }
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
            }
        }
    }
}
