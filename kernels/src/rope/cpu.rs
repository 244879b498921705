//! `rope` on the CPU: rows over all cores; the pairs of a head are plain loops that vectorize.

use super::{Angles, RopeLayout, reference};
use crate::pool::Pool;

/// Elements that a task takes at least.
const TASK_MIN: usize = 16 * 1024;

pub(crate) fn rope(x: &mut [f32], angles: Angles<'_>, head_dim: usize, layout: RopeLayout) {
    let half = angles.half;
    if half == 0 || x.is_empty() {
        return;
    }
    let rows = angles.cos.len() / half;
    let width = x.len() / rows;
    let per_task = TASK_MIN.div_ceil(width);
    Pool::current(|pool| {
        pool.run_chunks(x, per_task * width, |index, x| {
            for (offset, x) in x.chunks_exact_mut(width).enumerate() {
                let start = (index * per_task + offset) * half;
                let (cos, sin) = (&angles.cos[start..][..half], &angles.sin[start..][..half]);
                match layout {
                    RopeLayout::Half => x.chunks_exact_mut(head_dim).for_each(|head| {
                        turn_halves(head, cos, sin);
                    }),
                    RopeLayout::Interleaved => {
                        reference::rope(x, Angles { cos, sin, half }, head_dim, layout);
                    }
                }
            }
        });
    });
}

/// Turns elements `i` and `i + half` of a head.
fn turn_halves(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, rest) = head.split_at_mut(cos.len());
    for (((a, b), cos), sin) in first.iter_mut().zip(rest).zip(cos).zip(sin) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}
