//! `latent_attention` on GPUs: as `paged_attention`, with one key head whose keys are rope keys and
//! latents. The kernels are in `attention`.

use candle_core::Tensor;

use super::Shape;
use crate::access::check;
use crate::attention::blocks::{CHUNK, Form, Plan, SPLIT_TOKENS, form};
use crate::attention::gpu::aligned;
use crate::attention::{AttentionOptions, KvPages, PageTable};
use crate::error::Result;
use crate::gpu::{Call, Gpu, Language, scratch};

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
    aligned(OP, rope_dim, &[("q_rope", q_rope), ("keys", kv.keys)])?;
    aligned(OP, latent_dim, &[("q_latent", q_latent), ("values", kv.values)])?;
    let plan = Plan {
        group: heads,
        kv_heads: 1,
        value_dim: latent_dim,
        window: u32::MAX,
        forms: forms(gpu.language(), shape),
    };
    for run in plan.runs(table) {
        let parts = scratch(OP, out.device(), plan.scratch(&run))?;
        let mut call = Call::new(OP, gpu);
        call.write::<f32>("out", out)?;
        call.read::<f32>("q_latent", q_latent)?.read::<f32>("q_rope", q_rope)?;
        call.read::<f32>("keys", kv.keys)?.read::<f32>("values", kv.values)?;
        call.list(&run.items)?.list(table.pages)?.write::<u32>("scratch", &parts)?;
        call.size("q_latent", heads)?.size("keys", page_tokens)?;
        call.size("keys", rope_dim)?.size("values", latent_dim)?.real(options.scale);
        call.size("split", SPLIT_TOKENS)?.size("splits", run.splits)?;
        // SAFETY: the parameters of the kernels; the table was checked against the tensors.
        unsafe { plan.launch(&call, &run)? };
    }
    Ok(())
}

/// Blocks for few lines, and for many.
fn forms(language: Language, shape: &Shape) -> [Form; 2] {
    let width = |dim: usize| dim.next_multiple_of(CHUNK);
    let key_width = width(shape.rope_dim) + width(shape.latent_dim);
    let (chunks, [few, many]) = match shape.latent_dim <= CHUNK {
        true => (1, ["latent_attention_8_64", "latent_attention_32_64"]),
        false => (LATENT_MAX / CHUNK, ["latent_attention_8_512", "latent_attention_32_512"]),
    };
    let few = form(8, key_width, chunks, [few, "latent_attention_merge_8"]);
    let many = form(32, key_width, chunks, [many, "latent_attention_merge_32"]);
    [few, if many.fits(language) { many } else { few }]
}
