//! `latent_attention` on GPUs: as `paged_attention`, with one key head whose keys are rope keys and
//! latents. The kernels are in `attention`.

use candle_core::Tensor;

use super::Shape;
use crate::access::check;
use crate::attention::gpu::{CHUNK, LINES, Plan, SPLIT_TOKENS};
use crate::attention::{AttentionOptions, KvPages, PageTable};
use crate::error::Result;
use crate::gpu::{Call, Gpu};

/// Widest latent.
const LATENT_MAX: usize = 512;

/// Attention of every row of every segment.
pub(super) fn latent_attention(
    gpu: Gpu,
    out: &Tensor,
    [q_latent, q_rope]: [&Tensor; 2],
    kv: KvPages<'_>,
    table: PageTable<'_>,
    (shape, options): (&Shape, AttentionOptions),
) -> Result<()> {
    const OP: &str = "latent_attention";
    let Shape { heads, page_tokens, rope_dim, latent_dim } = *shape;
    check(OP, "keys", latent_dim <= LATENT_MAX && rope_dim <= CHUNK, || {
        let expected = format!("rope keys of at most {CHUNK}, latents of at most {LATENT_MAX}");
        (expected, format!("{rope_dim} and {latent_dim}"))
    })?;
    let plan = Plan {
        group: heads,
        kv_heads: 1,
        key_width: rope_dim.next_multiple_of(CHUNK) + latent_dim.next_multiple_of(CHUNK),
        value_dim: latent_dim,
        chunks: if latent_dim <= CHUNK { 1 } else { LATENT_MAX / CHUNK },
        window: u32::MAX,
        language: gpu.language(),
    };
    for run in plan.runs(table) {
        let mut call = Call::new(OP, gpu);
        call.write::<f32>("out", out)?;
        call.read::<f32>("q_latent", q_latent)?.read::<f32>("q_rope", q_rope)?;
        call.read::<f32>("keys", kv.keys)?.read::<f32>("values", kv.values)?;
        call.list(&run.items)?.list(table.pages)?.scratch(plan.scratch(&run));
        call.size("q_latent", heads)?.size("keys", page_tokens)?;
        call.size("keys", rope_dim)?.size("values", latent_dim)?.real(options.scale);
        call.size("split", SPLIT_TOKENS)?.size("splits", run.splits)?;
        let few = run.lines == LINES[0];
        let kernel = match (few, latent_dim <= CHUNK) {
            (true, true) => "latent_attention_8_64",
            (true, false) => "latent_attention_8_512",
            (false, true) => "latent_attention_32_64",
            (false, false) => "latent_attention_32_512",
        };
        let merge =
            if few { "latent_attention_merge_8" } else { "latent_attention_merge_32" };
        // SAFETY: the parameters of the kernels; the table was checked against the tensors.
        unsafe { plan.launch(&call, &run, kernel, merge)? };
    }
    Ok(())
}
