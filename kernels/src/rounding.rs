//! How a group of numbers becomes integers: one scale for all of them, and a code for each.

use crate::matmul::reference::ZERO;
use crate::simd::{LANES, Simd};

/// The scale of a group; a number is about `scale` times its code.
#[derive(Clone, Copy)]
pub(crate) struct Rounding {
    /// 0 where all numbers are (about) 0, NaN where one is infinite or not a number.
    pub(crate) scale: f32,
    inverse: f32,
}

impl Rounding {
    /// The scale with which the largest of some numbers becomes `code_max`.
    ///
    /// # Safety
    /// The processor has the instructions of `S`; `vectors` vectors can be read.
    #[inline(always)]
    pub(crate) unsafe fn of<S: Simd>(numbers: *const f32, vectors: usize, code_max: f32) -> Self {
        // SAFETY: the caller's promise.
        let (largest, poison) = unsafe {
            let (mut largest, mut poison) = (S::splat(0.0), S::splat(0.0));
            for vector in 0..vectors {
                let value = S::load(numbers.add(vector * LANES));
                largest = S::max(S::abs(value), largest);
                // Stays zero, unless a value is infinite or not a number.
                poison = S::fma(value, S::splat(0.0), poison);
            }
            (S::largest(largest), S::sum(poison))
        };
        match (poison == 0.0, largest < ZERO) {
            (false, _) => Self { scale: f32::NAN, inverse: 0.0 },
            (true, true) => Self { scale: 0.0, inverse: 0.0 },
            (true, false) => Self { scale: largest / code_max, inverse: code_max / largest },
        }
    }

    /// The codes of a vector of the numbers.
    ///
    /// # Safety
    /// The processor has the instructions of `S`.
    #[inline(always)]
    pub(crate) unsafe fn codes<S: Simd>(self, values: S::F) -> S::I {
        // SAFETY: the caller's promise.
        unsafe {
            // What a NaN rounds to differs between processors: such a group has codes of zero.
            match self.scale.is_nan() {
                true => S::int_splat(0),
                false => S::round(S::mul(values, S::splat(self.inverse))),
            }
        }
    }
}
