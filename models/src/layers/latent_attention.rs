//! Multi-head latent attention (DeepSeek-AI, "DeepSeek-V2", arXiv 2405.04434), absorbed: keys and
//! values of all heads come from one cached latent a token, and the projections that would expand it
//! are applied to queries and to what attention gathered instead.

use candle_core::Tensor;
use sconce_kernels::{
    Activations, AttentionOptions, KvPages, Matrix, Mode, PageTable, RopeLayout, head_matmul,
    latent_attention, rope, write_kv,
};

use super::decoder::LayerStep;
use super::linear::Linear;
use super::norm::{NormKind, RmsNorm};
use super::workspace::{Allocator, Workspace};
use crate::checkpoint::RowSelection;
use crate::error::Error;
use crate::load::turn::Orientation;
use crate::load::weights::Weights;
use crate::work::Use;

/// Sizes of a latent attention layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LatentShape {
    /// Width of the residual stream.
    pub(crate) hidden_size: usize,
    /// Heads of queries, keys and values alike.
    pub(crate) heads: usize,
    /// Width that queries pass through; `None` where they are projected at once.
    pub(crate) q_lora_rank: Option<usize>,
    /// Width of the latent.
    pub(crate) kv_lora_rank: usize,
    /// Elements of a query or key head that positions do not turn.
    pub(crate) nope_dim: usize,
    /// Elements that positions turn; those of keys are the same for all heads.
    pub(crate) rope_dim: usize,
    /// Elements of a value head.
    pub(crate) value_dim: usize,
}

impl LatentShape {
    /// Rows of the projection of queries: all heads, both parts of each.
    fn q_dim(&self) -> usize {
        self.heads * (self.nope_dim + self.rope_dim)
    }

    /// Rows `part` of each of the heads' `stride` rows, head after head.
    fn of_heads(&self, stride: usize, part: std::ops::Range<usize>) -> RowSelection {
        let head = |head: usize| head * stride + part.start..head * stride + part.end;
        RowSelection::ranges((0..self.heads).map(head).collect())
    }
}

/// What latent attention does besides its sizes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct LatentKind {
    /// Whether the projections from and to the residual stream have biases.
    pub(crate) bias: bool,
    /// Scale of the scores.
    pub(crate) scale: f32,
    /// Which elements of a head are turned together.
    pub(crate) layout: RopeLayout,
    /// Added to the mean square of the latents' norms.
    pub(crate) eps: f32,
    /// Which of the model's attention layers this is.
    pub(crate) kv_layer: usize,
}

/// Weights of a latent attention layer.
#[derive(Debug)]
pub(crate) struct LatentAttention {
    q_a: Option<QueryLatent>,
    q_nope: Linear,
    q_rope: Linear,
    kv_latent: Linear,
    kv_norm: RmsNorm,
    k_rope: Linear,
    /// Queries into the space of latents, `[kv_lora_rank, nope_dim]` a head.
    embed_q: Vec<Matrix>,
    /// Sums of latents into values, `[value_dim, kv_lora_rank]` a head.
    unembed_out: Vec<Matrix>,
    o_proj: Linear,
    shape: LatentShape,
    kind: LatentKind,
}

/// What queries pass through before their heads are made.
#[derive(Debug)]
struct QueryLatent {
    proj: Linear,
    norm: RmsNorm,
}

/// Buffers of latent attention layers of one shape, `[rows, columns]` each.
#[derive(Debug)]
pub(crate) struct LatentBuffers {
    /// The query's latent, as projected and normalized; without columns where there is none.
    q_a: Tensor,
    q_a_normed: Tensor,
    /// Queries, the part without a position and the part with one.
    q_nope: Tensor,
    q_rope: Tensor,
    /// The former in the space of latents.
    q_latent: Tensor,
    /// The latent, as projected and as it is cached.
    kv_latent: Tensor,
    latents: Tensor,
    /// The rope key.
    k_rope: Tensor,
    /// What attention gathered: a sum of latents a head.
    attended: Tensor,
    /// Values, head beside head.
    values: Tensor,
}

impl LatentBuffers {
    /// Buffers for layers of `shape`.
    ///
    /// # Errors
    /// The device cannot allocate.
    pub(crate) fn new(shape: &LatentShape, allocator: &mut Allocator<'_>) -> Result<Self, Error> {
        let heads = shape.heads;
        let q_lora_rank = shape.q_lora_rank.unwrap_or(0);
        allocator.multiplies(q_lora_rank);
        allocator.multiplies(heads * shape.value_dim);
        Ok(Self {
            q_a: allocator.buffer(q_lora_rank)?,
            q_a_normed: allocator.buffer(q_lora_rank)?,
            q_nope: allocator.buffer(heads * shape.nope_dim)?,
            q_rope: allocator.buffer(heads * shape.rope_dim)?,
            q_latent: allocator.buffer(heads * shape.kv_lora_rank)?,
            kv_latent: allocator.buffer(shape.kv_lora_rank)?,
            latents: allocator.buffer(shape.kv_lora_rank)?,
            k_rope: allocator.buffer(shape.rope_dim)?,
            attended: allocator.buffer(heads * shape.kv_lora_rank)?,
            values: allocator.buffer(heads * shape.value_dim)?,
        })
    }
}

