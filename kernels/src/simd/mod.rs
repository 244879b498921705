//! Sixteen lanes of f32, of i32 or of four bytes each, on every instruction set: kernels are written
//! once against [`Simd`] and compiled for each level. Which level runs is `isa.rs`.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod exp;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
#[cfg(test)]
mod tests;

pub(crate) use self::exp::{exp, silu};
use self::portable::Portable;
use crate::isa::Isa;

/// Lanes of a vector, whatever the instruction set.
pub(crate) const LANES: usize = 16;

/// How a level multiplies bytes: not at all, for kernels that do not.
const NONE: usize = 0;
/// By several instructions.
const SEVERAL: usize = 1;
/// By one instruction for four products (VNNI; on aarch64, of signed bytes).
const DOT: usize = 2;
/// On aarch64, by one instruction for four products of unsigned with signed bytes.
#[cfg(target_arch = "aarch64")]
const MIXED_DOT: usize = 3;

/// Vector operations of one level.
///
/// # Safety
/// Every method requires that the processor has the level's instructions, which [`dispatch`]
/// ensures, and that pointers are valid for the 16 lanes they are read or written for (four bytes
/// for `dot`). No alignment is needed.
pub(crate) trait Simd: Copy + 'static {
    /// 16 f32.
    type F: Copy;
    /// 16 i32.
    type I: Copy;
    /// 16 times four unsigned bytes.
    type C: Copy;

    /// Rows of activations a matmul tile holds in registers.
    const TILE_ROWS: usize;
    /// Query rows an attention tile holds in registers, for 64 lanes of scores or values.
    const ATTENTION_ROWS: usize;
    /// Vectors of a recurrent state that a pass over its rows works on, 1 to 4.
    const STATE_VECTORS: usize;

    unsafe fn splat(value: f32) -> Self::F;
    unsafe fn load(from: *const f32) -> Self::F;
    unsafe fn store(to: *mut f32, value: Self::F);
    /// Widens 16 binary16 numbers.
    unsafe fn load_f16(from: *const u16) -> Self::F;
    /// Widens 16 bfloat16 numbers.
    unsafe fn load_bf16(from: *const u16) -> Self::F;
    /// Widens 16 powers of two, given as biased exponents of 8 bits; 255 is NaN.
    unsafe fn load_e8m0(from: *const u8) -> Self::F;
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`; rounded once, except on the portable level.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a * x[0] + c`, as `fma` rounds it.
    #[inline(always)]
    unsafe fn fma_splat(a: Self::F, x: *const f32, c: Self::F) -> Self::F {
        // SAFETY: the caller's promise.
        unsafe { Self::fma(a, Self::splat(*x), c) }
    }
    /// `if a > b { a } else { b }`: `b` if either is NaN.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// `if a < b { a } else { b }`: `b` if either is NaN.
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn abs(a: Self::F) -> Self::F;
    /// 0 where `a < limit`, else `value`.
    unsafe fn zero_below(a: Self::F, limit: Self::F, value: Self::F) -> Self::F;
    /// Sum of the lanes, in one fixed order.
    unsafe fn sum(a: Self::F) -> f32;
    /// Largest of the lanes; a NaN may be lost.
    unsafe fn largest(a: Self::F) -> f32;

    /// Rounds to the nearest integer, ties to even; for magnitudes below 2^31.
    unsafe fn round(a: Self::F) -> Self::I;
    /// `2^a` for lanes in -126..=127.
    unsafe fn pow2(a: Self::I) -> Self::F;
    unsafe fn int_splat(value: i32) -> Self::I;
    unsafe fn int_to_float(a: Self::I) -> Self::F;
    unsafe fn int_add(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn int_sub(a: Self::I, b: Self::I) -> Self::I;
    /// `a << 7`.
    unsafe fn int_shl7(a: Self::I) -> Self::I;
    /// `a >> 7`, keeping the sign.
    unsafe fn int_sar7(a: Self::I) -> Self::I;
    unsafe fn int_sum(a: Self::I) -> i32;
    /// Stores the low byte of each lane.
    unsafe fn store_i8(to: *mut i8, a: Self::I);

    /// 64 bytes.
    unsafe fn load_codes(from: *const u8) -> Self::C;
    /// The low half of each byte.
    unsafe fn low(a: Self::C) -> Self::C;
    /// The high half of each byte.
    unsafe fn high(a: Self::C) -> Self::C;
    /// `acc + a[0] * x[0] + ... + a[3] * x[3]` in each lane, with the four signed bytes at `x`
    /// (-127..=127), exactly. Bytes of `a` are below 128 unless `WIDE`. For kernels that say
    /// [`Kernel::PRODUCTS`].
    unsafe fn dot<const WIDE: bool>(acc: Self::I, a: Self::C, x: *const i8) -> Self::I;
    /// Byte `j` of each lane as a number.
    unsafe fn byte<const J: u32>(a: Self::C) -> Self::F;
    /// Byte `j` of each lane as an FP8 number (E4M3); 0x7f and 0xff, which are NaN, as 480 and -480.
    unsafe fn e4m3<const J: u32>(a: Self::C) -> Self::F;
    /// `table[i]`, where `i` is the four bits from bit `SHIFT` of each lane on.
    unsafe fn lookup<const SHIFT: u32>(table: Self::F, a: Self::C) -> Self::F;
    /// 16 bytes, as a table for `lookup_bytes`.
    unsafe fn load_table(from: *const u8) -> Self::C;
    /// `table[byte]` for every byte, all of which are below 16.
    unsafe fn lookup_bytes(table: Self::C, a: Self::C) -> Self::C;
}

