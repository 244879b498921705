//! Causal attention over cached latents, multi-head latent attention (DeepSeek-AI, "DeepSeek-V2",
//! 2024) in its absorbed form: every head reads the same latent, once as part of its key and once as
//! its value. Blocks in pages are those of `attention`.

mod cpu;
mod gpu;
pub mod reference;

use candle_core::Tensor;

use crate::access::{View, check, check_dim, distinct, rows_of, write};
use crate::attention::{AttentionOptions, KvPages, PageTable, operands};
use crate::error::Result;
use crate::gpu::Gpu;

/// `out = softmax(scale * (q_latent latent^T + q_rope key^T)) latent` for every row of every segment,
/// over the tokens it may see, head by head.
///
/// `out` and `q_latent` are `[capacity, heads * latent_dim]`, `q_rope` is
/// `[capacity, heads * rope_dim]`. The keys of `kv` are the rope keys, `[pages, 1, page_tokens,
/// rope_dim]`, its values the latents, `[pages, 1, page_tokens, latent_dim]`, both written by
/// [`write_kv`](crate::write_kv). A row's result depends on nothing but its own queries and the
/// tokens it sees.
///
/// # Errors
/// A window, which no model with latents has; pages of more than one head; a segment whose rows,
/// pages or positions lie outside of what they index; shapes that do not fit, tensors that are not
/// f32 and contiguous, a device without an implementation, tensors that share storage with `out`.
pub fn latent_attention(
    out: &Tensor,
    q_latent: &Tensor,
    q_rope: &Tensor,
    kv: KvPages<'_>,
    table: PageTable<'_>,
    options: AttentionOptions,
) -> Result<()> {
    const OP: &str = "latent_attention";
    check(OP, "window", options.window.is_none(), || {
        ("none".to_owned(), format!("{:?}", options.window))
    })?;
    let [keys, latents] = operands::pages(OP, kv)?;
    check(OP, "keys", keys.kv_heads == 1, || {
        ("[pages, 1, page_tokens, rope_dim]".to_owned(), format!("{:?}", kv.keys.dims()))
    })?;
    let (out_rows, width) = rows_of(OP, "out", out, 0)?;
    let (latent_rows, latent_width) = rows_of(OP, "q_latent", q_latent, 0)?;
    let (rope_rows, rope_width) = rows_of(OP, "q_rope", q_rope, 0)?;
    check_dim(OP, "q_latent", latent_width, width)?;
    let heads = width / latents.head_dim;
    check(OP, "out", heads > 0 && heads * latents.head_dim == width, || {
        (format!("[rows, a multiple of {}]", latents.head_dim), format!("[rows, {width}]"))
    })?;
    check_dim(OP, "q_rope", rope_width, heads * keys.head_dim)?;
    operands::table(OP, table, out_rows.min(latent_rows).min(rope_rows), &latents)?;
    distinct(
        OP,
        out,
        &[("q_latent", q_latent), ("q_rope", q_rope), ("keys", kv.keys), ("values", kv.values)],
    )?;
    let shape = Shape {
        heads,
        page_tokens: keys.page_tokens,
        rope_dim: keys.head_dim,
        latent_dim: latents.head_dim,
    };
    if let Some(gpu) = Gpu::of(out) {
        return gpu::latent_attention(gpu, out, [q_latent, q_rope], kv, table, (&shape, options));
    }
    let (q_latent, q_rope) =
        (View::new(OP, "q_latent", q_latent)?, View::new(OP, "q_rope", q_rope)?);
    let (keys, latents) = (View::new(OP, "keys", kv.keys)?, View::new(OP, "values", kv.values)?);
    let inputs = Inputs {
        q_latent: q_latent.slice()?,
        q_rope: q_rope.slice()?,
        keys: keys.slice()?,
        latents: latents.slice()?,
    };
    write(OP, out, |out| {
        cpu::latent_attention(out, inputs, table, &shape, options.scale);
        Ok(())
    })
}

/// Sizes of the pages and of a query row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Heads of the queries.
    pub heads: usize,
    /// Tokens of a page.
    pub page_tokens: usize,
    /// Width of a rope key.
    pub rope_dim: usize,
    /// Width of a latent.
    pub latent_dim: usize,
}

/// What latent attention reads.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// `[capacity, heads * latent_dim]`.
    pub q_latent: &'a [f32],
    /// `[capacity, heads * rope_dim]`.
    pub q_rope: &'a [f32],
    /// All pages of rope keys, on the CPU `[pages, rope_dim, page_tokens]`.
    pub keys: &'a [f32],
    /// All pages of latents, `[pages, page_tokens, latent_dim]`.
    pub latents: &'a [f32],
}