impl LatentAttention {
    /// Reads `<name>.q_proj` or `<name>.{q_a_proj,q_a_layernorm,q_b_proj}`,
    /// `<name>.{kv_a_proj_with_mqa,kv_a_layernorm,o_proj}`, and `<name>.kv_b_proj` or the two parts
    /// that some packings make of it, `<name>.{embed_q,unembed_out}`.
    ///
    /// # Errors
    /// A tensor that is missing, has another shape or cannot be read.
    pub(crate) fn load(
        weights: &mut Weights<'_>,
        name: &str,
        shape: LatentShape,
        kind: LatentKind,
    ) -> Result<Self, Error> {
        let part = |part: &str| format!("{name}.{part}");
        let (q_name, q_inputs, q_a) = match shape.q_lora_rank {
            None => (part("q_proj"), shape.hidden_size, None),
            Some(rank) => {
                let size = (rank, shape.hidden_size);
                let proj = Linear::load(weights, &part("q_a_proj"), size, kind.bias)?;
                let norm_kind = (NormKind::Plain, kind.eps);
                let norm = RmsNorm::load(weights, &part("q_a_layernorm"), rank, norm_kind)?;
                (part("q_b_proj"), rank, Some(QueryLatent { proj, norm }))
            }
        };
        let head_dim = shape.nope_dim + shape.rope_dim;
        let parts = [
            shape.of_heads(head_dim, 0..shape.nope_dim),
            shape.of_heads(head_dim, shape.nope_dim..head_dim),
        ];
        let q_weight = format!("{q_name}.weight");
        let [q_nope, q_rope] = pair(weights.split(&q_weight, &[shape.q_dim(), q_inputs], parts)?);
        let [kv_latent, k_rope] = load_kv_a(weights, &part("kv_a_proj_with_mqa"), &shape, kind)?;
        let norm_kind = (NormKind::Plain, kind.eps);
        let kv_norm =
            RmsNorm::load(weights, &part("kv_a_layernorm"), shape.kv_lora_rank, norm_kind)?;
        let (embed_q, unembed_out) =
            weights.used(Use::Exact, |weights| load_kv_b(weights, name, &shape))?;
        let size = (shape.hidden_size, shape.heads * shape.value_dim);
        let o_proj = Linear::load(weights, &part("o_proj"), size, kind.bias)?;
        Ok(Self {
            q_a,
            q_nope: Linear::new(q_nope, None),
            q_rope: Linear::new(q_rope, None),
            kv_latent,
            kv_norm,
            k_rope,
            embed_q,
            unembed_out,
            o_proj,
            shape,
            kind,
        })
    }

    /// Adds the attention of the normalized rows to the residual stream; writes the rows' latents and
    /// rope keys into their pages.
    ///
    /// # Errors
    /// An operator refused.
    pub(crate) fn forward(&self, work: &mut Workspace, at: &LayerStep<'_>) -> Result<(), Error> {
        let rows = at.rows();
        self.project(work, rows)?;
        let buffers = work.latent.as_ref().expect("the workspace was made for latent attention");
        let (table, layout) = (&at.ropes[0], self.kind.layout);
        for turned in [&buffers.q_rope, &buffers.k_rope] {
            rope(turned, &table.cos, &table.sin, self.shape.rope_dim, layout, rows)?;
        }
        self.kv_norm.forward(&buffers.latents, &buffers.kv_latent, rows)?;

        let layer = at.kv(self.kind.kv_layer);
        let kv = KvPages { keys: &layer.keys, values: &layer.values };
        write_kv(kv, &buffers.k_rope, &buffers.latents, &at.step.slots)?;
        head_matmul(&buffers.q_latent, &buffers.q_nope, &self.embed_q, rows)?;
        let table = PageTable { segments: &at.step.segments, pages: &at.step.pages };
        let options = AttentionOptions { scale: self.kind.scale, window: None };
        let (q_latent, q_rope) = (&buffers.q_latent, &buffers.q_rope);
        latent_attention(&buffers.attended, q_latent, q_rope, kv, table, options)?;
        head_matmul(&buffers.values, &buffers.attended, &self.unembed_out, rows)?;

        let o_proj = &self.o_proj;
        let x = work.activations.prepare(&buffers.values, rows, &[&o_proj.weight])?;
        o_proj.forward(&work.hidden, &x, rows, Mode::Add)
    }

