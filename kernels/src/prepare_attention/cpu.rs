//! `prepare_attention` on the CPU, one operator after another, with the keys between them in memory of
//! the thread.

use std::cell::RefCell;

use crate::attention::{Shape, write};
use crate::rms_norm;
use crate::rope::{self, Angles, RopeLayout};

thread_local! {
    /// Keys before they are written; it grows to the largest step that this thread has seen.
    static KEYS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// What is read, of at least as many rows as there are slots.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub(super) q: &'a [f32],
    pub(super) k: &'a [f32],
    pub(super) v: &'a [f32],
    /// Of just as many rows.
    pub(super) angles: Angles<'a>,
    /// Weights and epsilons of the norms of queries and keys.
    pub(super) norms: [Option<(&'a [f32], f32)>; 2],
}

/// Prepares rows for pages in f32.
pub(super) fn prepare_f32(
    queries: &mut [f32],
    [keys, values]: [&mut [f32]; 2],
    inputs: Inputs<'_>,
    slots: &[u32],
    shape: &Shape,
) {
    prepare(queries, inputs, slots, shape, |k, v| {
        write::keys(keys, k, slots, shape);
        write::values(values, v, slots, shape);
    });
}

/// Prepares rows for pages in 8 bits.
pub(super) fn prepare_int8(
    queries: &mut [f32],
    [keys, values]: [&mut [u32]; 2],
    inputs: Inputs<'_>,
    slots: &[u32],
    shape: &Shape,
) {
    prepare(queries, inputs, slots, shape, |k, v| {
        write::key_codes(keys, k, slots, shape);
        write::value_codes(values, v, slots, shape);
    });
}

fn prepare(
    queries: &mut [f32],
    inputs: Inputs<'_>,
    slots: &[u32],
    shape: &Shape,
    write: impl FnOnce(&[f32], &[f32]),
) {
    let rows = slots.len();
    let (width, kv_width) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    let heads = |out: &mut [f32], x: &[f32], norm: Option<(&[f32], f32)>| {
        match norm {
            Some((weight, eps)) => rms_norm::cpu::rms_norm(out, x, weight, eps),
            None => out.copy_from_slice(x),
        }
        rope::cpu::rope(out, inputs.angles, shape.head_dim, RopeLayout::Half);
    };
    heads(&mut queries[..rows * width], &inputs.q[..rows * width], inputs.norms[0]);
    KEYS.with_borrow_mut(|keys| {
        keys.resize(keys.len().max(rows * kv_width), 0.0);
        let keys = &mut keys[..rows * kv_width];
        heads(keys, &inputs.k[..rows * kv_width], inputs.norms[1]);
        write(keys, &inputs.v[..rows * kv_width]);
    });
}
