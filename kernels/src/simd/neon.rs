//! Four 128-bit registers for 16 lanes, in order. Integer products by widening ones, by the dot
//! products of signed bytes, or by those of unsigned with signed bytes.

use std::arch::aarch64::*;
use std::arch::asm;

use super::{DOT, Kernel, MIXED_DOT, NONE, Simd};

/// NEON, with `PRODUCTS` of bytes (by `FEAT_DotProd`, if `DOT`; by `FEAT_I8MM`, if `MIXED_DOT`).
#[derive(Clone, Copy)]
pub(crate) struct Neon<const PRODUCTS: usize>;

type F = [float32x4_t; 4];
type I = [int32x4_t; 4];
type C = [uint8x16_t; 4];

/// Compiles a kernel with the baseline's instructions.
///
/// # Safety
/// The processor has them.
#[target_feature(enable = "neon")]
pub(super) unsafe fn run<K: Kernel, const PRODUCTS: usize>(kernel: K) -> K::Output {
    // SAFETY: the caller's promise.
    unsafe { kernel.run::<Neon<PRODUCTS>>() }
}

/// Compiles a kernel with the baseline's instructions and dot products of signed bytes.
///
/// # Safety
/// The processor has them.
#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn run_dotprod<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller's promise.
    unsafe { kernel.run::<Neon<DOT>>() }
}

/// Compiles a kernel with these instructions and dot products of unsigned with signed bytes.
///
/// # Safety
/// The processor has them.
#[target_feature(enable = "neon,dotprod,i8mm")]
pub(super) unsafe fn run_i8mm<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller's promise.
    unsafe { kernel.run::<Neon<MIXED_DOT>>() }
}