    /// Queries, latents and rope keys of the normalized rows.
    fn project(&self, work: &mut Workspace, rows: usize) -> Result<(), Error> {
        let buffers = work.latent.as_ref().expect("the workspace was made for latent attention");
        let (kv_latent, k_rope) = (&self.kv_latent, &self.k_rope);
        let query = self.q_a.as_ref().map_or(&self.q_nope, |q_a| &q_a.proj);
        // Both parts of the queries have the packing of the weight that they were cut from.
        let weights = [&*query.weight, &*kv_latent.weight, &*k_rope.weight];
        let x = work.activations.prepare(&work.normed, rows, &weights)?;
        let layers = [(kv_latent, &buffers.kv_latent), (k_rope, &buffers.k_rope)];
        Linear::forward_all(layers, &x, rows)?;
        let Some(q_a) = &self.q_a else { return self.project_queries(buffers, &x, rows) };
        q_a.proj.forward(&buffers.q_a, &x, rows, Mode::Store)?;
        q_a.norm.forward(&buffers.q_a_normed, &buffers.q_a, rows)?;
        let x = work.activations.prepare(&buffers.q_a_normed, rows, &[&self.q_nope.weight])?;
        self.project_queries(buffers, &x, rows)
    }

    /// Both parts of the query heads.
    fn project_queries(
        &self,
        buffers: &LatentBuffers,
        x: &Activations<'_>,
        rows: usize,
    ) -> Result<(), Error> {
        let layers = [(&self.q_nope, &buffers.q_nope), (&self.q_rope, &buffers.q_rope)];
        Linear::forward_all(layers, x, rows)
    }
}

/// The projection of the latent and that of the rope key, which are stored as one.
fn load_kv_a(
    weights: &mut Weights<'_>,
    name: &str,
    shape: &LatentShape,
    kind: LatentKind,
) -> Result<[Linear; 2], Error> {
    let (latent, all) = (shape.kv_lora_rank, shape.kv_lora_rank + shape.rope_dim);
    let parts = [RowSelection::range(0..latent), RowSelection::range(latent..all)];
    let weight = format!("{name}.weight");
    let [kv_latent, k_rope] = pair(weights.split(&weight, &[all, shape.hidden_size], parts)?);
    let biases = match kind.bias {
        true => split_vector(&weights.vector(&format!("{name}.bias"), all)?, latent)?.map(Some),
        false => [None, None],
    };
    let [latent_bias, rope_bias] = biases;
    Ok([Linear::new(kv_latent, latent_bias), Linear::new(k_rope, rope_bias)])
}

/// For each head what takes a query to latents, and what takes latents to a value.
fn load_kv_b(
    weights: &mut Weights<'_>,
    name: &str,
    shape: &LatentShape,
) -> Result<(Vec<Matrix>, Vec<Matrix>), Error> {
    let LatentShape { heads, kv_lora_rank, nope_dim, value_dim, .. } = *shape;
    let joint = format!("{name}.kv_b_proj.weight");
    if weights.has(&joint) {
        let stride = nope_dim + value_dim;
        let parts = (0..heads).flat_map(|head| {
            let (first, middle) = (head * stride, head * stride + nope_dim);
            [
                (RowSelection::range(first..middle), Orientation::Turned),
                (RowSelection::range(middle..first + stride), Orientation::AsStored),
            ]
        });
        let matrices = weights.split_oriented(&joint, &[heads * stride, kv_lora_rank], parts)?;
        let (mut embed_q, mut unembed_out) = (Vec::new(), Vec::new());
        for (index, matrix) in matrices.into_iter().enumerate() {
            let list = if index % 2 == 0 { &mut embed_q } else { &mut unembed_out };
            list.push(matrix);
        }
        return Ok((embed_q, unembed_out));
    }
    let mut stack = |part: &str, rows: usize, cols: usize| {
        let of_head = |head: usize| RowSelection::range(head * rows..(head + 1) * rows);
        let name = format!("{name}.{part}.weight");
        weights.split(&name, &[heads, rows, cols], (0..heads).map(of_head))
    };
    Ok((stack("embed_q", kv_lora_rank, nope_dim)?, stack("unembed_out", value_dim, kv_lora_rank)?))
}

/// The two matrices of two selections.
fn pair(matrices: Vec<Matrix>) -> [Matrix; 2] {
    matrices.try_into().expect("two selections make two matrices")
}

/// A vector cut at `at`; one that was only checked is empty, and so are its parts.
fn split_vector(vector: &Tensor, at: usize) -> Result<[Tensor; 2], Error> {
    let len = vector.elem_count();
    let at = at.min(len);
    Ok([vector.narrow(0, 0, at)?, vector.narrow(0, at, len - at)?])
}
