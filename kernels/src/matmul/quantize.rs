//! Rounding rows of activations to integers, a group at a time; `reference::quantize` defines it.

use super::activations::{GROUP, HALF};
use super::reference::{INT8_MAX, INT16_MAX};
use crate::isa::Isa;
use crate::pool::{Parts, Pool};
use crate::rounding::Rounding;
use crate::simd::{Kernel, LANES, Simd, dispatch};

/// Rows of fewer elements in all are quantized by the calling thread alone.
const PARALLEL_MIN: usize = 32 * 1024;

/// Where the quantized rows go; see `Quantized` for the layout.
pub(super) struct Target<'a> {
    pub(super) codes: &'a mut [i8],
    pub(super) scales: &'a mut [f32],
    pub(super) offsets: &'a mut [f32],
    pub(super) sums: &'a mut [i32],
    pub(super) groups: usize,
    pub(super) planes: usize,
}

/// Quantizes the rows of `x`, `[rows, dim]`.
pub(super) fn rows(x: &[f32], dim: usize, target: Target<'_>) {
    if dim == 0 {
        return;
    }
    let isa = Isa::current();
    let (groups, planes) = (target.groups, target.planes);
    let numbers = groups * planes;
    let (codes, scales) = (Parts::new(target.codes), Parts::new(target.scales));
    let (offsets, sums) = (Parts::new(target.offsets), Parts::new(target.sums));
    let count = x.len() / dim;
    let per_task = if x.len() < PARALLEL_MIN { count.max(1) } else { 8 };
    let task = |task: usize| {
        for row in task * per_task..count.min((task + 1) * per_task) {
            // SAFETY: each row comes once, and rows do not overlap.
            let kernel = unsafe {
                Row {
                    x: &x[row * dim..][..dim],
                    codes: codes.part(row * numbers * GROUP, numbers * GROUP),
                    scales: scales.part(row * numbers, numbers),
                    offsets: offsets.part(row * numbers, numbers),
                    sums: sums.part(row * numbers * 2, numbers * 2),
                    groups,
                    planes,
                }
            };
            dispatch(isa, kernel);
        }
    };
    Pool::current(|pool| pool.run(count.div_ceil(per_task), task));
}

/// One row, and the one or two planes it becomes.
struct Row<'a> {
    x: &'a [f32],
    codes: &'a mut [i8],
    scales: &'a mut [f32],
    offsets: &'a mut [f32],
    sums: &'a mut [i32],
    groups: usize,
    planes: usize,
}

impl Kernel for Row<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(mut self) {
        for group in 0..self.groups {
            let rest = &self.x[group * GROUP..];
            let mut padded = [0.0; GROUP];
            let values = match rest.first_chunk::<GROUP>() {
                Some(values) => values,
                None => {
                    padded[..rest.len()].copy_from_slice(rest);
                    &padded
                }
            };
            // SAFETY: the caller's promise.
            unsafe { self.group::<S>(group, values) };
        }
    }
}

impl Row<'_> {
    /// Quantizes one group into each plane.
    #[inline(always)]
    unsafe fn group<S: Simd>(&mut self, group: usize, values: &[f32; GROUP]) {
        let max = if self.planes == 1 { INT8_MAX } else { INT16_MAX };
        // SAFETY: the caller's promise; `values` has two vectors.
        unsafe {
            let rounding = Rounding::of::<S>(values.as_ptr(), GROUP / LANES, max);
            for half in 0..2 {
                let codes = rounding.codes::<S>(S::load(values.as_ptr().add(half * HALF)));
                if self.planes == 1 {
                    self.place::<S>(0, 2 * group + half, codes);
                } else {
                    let high = S::int_sar7(S::int_add(codes, S::int_splat(64)));
                    self.place::<S>(0, 2 * group + half, high);
                    self.place::<S>(1, 2 * group + half, S::int_sub(codes, S::int_shl7(high)));
                }
            }
            if self.planes == 2 {
                self.finish(0, group, rounding.scale * 128.0);
            }
            self.finish(self.planes - 1, group, rounding.scale);
        }
    }

    /// Stores the codes and the sum of half a group of a plane.
    #[inline(always)]
    unsafe fn place<S: Simd>(&mut self, plane: usize, half: usize, codes: S::I) {
        let index = plane * self.groups * 2 + half;
        let target = &mut self.codes[index * HALF..][..HALF];
        // SAFETY: the caller's promise; `target` has 16 elements.
        unsafe {
            S::store_i8(target.as_mut_ptr(), codes);
            self.sums[index] = S::int_sum(codes);
        }
    }

    /// Stores the scale of a group of a plane, whose sums are there.
    #[inline(always)]
    fn finish(&mut self, plane: usize, group: usize, scale: f32) {
        let index = plane * self.groups + group;
        self.scales[index] = scale;
        self.offsets[index] = scale * (self.sums[2 * index] + self.sums[2 * index + 1]) as f32;
    }
}
