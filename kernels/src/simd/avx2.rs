//! Two 256-bit registers for 16 lanes: lanes 0 to 7, then 8 to 15. Integer products by multiplying
//! and adding pairs, or by VNNI.

use std::arch::asm;
use std::arch::x86_64::*;

use super::{DOT, Kernel, NONE, Simd};

/// AVX2, FMA and F16C, with `PRODUCTS` of bytes (by AVX-VNNI, if `DOT`).
#[derive(Clone, Copy)]
pub(crate) struct Avx2<const PRODUCTS: usize>;

type F = [__m256; 2];
type I = [__m256i; 2];

/// Compiles a kernel with the level's instructions.
///
/// # Safety
/// The processor has them.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run<K: Kernel, const PRODUCTS: usize>(kernel: K) -> K::Output {
    // SAFETY: the caller's promise.
    unsafe { kernel.run::<Avx2<PRODUCTS>>() }
}

/// `acc + a * x`, four bytes to a lane. Written out, as the two encodings of the instruction belong
/// to different extensions and everything else should be compiled alike for both.
///
/// # Safety
/// The processor has the instruction in the encoding that is asked for.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn dot_vnni(mut acc: __m256i, a: __m256i, x: __m256i) -> __m256i {
    /// The instruction with an encoding.
    macro_rules! product {
        ($encoding:literal) => {
            asm!(
                concat!($encoding, " vpdpbusd {acc}, {a}, {x}"),
                acc = inout(ymm_reg) acc,
                a = in(ymm_reg) a,
                x = in(ymm_reg) x,
                options(pure, nomem, nostack, preserves_flags)
            )
        };
    }
    // SAFETY: touches `acc` only.
    unsafe {
        if cfg!(feature = "evex-vnni") {
            product!("{{evex}}");
        } else {
            product!("{{vex}}");
        }
    }
    acc
}

/// Applies an intrinsic to both halves.
macro_rules! both {
    ($f:expr, $a:expr) => {
        [$f($a[0]), $f($a[1])]
    };
    ($f:expr, $a:expr, $b:expr) => {
        [$f($a[0], $b[0]), $f($a[1], $b[1])]
    };
    ($f:expr, $a:expr, $b:expr, $c:expr) => {
        [$f($a[0], $b[0], $c[0]), $f($a[1], $b[1], $c[1])]
    };
}

// Each method is a few instructions, whose requirements are those of the trait.
#[expect(clippy::undocumented_unsafe_blocks, reason = "all by the promise of `Simd`'s callers")]
impl<const PRODUCTS: usize> Simd for Avx2<PRODUCTS> {
    type F = F;
    type I = I;
    type C = I;

    const TILE_ROWS: usize = if PRODUCTS == DOT { 4 } else { 2 };
    const ATTENTION_ROWS: usize = 1;
    const STATE_VECTORS: usize = 2;