/// Work that is compiled for each level.
pub(crate) trait Kernel {
    /// What it computes.
    type Output;

    /// Whether it uses [`Simd::dot`]. What does not is compiled once for levels that differ in
    /// their integer products only.
    const PRODUCTS: bool = false;

    /// Runs it; `#[inline(always)]`, so that it is compiled with the level's instructions.
    ///
    /// # Safety
    /// The processor has the instructions of `S`.
    unsafe fn run<S: Simd>(self) -> Self::Output;
}

/// Asks for the 64 bytes around `address`, which will be read soon, where a processor can be asked:
/// panels of weights and recurrent states are too short for it to see by itself that the next one
/// will be read from end to end.
#[inline(always)]
pub(crate) fn prefetch(address: *const u8) {
    // SAFETY: a hint, of baseline x86-64, that reads nothing wherever it points.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    // SAFETY: the same hint of aarch64, for which the standard library has no stable name.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!(
            "prfm pldl1keep, [{address}]",
            address = in(reg) address,
            options(readonly, nostack, preserves_flags)
        );
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = address;
}

/// As [`prefetch`], into the second-level cache: for what is read later than next, of which more can
/// be under way than the first level waits for (some two dozen lines).
#[inline(always)]
pub(crate) fn prefetch_early(address: *const u8) {
    // SAFETY: as in `prefetch`.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(address.cast());
    }
    // SAFETY: as in `prefetch`.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!(
            "prfm pldl2keep, [{address}]",
            address = in(reg) address,
            options(readonly, nostack, preserves_flags)
        );
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = address;
}

/// Runs `kernel` at level `isa`, or at the highest below it that the machine has.
pub(crate) fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    // SAFETY: the machine has the level's instructions.
    unsafe {
        match isa.usable() {
            #[cfg(target_arch = "x86_64")]
            level @ (Isa::Avx2 | Isa::Avx2Vnni | Isa::Avx512 | Isa::Avx512Vnni) => {
                x86_64(level, kernel)
            }
            #[cfg(target_arch = "aarch64")]
            level @ (Isa::Neon | Isa::NeonDotprod | Isa::NeonI8mm) => aarch64(level, kernel),
            _ => kernel.run::<Portable>(),
        }
    }
}

/// # Safety
/// The processor has the level's instructions.
#[cfg(target_arch = "x86_64")]
unsafe fn x86_64<K: Kernel>(level: Isa, kernel: K) -> K::Output {
    // SAFETY: the caller's promise.
    unsafe {
        match (level, K::PRODUCTS) {
            (Isa::Avx512Vnni, true) => avx512::run_vnni(kernel),
            (Isa::Avx512, true) => avx512::run::<K, SEVERAL>(kernel),
            (Isa::Avx512Vnni | Isa::Avx512, false) => avx512::run::<K, NONE>(kernel),
            (Isa::Avx2Vnni, true) => avx2::run::<K, DOT>(kernel),
            (_, true) => avx2::run::<K, SEVERAL>(kernel),
            (_, false) => avx2::run::<K, NONE>(kernel),
        }
    }
}

/// # Safety
/// The processor has the level's instructions.
#[cfg(target_arch = "aarch64")]
unsafe fn aarch64<K: Kernel>(level: Isa, kernel: K) -> K::Output {
    // SAFETY: the caller's promise.
    unsafe {
        match (level, K::PRODUCTS) {
            (Isa::NeonI8mm, true) => neon::run_i8mm(kernel),
            (Isa::NeonDotprod, true) => neon::run_dotprod(kernel),
            (_, true) => neon::run::<K, SEVERAL>(kernel),
            (_, false) => neon::run::<K, NONE>(kernel),
        }
    }
}
