//! `prepare_attention` on GPUs: one launch, a warp for each head of a row.

use candle_core::Tensor;

use super::{AttentionRows, HeadNorms, OP};
use crate::access::check;
use crate::attention::{KvPages, KvSide, KvType, Shape};
use crate::error::Result;
use crate::gpu::{Call, Gpu, Grid, WARP, in_fours};

/// Widest head: what a warp holds.
const HEAD_MAX: usize = 256;
/// Warps of a block: a step of few rows spreads over some multiprocessors.
const WARPS: usize = 4;
// Lanes have the elements of a group as the sources say.
const _: () = assert!(KvSide::Keys.group() == 32 && KvSide::Values.group() == 64);

/// Prepares as many rows as there are slots.
pub(super) fn prepare_attention(
    gpu: Gpu,
    queries: &Tensor,
    rows: AttentionRows<'_>,
    norms: Option<HeadNorms<'_>>,
    (kv, slots, shape): (KvPages<'_>, &[u32], &Shape),
) -> Result<()> {
    let (dim, half) = (shape.head_dim, rows.cos.dims()[1]);
    check(OP, "q", dim <= HEAD_MAX, || {
        (format!("heads of at most {HEAD_MAX} on a GPU"), dim.to_string())
    })?;
    let AttentionRows { q, k, v, cos, sin } = rows;
    // Something to point to where there are no norms.
    let [q_norm, k_norm] = norms.map_or([q, k], |norms| [norms.q, norms.k]);
    let mut call = Call::new(OP, gpu);
    call.write::<f32>("queries", queries)?;
    match shape.kv_type {
        KvType::F32 => call.write::<f32>("keys", kv.keys)?.write::<f32>("values", kv.values)?,
        KvType::Int8 => call.write::<u32>("keys", kv.keys)?.write::<u32>("values", kv.values)?,
    };
    call.read::<f32>("q", q)?.read::<f32>("k", k)?.read::<f32>("v", v)?;
    call.read::<f32>("cos", cos)?.read::<f32>("sin", sin)?;
    call.read::<f32>("q norm", q_norm)?.read::<f32>("k norm", k_norm)?.list(slots)?;
    call.size("slots", slots.len())?.size("q", shape.heads)?.size("keys", shape.kv_heads)?;
    call.size("keys", shape.page_tokens)?.size("q", dim)?.size("cos", half)?;
    call.flag(norms.is_some()).real(norms.map_or(0.0, |norms| norms.eps));
    call.flag(in_fours(dim, &[q, k, v, q_norm, k_norm]));
    let kernel = match shape.kv_type {
        KvType::F32 => "prepare_attention_f32",
        KvType::Int8 => "prepare_attention_int8",
    };
    let heads = slots.len() * (shape.heads + 2 * shape.kv_heads);
    let grid = Grid::row(heads.div_ceil(WARPS), WARPS as u32 * WARP);
    // SAFETY: the parameters of the kernels; slots were checked against the pages, and each has a row
    // of every tensor of rows.
    unsafe { call.launch(kernel, grid) }
}