    #[inline(always)]
    unsafe fn splat(value: f32) -> F {
        unsafe { [_mm256_set1_ps(value); 2] }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> F {
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, value: F) {
        unsafe {
            _mm256_storeu_ps(to, value[0]);
            _mm256_storeu_ps(to.add(8), value[1]);
        }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> F {
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(from.add(8).cast())),
            ]
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> F {
        unsafe {
            let wide = [
                _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast())),
                _mm256_cvtepu16_epi32(_mm_loadu_si128(from.add(8).cast())),
            ];
            both!(|half| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(half)), wide)
        }
    }
    #[inline(always)]
    unsafe fn load_e8m0(from: *const u8) -> F {
        unsafe {
            let exponents = _mm_loadu_si128(from.cast());
            let eight = [exponents, _mm_unpackhi_epi64(exponents, exponents)];
            both!(
                |eight| {
                    let wide = _mm256_cvtepu8_epi32(eight);
                    // 0 and 255 have the leading bit of the fraction: half the least normal number,
                    // NaN.
                    let low = _mm256_cmpeq_epi32(wide, _mm256_setzero_si256());
                    let high = _mm256_cmpeq_epi32(wide, _mm256_set1_epi32(255));
                    let ends = _mm256_or_si256(low, high);
                    let fraction = _mm256_and_si256(ends, _mm256_set1_epi32(1 << 22));
                    let exponent = _mm256_slli_epi32::<23>(wide);
                    _mm256_castsi256_ps(_mm256_or_si256(exponent, fraction))
                },
                eight
            )
        }
    }
    #[inline(always)]
    unsafe fn add(a: F, b: F) -> F {
        unsafe { both!(|a, b| _mm256_add_ps(a, b), a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: F, b: F) -> F {
        unsafe { both!(|a, b| _mm256_sub_ps(a, b), a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: F, b: F) -> F {
        unsafe { both!(|a, b| _mm256_mul_ps(a, b), a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: F, b: F) -> F {
        unsafe { both!(|a, b| _mm256_div_ps(a, b), a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: F, b: F, c: F) -> F {
        unsafe { both!(|a, b, c| _mm256_fmadd_ps(a, b, c), a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: F, b: F) -> F {
        unsafe { both!(|a, b| _mm256_max_ps(a, b), a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: F, b: F) -> F {
        unsafe { both!(|a, b| _mm256_min_ps(a, b), a, b) }
    }
    #[inline(always)]
    unsafe fn abs(a: F) -> F {
        unsafe { both!(|a| _mm256_andnot_ps(_mm256_set1_ps(-0.0), a), a) }
    }
    #[inline(always)]
    unsafe fn zero_below(a: F, limit: F, value: F) -> F {
        unsafe {
            both!(
                |a, limit, value| _mm256_and_ps(_mm256_cmp_ps::<_CMP_NLT_UQ>(a, limit), value),
                a,
                limit,
                value
            )
        }
    }
    #[inline(always)]
    unsafe fn sum(a: F) -> f32 {
        unsafe {
            let eight = _mm256_add_ps(a[0], a[1]);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
    #[inline(always)]
    unsafe fn largest(a: F) -> f32 {
        unsafe {
            let eight = _mm256_max_ps(a[0], a[1]);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
    #[inline(always)]
    unsafe fn round(a: F) -> I {
        unsafe { both!(|a| _mm256_cvtps_epi32(a), a) }
    }
    #[inline(always)]
    unsafe fn pow2(a: I) -> F {
        unsafe {
            both!(
                |a| {
                    let biased = _mm256_add_epi32(a, _mm256_set1_epi32(127));
                    _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
                },
                a
            )
        }
    }
    #[inline(always)]
    unsafe fn int_splat(value: i32) -> I {
        unsafe { [_mm256_set1_epi32(value); 2] }
    }
    #[inline(always)]
    unsafe fn int_to_float(a: I) -> F {
        unsafe { both!(|a| _mm256_cvtepi32_ps(a), a) }
    }
    #[inline(always)]
    unsafe fn int_add(a: I, b: I) -> I {
        unsafe { both!(|a, b| _mm256_add_epi32(a, b), a, b) }
    }
    #[inline(always)]
    unsafe fn int_sub(a: I, b: I) -> I {
        unsafe { both!(|a, b| _mm256_sub_epi32(a, b), a, b) }
    }
    #[inline(always)]
    unsafe fn int_shl7(a: I) -> I {
        unsafe { both!(|a| _mm256_slli_epi32::<7>(a), a) }
    }
    #[inline(always)]
    unsafe fn int_sar7(a: I) -> I {
        unsafe { both!(|a| _mm256_srai_epi32::<7>(a), a) }
    }
    #[inline(always)]
    unsafe fn int_sum(a: I) -> i32 {
        unsafe {
            let eight = _mm256_add_epi32(a[0], a[1]);
            let low = _mm256_castsi256_si128(eight);
            let four = _mm_add_epi32(low, _mm256_extracti128_si256::<1>(eight));
            let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b00_00_11_10>(four));
            _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<1>(two)))
        }
    }
    #[inline(always)]
    unsafe fn store_i8(to: *mut i8, a: I) {
        unsafe {
            // Packing saturates, so that only low bytes may be left; and it works within 128-bit
            // halves: the permutation puts the quarters in order.
            let low = both!(|a| _mm256_and_si256(a, _mm256_set1_epi32(0xff)), a);
            let words = _mm256_packus_epi32(low[0], low[1]);
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            let low = _mm256_castsi256_si128(words);
            let bytes = _mm_packus_epi16(low, _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(to.cast(), bytes);
        }
    }
    #[inline(always)]
    unsafe fn load_codes(from: *const u8) -> I {
        unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())] }
    }
    #[inline(always)]
    unsafe fn low(a: I) -> I {
        unsafe { both!(|a| _mm256_and_si256(a, _mm256_set1_epi8(15)), a) }
    }
    #[inline(always)]
    unsafe fn high(a: I) -> I {
        unsafe { both!(|a| _mm256_and_si256(_mm256_srli_epi32::<4>(a), _mm256_set1_epi8(15)), a) }
    }
    #[inline(always)]
    unsafe fn dot<const WIDE: bool>(acc: I, a: I, x: *const i8) -> I {
        debug_assert!(PRODUCTS != NONE, "the kernel says that it has products");
        unsafe {
            let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
            if PRODUCTS == DOT {
                both!(|acc, a| dot_vnni(acc, a, x), acc, a)
            } else if WIDE {
                // Pairs of full bytes would saturate 16 bits, so even and odd bytes go apart.
                let even_x = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x));
                let odd_x = _mm256_srai_epi16::<8>(x);
                both!(
                    |acc, a| {
                        let even = _mm256_and_si256(a, _mm256_set1_epi16(0xff));
                        let odd = _mm256_srli_epi16::<8>(a);
                        let even = _mm256_madd_epi16(even, even_x);
                        let odd = _mm256_madd_epi16(odd, odd_x);
                        _mm256_add_epi32(acc, _mm256_add_epi32(even, odd))
                    },
                    acc,
                    a
                )
            } else {
                // At most 2 * 127 * 127, below saturation.
                both!(
                    |acc, a| {
                        let pairs = _mm256_maddubs_epi16(a, x);
                        let quads = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
                        _mm256_add_epi32(acc, quads)
                    },
                    acc,
                    a
                )
            }
        }
    }
    #[inline(always)]
    unsafe fn byte<const J: u32>(a: I) -> F {
        unsafe {
            both!(
                |a| {
                    let lanes = match J {
                        0 => a,
                        1 => _mm256_srli_epi32::<8>(a),
                        2 => _mm256_srli_epi32::<16>(a),
                        _ => _mm256_srli_epi32::<24>(a),
                    };
                    _mm256_cvtepi32_ps(_mm256_and_si256(lanes, _mm256_set1_epi32(0xff)))
                },
                a
            )
        }
    }
    #[inline(always)]
    unsafe fn e4m3<const J: u32>(a: I) -> F {
        unsafe {
            both!(
                |a| {
                    // To the highest byte of each lane, then sign, exponent and fraction to where an
                    // f16 in the upper half has them; its exponents are larger by 8.
                    let top = _mm256_sll_epi32(a, _mm_cvtsi32_si128(24 - 8 * J as i32));
                    let places = _mm256_set1_epi32(0xbf80_0000_u32 as i32);
                    let halves = _mm256_and_si256(_mm256_srai_epi32::<1>(top), places);
                    let halves = _mm256_srli_epi32::<16>(halves);
                    let low = _mm256_castsi256_si128(halves);
                    let packed = _mm_packus_epi32(low, _mm256_extracti128_si256::<1>(halves));
                    _mm256_mul_ps(_mm256_cvtph_ps(packed), _mm256_set1_ps(256.0))
                },
                a
            )
        }
    }
    #[inline(always)]
    unsafe fn lookup<const SHIFT: u32>(table: F, a: I) -> F {
        unsafe {
            both!(
                |a| {
                    let index = _mm256_srl_epi32(a, _mm_cvtsi32_si128(SHIFT as i32));
                    // A permutation reads the low three bits of a lane only; the fourth one chooses
                    // between the halves of the table, from where the sign is.
                    let low = _mm256_permutevar8x32_ps(table[0], index);
                    let high = _mm256_permutevar8x32_ps(table[1], index);
                    let fourth = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index));
                    _mm256_blendv_ps(low, high, fourth)
                },
                a
            )
        }
    }
    #[inline(always)]
    unsafe fn load_table(from: *const u8) -> I {
        unsafe { [_mm256_broadcastsi128_si256(_mm_loadu_si128(from.cast())); 2] }
    }
    #[inline(always)]
    unsafe fn lookup_bytes(table: I, a: I) -> I {
        unsafe { both!(|table, a| _mm256_shuffle_epi8(table, a), table, a) }
    }
}
