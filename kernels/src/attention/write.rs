//! New keys and values into their pages, as they are or rounded to 8 bits.

use super::kv_type::{KEY_GROUP, VALUE_GROUP};
use super::{KvSide, Shape};
use crate::isa::Isa;
use crate::matmul::reference::INT8_MAX;
use crate::pool::{Parts, Pool};
use crate::rounding::Rounding;
use crate::simd::{Kernel, LANES, Simd, dispatch};

/// What a code of zero is.
pub(super) const ZERO_CODE: i32 = 128;

/// Elements below which the calling thread works alone.
const PARALLEL_MIN: usize = 16 * 1024;

/// The widest group: as many elements are rounded at a time, at most.
const GROUP_MAX: usize = VALUE_GROUP;
const _: () = assert!(
    KEY_GROUP <= GROUP_MAX && KEY_GROUP.is_multiple_of(LANES) && VALUE_GROUP.is_multiple_of(LANES),
    "groups are whole vectors, none wider than what is rounded at a time"
);

/// Writes rows of new keys into their blocks, transposed.
pub(crate) fn keys(keys: &mut [f32], k: &[f32], slots: &[u32], shape: &Shape) {
    for_heads(keys, k, slots, shape, KvSide::Keys, |block, offset, k| {
        for (line, k) in block.chunks_exact_mut(shape.page_tokens).zip(k) {
            line[offset] = *k;
        }
    });
}

/// Writes rows of new values into their blocks.
pub(crate) fn values(values: &mut [f32], v: &[f32], slots: &[u32], shape: &Shape) {
    for_heads(values, v, slots, shape, KvSide::Values, |block, offset, v| {
        block[shape.value_in_block(offset, 0)..][..v.len()].copy_from_slice(v);
    });
}

/// Writes rows of new keys into their blocks, in 8 bits.
pub(crate) fn key_codes(keys: &mut [u32], k: &[f32], slots: &[u32], shape: &Shape) {
    codes(keys, k, slots, shape, KvSide::Keys);
}

/// Writes rows of new values into their blocks, in 8 bits.
pub(crate) fn value_codes(values: &mut [u32], v: &[f32], slots: &[u32], shape: &Shape) {
    codes(values, v, slots, shape, KvSide::Values);
}

fn codes(pages: &mut [u32], rows: &[f32], slots: &[u32], shape: &Shape, side: KvSide) {
    let isa = Isa::current();
    let (tokens, dim) = (shape.page_tokens, shape.head_dim);
    for_heads(pages, rows, slots, shape, side, |block, offset, row| {
        let (words, scales) = block.split_at_mut(dim / 4 * tokens);
        for (group, values) in row.chunks(side.group()).enumerate() {
            let mut codes = [0; GROUP_MAX];
            let scale = dispatch(isa, Round { values, codes: &mut codes });
            scales[group * tokens + offset] = scale.to_bits();
            let first = group * side.group();
            match side {
                KvSide::Keys => {
                    let words = words[first / 4 * tokens..].iter_mut().skip(offset);
                    let (codes, _) = codes[..values.len()].as_chunks();
                    for (word, codes) in words.step_by(tokens).zip(codes) {
                        *word = u32::from_ne_bytes(*codes);
                    }
                }
                KvSide::Values => {
                    let words = &mut words[offset / 4 * dim + first..][..values.len()];
                    for (word, code) in words.iter_mut().zip(codes) {
                        let mut bytes = word.to_ne_bytes();
                        bytes[offset % 4] = code;
                        *word = u32::from_ne_bytes(bytes);
                    }
                }
            }
        }
    });
}

/// Calls `body(block, offset, elements)` for every head of every row: where the token lies in the
/// block of its page. A head's rows are one task, as several of them lie in one block.
fn for_heads<T: Send>(
    pages: &mut [T],
    rows: &[f32],
    slots: &[u32],
    shape: &Shape,
    side: KvSide,
    body: impl Fn(&mut [T], usize, &[f32]) + Sync,
) {
    let width = shape.kv_heads * shape.head_dim;
    let pages = Parts::new(pages);
    let task = |head: usize| {
        for (row, slot) in rows.chunks_exact(width).zip(slots) {
            let (page, offset) = shape.locate(*slot as usize);
            // SAFETY: slots were checked, and the blocks of a head belong to one task.
            let block = unsafe { pages.part(shape.block(side, page, head), shape.block_len(side)) };
            body(block, offset, &row[head * shape.head_dim..][..shape.head_dim]);
        }
    };
    match rows.len() < PARALLEL_MIN {
        true => (0..shape.kv_heads).for_each(task),
        false => Pool::current(|pool| pool.run(shape.kv_heads, task)),
    }
}

/// Rounds a group, a whole number of vectors, to codes; returns the scale.
struct Round<'a> {
    values: &'a [f32],
    codes: &'a mut [u8; GROUP_MAX],
}

impl Kernel for Round<'_> {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        let (values, codes) = (self.values.as_ptr(), self.codes.as_mut_ptr());
        let vectors = self.values.len() / LANES;
        // SAFETY: the caller's promise; the group has the vectors, the codes at least as many.
        unsafe {
            let rounding = Rounding::of::<S>(values, vectors, INT8_MAX);
            for at in (0..vectors).map(|vector| vector * LANES) {
                let code = rounding.codes::<S>(S::load(values.add(at)));
                S::store_i8(codes.add(at).cast(), S::int_add(code, S::int_splat(ZERO_CODE)));
            }
            rounding.scale
        }
    }
}
