//! The definition of `rope`.

use super::{Angles, RopeLayout};

/// Turns `x`, `[rows, heads, head_dim]`, in place.
pub fn rope(x: &mut [f32], angles: Angles<'_>, head_dim: usize, layout: RopeLayout) {
    let half = angles.half;
    if half == 0 {
        return;
    }
    let rows = angles.cos.len() / half;
    for row in 0..rows {
        let width = x.len() / rows;
        for head in 0..width / head_dim {
            let start = row * width + head * head_dim;
            for i in 0..half {
                let (first, second) = match layout {
                    RopeLayout::Half => (start + i, start + i + half),
                    RopeLayout::Interleaved => (start + 2 * i, start + 2 * i + 1),
                };
                let (a, b) = (x[first], x[second]);
                let (cos, sin) = (angles.cos[row * half + i], angles.sin[row * half + i]);
                x[first] = a * cos - b * sin;
                x[second] = b * cos + a * sin;
            }
        }
    }
}
