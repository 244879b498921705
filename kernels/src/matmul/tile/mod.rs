//! The arithmetic of matmul: one panel of 16 outputs times a few rows of activations, in registers.
//!
//! Every output has one f32 accumulator that runs over the columns in order, so the bits of a row
//! do not depend on how many rows share the tile.

mod exact;
mod integer;
mod scales;

use super::codes::Integers;
use super::{Code, DensePanels, GroupPanels, Matrix, PANEL, Packed, Quantized};
use crate::simd::Simd;

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
    /// The product of a weight of the CPU with rows of activations, in integers where both are such.
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
            (Packed::Device(_), ..) => unreachable!("operators refuse it: `Matrix::check_place`"),
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
            integer::source::<S, R>(source, panel, first)
        } else {
            exact::source::<S, R>(source, panel, first)
        };
        for r in 0..R {
            S::store(out[r].as_mut_ptr(), acc[r]);
        }
    }
}
