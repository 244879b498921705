//! The definition of what `prepare_attention` makes of queries and keys; into which order of a page
//! they are written is `write_kv`'s.

use crate::rms_norm::reference::rms_norm;
use crate::rope::reference::rope;
use crate::rope::{Angles, RopeLayout};

/// The heads of `x`, `[rows, heads, head_dim]`, normalized by a weight and an epsilon if there are any,
/// then turned.
pub fn heads(
    x: &[f32],
    norm: Option<(&[f32], f32)>,
    angles: Angles<'_>,
    head_dim: usize,
) -> Vec<f32> {
    let mut out = x.to_vec();
    if let Some((weight, eps)) = norm {
        rms_norm(&mut out, x, weight, eps);
    }
    rope(&mut out, angles, head_dim, RopeLayout::Half);
    out
}
