//! Arrays of 16: what the compiler makes of them, on any architecture.

use half::{bf16, f16};

use super::{LANES, Simd};

/// The level without instructions of its own.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

type F = [f32; LANES];
type I = [i32; LANES];

#[inline(always)]
fn map<A: Copy, B: Copy + Default>(a: [A; LANES], f: impl Fn(A) -> B) -> [B; LANES] {
    let mut out = [B::default(); LANES];
    for i in 0..LANES {
        out[i] = f(a[i]);
    }
    out
}

#[inline(always)]
fn zip<A: Copy + Default>(a: [A; LANES], b: [A; LANES], f: impl Fn(A, A) -> A) -> [A; LANES] {
    let mut out = [A::default(); LANES];
    for i in 0..LANES {
        out[i] = f(a[i], b[i]);
    }
    out
}

impl Simd for Portable {
    type F = F;
    type I = I;
    type C = [u32; LANES];

    const TILE_ROWS: usize = 4;
    const ATTENTION_ROWS: usize = 1;
    const STATE_VECTORS: usize = 2;

    #[inline(always)]
    unsafe fn splat(value: f32) -> F {
        [value; LANES]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> F {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<F>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, value: F) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<F>().write_unaligned(value) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> F {
        // SAFETY: the caller's promise.
        let halves = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        map(halves, |half| f16::from_bits(half).to_f32())
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> F {
        // SAFETY: the caller's promise.
        let halves = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        map(halves, |half| bf16::from_bits(half).to_f32())
    }
    #[inline(always)]
    unsafe fn load_e8m0(from: *const u8) -> F {
        // SAFETY: the caller's promise.
        let exponents = unsafe { from.cast::<[u8; LANES]>().read_unaligned() };
        map(exponents, |exponent| {
            // The leading bit of the fraction makes 0 half the least normal number, 255 NaN.
            let fraction = if exponent.wrapping_add(1) <= 1 { 1 << 22 } else { 0 };
            f32::from_bits(u32::from(exponent) << 23 | fraction)
        })
    }
    #[inline(always)]
    unsafe fn add(a: F, b: F) -> F {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: F, b: F) -> F {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: F, b: F) -> F {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(a: F, b: F) -> F {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn fma(a: F, b: F, c: F) -> F {
        // `mul_add` would call a library function where the processor cannot fuse.
        zip(zip(a, b, |a, b| a * b), c, |ab, c| ab + c)
    }
    #[inline(always)]
    unsafe fn max(a: F, b: F) -> F {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(a: F, b: F) -> F {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn abs(a: F) -> F {
        map(a, f32::abs)
    }
    #[inline(always)]
    unsafe fn zero_below(a: F, limit: F, value: F) -> F {
        let mut out = value;
        for i in 0..LANES {
            if a[i] < limit[i] {
                out[i] = 0.0;
            }
        }
        out
    }
    #[inline(always)]
    unsafe fn sum(a: F) -> f32 {
        let mut a = a;
        for width in [8, 4, 2, 1] {
            for i in 0..width {
                a[i] += a[i + width];
            }
        }
        a[0]
    }
    #[inline(always)]
    unsafe fn largest(a: F) -> f32 {
        a.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    unsafe fn round(a: F) -> I {
        map(a, |a| a.round_ties_even() as i32)
    }
    #[inline(always)]
    unsafe fn pow2(a: I) -> F {
        map(a, |a| f32::from_bits(((a + 127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn int_splat(value: i32) -> I {
        [value; LANES]
    }
    #[inline(always)]
    unsafe fn int_to_float(a: I) -> F {
        map(a, |a| a as f32)
    }
    #[inline(always)]
    unsafe fn int_add(a: I, b: I) -> I {
        zip(a, b, i32::wrapping_add)
    }
    #[inline(always)]
    unsafe fn int_sub(a: I, b: I) -> I {
        zip(a, b, i32::wrapping_sub)
    }
    #[inline(always)]
    unsafe fn int_shl7(a: I) -> I {
        map(a, |a| a << 7)
    }
    #[inline(always)]
    unsafe fn int_sar7(a: I) -> I {
        map(a, |a| a >> 7)
    }
    #[inline(always)]
    unsafe fn int_sum(a: I) -> i32 {
        a.into_iter().fold(0, i32::wrapping_add)
    }
    #[inline(always)]
    unsafe fn store_i8(to: *mut i8, a: I) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[i8; LANES]>().write_unaligned(map(a, |a| a as i8)) }
    }
    #[inline(always)]
    unsafe fn load_codes(from: *const u8) -> [u32; LANES] {
        // SAFETY: the caller's promise.
        map(unsafe { from.cast::<[[u8; 4]; LANES]>().read_unaligned() }, u32::from_le_bytes)
    }
    #[inline(always)]
    unsafe fn low(a: [u32; LANES]) -> [u32; LANES] {
        map(a, |a| a & 0x0f0f_0f0f)
    }
    #[inline(always)]
    unsafe fn high(a: [u32; LANES]) -> [u32; LANES] {
        map(a, |a| a >> 4 & 0x0f0f_0f0f)
    }
    #[inline(always)]
    unsafe fn dot<const WIDE: bool>(acc: I, a: [u32; LANES], x: *const i8) -> I {
        // SAFETY: the caller's promise.
        let x = unsafe { x.cast::<[i8; 4]>().read_unaligned() };
        let mut out = acc;
        for j in 0..4 {
            for i in 0..LANES {
                let code = (a[i] >> (8 * j) & 0xff) as i32;
                out[i] = out[i].wrapping_add(code.wrapping_mul(i32::from(x[j])));
            }
        }
        out
    }
    #[inline(always)]
    unsafe fn byte<const J: u32>(a: [u32; LANES]) -> F {
        map(a, |a| (a >> (8 * J) & 0xff) as f32)
    }
    #[inline(always)]
    unsafe fn e4m3<const J: u32>(a: [u32; LANES]) -> F {
        map(a, |a| {
            // Sign, exponent and fraction where an f32 has them, whose exponents are larger by 120.
            let byte = a >> (8 * J);
            let bits = (byte & 0x80) << 24 | (byte & 0x7f) << 20;
            f32::from_bits(bits) * f32::from_bits((127 + 120) << 23)
        })
    }
    #[inline(always)]
    unsafe fn lookup<const SHIFT: u32>(table: F, a: [u32; LANES]) -> F {
        map(a, |a| table[(a >> SHIFT & 15) as usize])
    }
    #[inline(always)]
    unsafe fn load_table(from: *const u8) -> [u32; LANES] {
        // SAFETY: the caller's promise.
        let words = unsafe { from.cast::<[[u8; 4]; 4]>().read_unaligned() };
        std::array::from_fn(|lane| u32::from_le_bytes(words[lane % 4]))
    }
    #[inline(always)]
    unsafe fn lookup_bytes(table: [u32; LANES], a: [u32; LANES]) -> [u32; LANES] {
        map(a, |a| {
            u32::from_le_bytes(a.to_le_bytes().map(|byte| {
                let index = usize::from(byte & 15);
                (table[index / 4] >> (8 * (index % 4))) as u8
            }))
        })
    }
}
