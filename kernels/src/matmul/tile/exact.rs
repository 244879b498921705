//! Tiles with f32 activations: codes become numbers in registers.

use super::Source;
use super::scales::Scales;
use crate::matmul::codes::{E2M1, IQ4_NL};
use crate::matmul::matrix::LINE;
use crate::matmul::{Code, DensePanels, DenseType, GroupPanels, PANEL};
use crate::simd::Simd;

/// A tile of a source with f32 activations.
#[inline(always)]
pub(super) unsafe fn source<S: Simd, const R: usize>(
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