/// `acc + a * x`, four signed bytes to a lane. Written out, as the intrinsic is not stable.
///
/// # Safety
/// The processor has the instruction.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn dot_signed(mut acc: int32x4_t, a: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: touches `acc` only.
    unsafe {
        asm!(
            "sdot {acc:v}.4s, {a:v}.16b, {x:v}.16b",
            acc = inout(vreg) acc,
            a = in(vreg) a,
            x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    acc
}

/// `acc + a * x`, four unsigned times four signed bytes to a lane; written out for the same reason.
///
/// # Safety
/// The processor has the instruction.
#[inline]
#[target_feature(enable = "neon,i8mm")]
unsafe fn dot_mixed(mut acc: int32x4_t, a: uint8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: touches `acc` only.
    unsafe {
        asm!(
            "usdot {acc:v}.4s, {a:v}.16b, {x:v}.16b",
            acc = inout(vreg) acc,
            a = in(vreg) a,
            x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    acc
}

/// `acc + a * x`, four signed bytes to a lane, of which those of `x` are not -128.
#[inline(always)]
unsafe fn dot_widening(acc: int32x4_t, a: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: every aarch64 processor has the instructions; two products are at most 2 * 128 * 127.
    unsafe {
        let low = vmull_s8(vget_low_s8(a), vget_low_s8(x));
        let high = vmull_high_s8(a, x);
        vpadalq_s16(acc, vpaddq_s16(low, high))
    }
}

/// Applies an intrinsic to all quarters.
macro_rules! all {
    ($f:expr, $a:expr) => {
        [$f($a[0]), $f($a[1]), $f($a[2]), $f($a[3])]
    };
    ($f:expr, $a:expr, $b:expr) => {
        [$f($a[0], $b[0]), $f($a[1], $b[1]), $f($a[2], $b[2]), $f($a[3], $b[3])]
    };
    ($f:expr, $a:expr, $b:expr, $c:expr) => {
        [
            $f($a[0], $b[0], $c[0]),
            $f($a[1], $b[1], $c[1]),
            $f($a[2], $b[2], $c[2]),
            $f($a[3], $b[3], $c[3]),
        ]
    };
}

// Each method is a few instructions, whose requirements are those of the trait.
#[expect(clippy::undocumented_unsafe_blocks, reason = "all by the promise of `Simd`'s callers")]
impl<const PRODUCTS: usize> Simd for Neon<PRODUCTS> {
    type F = F;
    type I = I;
    type C = C;

    const TILE_ROWS: usize = 4;
    const ATTENTION_ROWS: usize = 1;
    const STATE_VECTORS: usize = 2;

    #[inline(always)]
    unsafe fn splat(value: f32) -> F {
        unsafe { [vdupq_n_f32(value); 4] }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> F {
        unsafe { std::array::from_fn(|i| vld1q_f32(from.add(4 * i))) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, value: F) {
        unsafe {
            for i in 0..4 {
                vst1q_f32(to.add(4 * i), value[i]);
            }
        }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> F {
        unsafe {
            std::array::from_fn(|i| vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from.add(4 * i)))))
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> F {
        unsafe {
            std::array::from_fn(|i| {
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(from.add(4 * i))))
            })
        }
    }
    #[inline(always)]
    unsafe fn load_e8m0(from: *const u8) -> F {
        unsafe {
            let exponents = vld1q_u8(from);
            // 0 and 255 have the leading bit of the fraction: half the least normal number, NaN.
            let ends = vcleq_u8(vaddq_u8(exponents, vdupq_n_u8(1)), vdupq_n_u8(1));
            let fraction = vandq_u8(ends, vdupq_n_u8(1 << 6));
            all!(
                |index| {
                    // Moves byte `i` of the quarter to the lowest byte of lane `i`.
                    let index: uint8x16_t = index;
                    let exponent = vreinterpretq_u32_u8(vqtbl1q_u8(exponents, index));
                    let fraction = vreinterpretq_u32_u8(vqtbl1q_u8(fraction, index));
                    let exponent = vshlq_n_u32::<23>(exponent);
                    vreinterpretq_f32_u32(vorrq_u32(exponent, vshlq_n_u32::<16>(fraction)))
                },
                quarters()
            )
        }
    }
    #[inline(always)]
    unsafe fn add(a: F, b: F) -> F {
        unsafe { all!(|a, b| vaddq_f32(a, b), a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: F, b: F) -> F {
        unsafe { all!(|a, b| vsubq_f32(a, b), a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: F, b: F) -> F {
        unsafe { all!(|a, b| vmulq_f32(a, b), a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: F, b: F) -> F {
        unsafe { all!(|a, b| vdivq_f32(a, b), a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: F, b: F, c: F) -> F {
        unsafe { all!(|a, b, c| vfmaq_f32(c, a, b), a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: F, b: F) -> F {
        unsafe { all!(|a, b| vbslq_f32(vcgtq_f32(a, b), a, b), a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: F, b: F) -> F {
        unsafe { all!(|a, b| vbslq_f32(vcltq_f32(a, b), a, b), a, b) }
    }
    #[inline(always)]
    unsafe fn abs(a: F) -> F {
        unsafe { all!(|a| vabsq_f32(a), a) }
    }
    #[inline(always)]
    unsafe fn zero_below(a: F, limit: F, value: F) -> F {
        unsafe {
            all!(
                |a, limit, value| {
                    let below = vcltq_f32(a, limit);
                    vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(value), below))
                },
                a,
                limit,
                value
            )
        }
    }
    #[inline(always)]
    unsafe fn sum(a: F) -> f32 {
        unsafe { vaddvq_f32(vaddq_f32(vaddq_f32(a[0], a[2]), vaddq_f32(a[1], a[3]))) }
    }
    #[inline(always)]
    unsafe fn largest(a: F) -> f32 {
        unsafe { vmaxnmvq_f32(vmaxnmq_f32(vmaxnmq_f32(a[0], a[1]), vmaxnmq_f32(a[2], a[3]))) }
    }
    #[inline(always)]
    unsafe fn round(a: F) -> I {
        unsafe { all!(|a| vcvtnq_s32_f32(a), a) }
    }
    #[inline(always)]
    unsafe fn pow2(a: I) -> F {
        unsafe {
            all!(
                |a| {
                    let biased = vaddq_s32(a, vdupq_n_s32(127));
                    vreinterpretq_f32_s32(vshlq_n_s32::<23>(biased))
                },
                a
            )
        }
    }
    #[inline(always)]
    unsafe fn int_splat(value: i32) -> I {
        unsafe { [vdupq_n_s32(value); 4] }
    }
    #[inline(always)]
    unsafe fn int_to_float(a: I) -> F {
        unsafe { all!(|a| vcvtq_f32_s32(a), a) }
    }
    #[inline(always)]
    unsafe fn int_add(a: I, b: I) -> I {
        unsafe { all!(|a, b| vaddq_s32(a, b), a, b) }
    }
    #[inline(always)]
    unsafe fn int_sub(a: I, b: I) -> I {
        unsafe { all!(|a, b| vsubq_s32(a, b), a, b) }
    }
    #[inline(always)]
    unsafe fn int_shl7(a: I) -> I {
        unsafe { all!(|a| vshlq_n_s32::<7>(a), a) }
    }
    #[inline(always)]
    unsafe fn int_sar7(a: I) -> I {
        unsafe { all!(|a| vshrq_n_s32::<7>(a), a) }
    }
    #[inline(always)]
    unsafe fn int_sum(a: I) -> i32 {
        unsafe { vaddvq_s32(vaddq_s32(vaddq_s32(a[0], a[1]), vaddq_s32(a[2], a[3]))) }
    }
    #[inline(always)]
    unsafe fn store_i8(to: *mut i8, a: I) {
        unsafe {
            let low = vcombine_s16(vmovn_s32(a[0]), vmovn_s32(a[1]));
            let high = vcombine_s16(vmovn_s32(a[2]), vmovn_s32(a[3]));
            vst1q_s8(to, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
        }
    }
    #[inline(always)]
    unsafe fn load_codes(from: *const u8) -> C {
        unsafe { std::array::from_fn(|i| vld1q_u8(from.add(16 * i))) }
    }
    #[inline(always)]
    unsafe fn low(a: C) -> C {
        unsafe { all!(|a| vandq_u8(a, vdupq_n_u8(15)), a) }
    }
    #[inline(always)]
    unsafe fn high(a: C) -> C {
        unsafe { all!(|a| vshrq_n_u8::<4>(a), a) }
    }
    #[inline(always)]
    unsafe fn dot<const WIDE: bool>(acc: I, a: C, x: *const i8) -> I {
        debug_assert!(PRODUCTS != NONE, "the kernel says that it has products");
        unsafe {
            let x = vreinterpretq_s8_s32(vdupq_n_s32(x.cast::<i32>().read_unaligned()));
            if PRODUCTS == MIXED_DOT {
                return all!(|acc, a| dot_mixed(acc, a, x), acc, a);
            }
            if !WIDE {
                return all!(|acc, a| signed::<PRODUCTS>(acc, vreinterpretq_s8_u8(a), x), acc, a);
            }
            // Bytes less 128 are signed; 128 times the sum of `x` makes up for it.
            let taken = vshlq_n_s32::<7>(vpaddlq_s16(vpaddlq_s8(x)));
            all!(
                |acc, a| {
                    let a = vreinterpretq_s8_u8(veorq_u8(a, vdupq_n_u8(128)));
                    signed::<PRODUCTS>(vaddq_s32(acc, taken), a, x)
                },
                acc,
                a
            )
        }
    }
    #[inline(always)]
    unsafe fn byte<const J: u32>(a: C) -> F {
        unsafe {
            all!(
                |a| {
                    let lanes = match J {
                        0 => vreinterpretq_u32_u8(a),
                        1 => vshrq_n_u32::<8>(vreinterpretq_u32_u8(a)),
                        2 => vshrq_n_u32::<16>(vreinterpretq_u32_u8(a)),
                        _ => vshrq_n_u32::<24>(vreinterpretq_u32_u8(a)),
                    };
                    vcvtq_f32_u32(vandq_u32(lanes, vdupq_n_u32(0xff)))
                },
                a
            )
        }
    }
    #[inline(always)]
    unsafe fn e4m3<const J: u32>(a: C) -> F {
        unsafe {
            all!(
                |a| {
                    // To the highest byte of each lane, then sign, exponent and fraction to where
                    // an f32 has them; its exponents are larger by 120.
                    let up = vdupq_n_s32(24 - 8 * J as i32);
                    let top = vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_u8(a), up));
                    let places = vdupq_n_s32(0x87f0_0000_u32 as i32);
                    let bits = vandq_s32(vshrq_n_s32::<4>(top), places);
                    let factor = vdupq_n_f32(f32::from_bits((127 + 120) << 23));
                    vmulq_f32(vreinterpretq_f32_s32(bits), factor)
                },
                a
            )
        }
    }
    #[inline(always)]
    unsafe fn lookup<const SHIFT: u32>(table: F, a: C) -> F {
        unsafe {
            let [a0, a1, a2, a3] = all!(|table| vreinterpretq_u8_f32(table), table);
            let bytes = uint8x16x4_t(a0, a1, a2, a3);
            all!(
                |a| {
                    let down = vdupq_n_s32(-(SHIFT as i32));
                    let entry = vshlq_u32(vreinterpretq_u32_u8(a), down);
                    let entry = vandq_u32(entry, vdupq_n_u32(15));
                    // The four bytes of an entry follow each other.
                    let first = vmulq_n_u32(entry, 0x0404_0404);
                    let index = vaddq_u32(first, vdupq_n_u32(0x0302_0100));
                    vreinterpretq_f32_u8(vqtbl4q_u8(bytes, vreinterpretq_u8_u32(index)))
                },
                a
            )
        }
    }
    #[inline(always)]
    unsafe fn load_table(from: *const u8) -> C {
        unsafe { [vld1q_u8(from); 4] }
    }
    #[inline(always)]
    unsafe fn lookup_bytes(table: C, a: C) -> C {
        unsafe { all!(|table, a| vqtbl1q_u8(table, a), table, a) }
    }
}

/// Products of signed bytes, the way `PRODUCTS` says.
#[inline(always)]
unsafe fn signed<const PRODUCTS: usize>(acc: int32x4_t, a: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: the promise of `Simd`'s callers.
    unsafe {
        match PRODUCTS {
            DOT => dot_signed(acc, a, x),
            _ => dot_widening(acc, a, x),
        }
    }
}

/// Indices that put four bytes of 16 into the lowest bytes of four lanes, for each quarter.
#[inline(always)]
fn quarters() -> [uint8x16_t; 4] {
    const NONE: u8 = 255;
    std::array::from_fn(|quarter| {
        let bytes: [u8; 16] = std::array::from_fn(|at| match at % 4 {
            0 => (4 * quarter + at / 4) as u8,
            _ => NONE,
        });
        // SAFETY: reads 16 bytes of an array of as many.
        unsafe { vld1q_u8(bytes.as_ptr()) }
    })
}
