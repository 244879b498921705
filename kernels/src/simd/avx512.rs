//! One 512-bit register for 16 lanes. Integer products by multiplying and adding pairs, or by VNNI.

use std::arch::asm;
use std::arch::x86_64::*;

use super::{DOT, Kernel, NONE, Simd};

/// AVX-512 F, BW, DQ and VL, with `PRODUCTS` of bytes (by VNNI, if `DOT`).
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const PRODUCTS: usize>;

/// Compiles a kernel with the level's instructions.
///
/// # Safety
/// The processor has them.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2")]
pub(super) unsafe fn run<K: Kernel, const PRODUCTS: usize>(kernel: K) -> K::Output {
    // SAFETY: the caller's promise.
    unsafe { kernel.run::<Avx512<PRODUCTS>>() }
}

/// Compiles a kernel with the level's instructions and VNNI.
///
/// # Safety
/// The processor has them.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c,bmi2")]
pub(super) unsafe fn run_vnni<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller's promise.
    unsafe { kernel.run::<Avx512<DOT>>() }
}

/// `acc + a * x`, four bytes to a lane, `x` broadcast from memory. Written out, as the compiler would
/// rather load many broadcasts ahead of a loop's products and spill them.
///
/// # Safety
/// The processor has the instructions, and four bytes at `x` can be read.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn dot_broadcast(mut acc: __m512i, a: __m512i, x: *const i8) -> __m512i {
    // SAFETY: reads four bytes at `x`, and touches `acc` only.
    unsafe {
        asm!(
            "vpdpbusd {acc}, {a}, dword ptr [{x}]{{1to16}}",
            acc = inout(zmm_reg) acc,
            a = in(zmm_reg) a,
            x = in(reg) x,
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    acc
}

/// `a * x + c`, `x` broadcast from memory; written out for the same reason.
///
/// # Safety
/// The processor has the instructions, and an f32 at `x` can be read.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn fma_broadcast(a: __m512, x: *const f32, mut c: __m512) -> __m512 {
    // SAFETY: reads four bytes at `x`, and touches `c` only.
    unsafe {
        asm!(
            "vfmadd231ps {c}, {a}, dword ptr [{x}]{{1to16}}",
            c = inout(zmm_reg) c,
            a = in(zmm_reg) a,
            x = in(reg) x,
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    c
}

// Each method is one or two instructions, whose requirements are those of the trait.
#[expect(clippy::undocumented_unsafe_blocks, reason = "all by the promise of `Simd`'s callers")]
impl<const PRODUCTS: usize> Simd for Avx512<PRODUCTS> {
    type F = __m512;
    type I = __m512i;
    type C = __m512i;

    const TILE_ROWS: usize = 8;
    const ATTENTION_ROWS: usize = 6;
    const STATE_VECTORS: usize = 4;

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m512 {
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, value: __m512) {
        unsafe { _mm512_storeu_ps(to, value) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> __m512 {
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn load_e8m0(from: *const u8) -> __m512 {
        unsafe {
            let exponents = _mm_loadu_si128(from.cast());
            // 0 and 255 have the leading bit of the fraction: half the least normal number, NaN.
            let next = _mm_add_epi8(exponents, _mm_set1_epi8(1));
            let ends = _mm_cmple_epu8_mask(next, _mm_set1_epi8(1));
            let wide = _mm512_slli_epi32::<23>(_mm512_cvtepu8_epi32(exponents));
            let fraction = _mm512_set1_epi32(1 << 22);
            _mm512_castsi512_ps(_mm512_mask_or_epi32(wide, ends, wide, fraction))
        }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn fma_splat(a: __m512, x: *const f32, c: __m512) -> __m512 {
        unsafe { fma_broadcast(a, x, c) }
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn abs(a: __m512) -> __m512 {
        unsafe { _mm512_abs_ps(a) }
    }
    #[inline(always)]
    unsafe fn zero_below(a: __m512, limit: __m512, value: __m512) -> __m512 {
        unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(a, limit), value) }
    }
    #[inline(always)]
    unsafe fn sum(a: __m512) -> f32 {
        unsafe { _mm512_reduce_add_ps(a) }
    }
    #[inline(always)]
    unsafe fn largest(a: __m512) -> f32 {
        unsafe { _mm512_reduce_max_ps(a) }
    }
    #[inline(always)]
    unsafe fn round(a: __m512) -> __m512i {
        unsafe { _mm512_cvtps_epi32(a) }
    }
    #[inline(always)]
    unsafe fn pow2(a: __m512i) -> __m512 {
        unsafe {
            let biased = _mm512_add_epi32(a, _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        }
    }
    #[inline(always)]
    unsafe fn int_splat(value: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(value) }
    }
    #[inline(always)]
    unsafe fn int_to_float(a: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(a) }
    }
    #[inline(always)]
    unsafe fn int_add(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn int_sub(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_sub_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn int_shl7(a: __m512i) -> __m512i {
        unsafe { _mm512_slli_epi32::<7>(a) }
    }
    #[inline(always)]
    unsafe fn int_sar7(a: __m512i) -> __m512i {
        unsafe { _mm512_srai_epi32::<7>(a) }
    }
    #[inline(always)]
    unsafe fn int_sum(a: __m512i) -> i32 {
        unsafe { _mm512_reduce_add_epi32(a) }
    }
    #[inline(always)]
    unsafe fn store_i8(to: *mut i8, a: __m512i) {
        unsafe { _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(a)) }
    }
    #[inline(always)]
    unsafe fn load_codes(from: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn low(a: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(a, _mm512_set1_epi8(15)) }
    }
    #[inline(always)]
    unsafe fn high(a: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(_mm512_srli_epi32::<4>(a), _mm512_set1_epi8(15)) }
    }
    #[inline(always)]
    unsafe fn dot<const WIDE: bool>(acc: __m512i, a: __m512i, x: *const i8) -> __m512i {
        debug_assert!(PRODUCTS != NONE, "the kernel says that it has products");
        unsafe {
            if PRODUCTS == DOT {
                return dot_broadcast(acc, a, x);
            }
            let x = _mm512_set1_epi32(x.cast::<i32>().read_unaligned());
            if WIDE {
                // Pairs of full bytes would saturate 16 bits, so even and odd bytes go apart.
                let even_x = _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(x));
                let odd_x = _mm512_srai_epi16::<8>(x);
                let even = _mm512_and_si512(a, _mm512_set1_epi16(0xff));
                let odd = _mm512_srli_epi16::<8>(a);
                let even = _mm512_madd_epi16(even, even_x);
                let odd = _mm512_madd_epi16(odd, odd_x);
                _mm512_add_epi32(acc, _mm512_add_epi32(even, odd))
            } else {
                // At most 2 * 127 * 127, below saturation.
                let pairs = _mm512_maddubs_epi16(a, x);
                let quads = _mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
                _mm512_add_epi32(acc, quads)
            }
        }
    }
    #[inline(always)]
    unsafe fn byte<const J: u32>(a: __m512i) -> __m512 {
        unsafe {
            let lanes = match J {
                0 => a,
                1 => _mm512_srli_epi32::<8>(a),
                2 => _mm512_srli_epi32::<16>(a),
                _ => _mm512_srli_epi32::<24>(a),
            };
            _mm512_cvtepi32_ps(_mm512_and_si512(lanes, _mm512_set1_epi32(0xff)))
        }
    }
    #[inline(always)]
    unsafe fn e4m3<const J: u32>(a: __m512i) -> __m512 {
        unsafe {
            // To the highest byte of each lane, then sign, exponent and fraction to where an f16 in
            // the upper half has them; its exponents are larger by 8.
            let top = _mm512_sll_epi32(a, _mm_cvtsi32_si128(24 - 8 * J as i32));
            let places = _mm512_set1_epi32(0xbf80_0000_u32 as i32);
            let halves = _mm512_and_si512(_mm512_srai_epi32::<1>(top), places);
            let halves = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(halves));
            _mm512_mul_ps(_mm512_cvtph_ps(halves), _mm512_set1_ps(256.0))
        }
    }
    #[inline(always)]
    unsafe fn lookup<const SHIFT: u32>(table: __m512, a: __m512i) -> __m512 {
        // The permutation reads the low four bits of a lane only.
        unsafe { _mm512_permutexvar_ps(_mm512_srli_epi32::<SHIFT>(a), table) }
    }
    #[inline(always)]
    unsafe fn load_table(from: *const u8) -> __m512i {
        unsafe { _mm512_broadcast_i32x4(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn lookup_bytes(table: __m512i, a: __m512i) -> __m512i {
        unsafe { _mm512_shuffle_epi8(table, a) }
    }
}
