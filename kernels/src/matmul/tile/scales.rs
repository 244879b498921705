//! The numbers that belong to the codes of a panel.

use crate::matmul::{GroupPanels, PANEL, ScaleType};
use crate::simd::{Simd, prefetch};

/// How far ahead of those that are computed with scales are fetched, in bytes; there are fewer of
/// them than of codes.
const SCALES_AHEAD: usize = 512;

/// The scales and biases of a panel.
#[derive(Clone, Copy)]
pub(super) struct Scales {
    start: *const u8,
    scale_type: ScaleType,
    /// Vectors for each group: 2 with biases.
    vectors: usize,
}

impl Scales {
    /// # Safety
    /// The panel exists.
    #[inline(always)]
    pub(super) unsafe fn new(weight: &GroupPanels, panel: usize) -> Self {
        // SAFETY: the caller's promise.
        let start = unsafe { weight.scales.as_ptr().add(panel * weight.scales_stride) };
        let vectors = if weight.layout.biased { 2 } else { 1 };
        Self { start: start.cast(), scale_type: weight.layout.scales, vectors }
    }

    /// Asks for numbers that come after those of a group.
    #[inline(always)]
    pub(super) fn prefetch(&self, group: usize) {
        let bytes = group * self.vectors * PANEL * self.scale_type.width();
        prefetch(self.start.wrapping_add(bytes + SCALES_AHEAD));
    }

    #[inline(always)]
    pub(super) unsafe fn scale<S: Simd>(&self, group: usize) -> S::F {
        // SAFETY: the caller's promise: the group exists.
        unsafe { self.vector::<S>(group * self.vectors) }
    }

    #[inline(always)]
    pub(super) unsafe fn bias<S: Simd>(&self, group: usize) -> S::F {
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
