//! Causal self-attention with grouped query heads and rotary embedding, over paged keys and values:
//! of Llama, of Qwen3 (with norms on queries and keys), of Gemma (with windows).

use candle_core::Tensor;
use sconce_kernels::{
    AttentionOptions, AttentionRows, HeadNorms, KvPages, Mode, PageTable, paged_attention,
    prepare_attention,
};

use super::decoder::LayerStep;
use super::linear::Linear;
use super::mlp::Output;
use super::norm::{NormKind, RmsNorm};
use super::rope::RopeTable;
use super::workspace::{Allocator, Workspace};
use crate::error::Error;
use crate::load::weights::Weights;

/// Sizes of an attention layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AttentionShape {
    /// Width of the residual stream.
    pub(crate) hidden_size: usize,
    /// Query heads, a multiple of `kv_heads`.
    pub(crate) heads: usize,
    /// Key and value heads.
    pub(crate) kv_heads: usize,
    /// Elements of a head.
    pub(crate) head_dim: usize,
}

impl AttentionShape {
    /// Columns of all query heads.
    pub(crate) fn q_dim(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Columns of all key heads, or all value heads.
    pub(crate) fn kv_dim(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Scale of the scores unless an architecture has its own.
    pub(crate) fn scale(&self) -> f32 {
        (self.head_dim as f32).sqrt().recip()
    }
}

/// What attention does besides its sizes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct AttentionKind {
    /// Whether q, k, v and o have biases.
    pub(crate) bias: bool,
    /// Norms on each head of queries and keys, and their epsilon.
    pub(crate) qk_norm: Option<(NormKind, f32)>,
    /// Which of the architecture's ropes turns queries and keys.
    pub(crate) rope: usize,
    /// Scale of the scores.
    pub(crate) scale: f32,
    /// Tokens that a query sees, itself included; all before it if `None`.
    pub(crate) window: Option<usize>,
    /// Which of the model's attention layers this is.
    pub(crate) kv_layer: usize,
}

/// Weights of an attention layer.
#[derive(Debug)]
pub(crate) struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    q_norm: Option<RmsNorm>,
    k_norm: Option<RmsNorm>,
    kind: AttentionKind,
}

/// Buffers of attention layers of one shape, `[rows, columns]` each.
#[derive(Debug)]
pub(crate) struct AttentionBuffers {
    /// Queries, as projected; then what attention gathered, head beside head.
    pub(crate) q: Tensor,
    /// Queries, as attention reads them.
    pub(crate) queries: Tensor,
    /// Keys, as projected.
    pub(crate) k: Tensor,
    /// Values.
    pub(crate) v: Tensor,
}

impl AttentionBuffers {
    /// Buffers for layers of `shape`.
    ///
    /// # Errors
    /// The device cannot allocate.
    pub(crate) fn new(
        shape: &AttentionShape,
        allocator: &mut Allocator<'_>,
    ) -> Result<Self, Error> {
        let (q, kv) = (shape.q_dim(), shape.kv_dim());
        allocator.multiplies(q);
        if allocator.device().is_cpu() {
            // Keys on their way to pages, which `prepare_attention` keeps in memory of the thread.
            allocator.count(allocator.rows() as u64 * kv as u64 * size_of::<f32>() as u64);
        }
        Ok(Self {
            q: allocator.buffer(q)?,
            queries: allocator.buffer(q)?,
            k: allocator.buffer(kv)?,
            v: allocator.buffer(kv)?,
        })
    }

    /// Makes of `q` the queries, and of `k` and `v` what is cached of the rows: normalizes heads by
    /// the norms of queries and of keys, if there are any, and turns them.
    ///
    /// # Errors
    /// The operator refused.
    pub(crate) fn prepare(
        &self,
        angles: &RopeTable,
        norms: Option<(&RmsNorm, &RmsNorm)>,
        kv: KvPages<'_>,
        slots: &[u32],
    ) -> Result<(), Error> {
        let RopeTable { cos, sin, .. } = angles;
        let rows = AttentionRows { q: &self.q, k: &self.k, v: &self.v, cos, sin };
        let norms = norms.map(|(q, k)| {
            // Both have the epsilon of the model.
            let ((q, eps), (k, _)) = (q.parts(), k.parts());
            HeadNorms { q, k, eps }
        });
        Ok(prepare_attention(&self.queries, rows, norms, kv, slots)?)
    }
}

impl Attention {
    /// Reads `<name>.{q,k,v,o}_proj`, and `<name>.{q,k}_norm` where there are norms.
    ///
    /// # Errors
    /// A tensor that is missing, has another shape or cannot be read.
    pub(crate) fn load(
        weights: &mut Weights<'_>,
        name: &str,
        shape: AttentionShape,
        kind: AttentionKind,
    ) -> Result<Self, Error> {
        let (hidden, q, kv) = (shape.hidden_size, shape.q_dim(), shape.kv_dim());
        let mut linear =
            |part: &str, size| Linear::load(weights, &format!("{name}.{part}"), size, kind.bias);
        let q_proj = linear("q_proj", (q, hidden))?;
        let k_proj = linear("k_proj", (kv, hidden))?;
        let v_proj = linear("v_proj", (kv, hidden))?;
        let o_proj = linear("o_proj", (hidden, q))?;
        let mut norm = |part: &str| {
            let name = format!("{name}.{part}");
            kind.qk_norm.map(|of| RmsNorm::load(weights, &name, shape.head_dim, of)).transpose()
        };
        let (q_norm, k_norm) = (norm("q_norm")?, norm("k_norm")?);
        Ok(Self { q_proj, k_proj, v_proj, o_proj, q_norm, k_norm, kind })
    }

    /// Adds the attention of the normalized rows to the residual stream, or writes it to
    /// `work.branch`; writes the rows' keys and values into their pages.
    ///
    /// # Errors
    /// An operator refused.
    pub(crate) fn forward(
        &self,
        work: &mut Workspace,
        at: &LayerStep<'_>,
        output: Output,
    ) -> Result<(), Error> {
        let rows = at.rows();
        self.project(work, rows)?;
        let buffers = work.attention.as_ref().expect("the workspace was made for attention");
        let layer = at.kv(self.kind.kv_layer);
        let kv = KvPages { keys: &layer.keys, values: &layer.values };
        let angles = &at.ropes[self.kind.rope];
        let norms = self.q_norm.as_ref().zip(self.k_norm.as_ref());
        buffers.prepare(angles, norms, kv, &at.step.slots)?;
        let table = PageTable { segments: &at.step.segments, pages: &at.step.pages };
        let options = AttentionOptions { scale: self.kind.scale, window: self.kind.window };
        paged_attention(&buffers.q, &buffers.queries, kv, table, options)?;

        let o_proj = &self.o_proj;
        let x = work.activations.prepare(&buffers.q, rows, &[&o_proj.weight])?;
        let (out, mode) = match output {
            Output::Add => (&work.hidden, Mode::Add),
            Output::Branch => (&work.branch, Mode::Store),
        };
        o_proj.forward(out, &x, rows, mode)
    }

    /// Queries, keys and values of the normalized rows.
    fn project(&self, work: &mut Workspace, rows: usize) -> Result<(), Error> {
        let (q, k, v) = (&self.q_proj, &self.k_proj, &self.v_proj);
        let buffers = work.attention.as_ref().expect("the workspace was made for attention");
        let weights = [&*q.weight, &*k.weight, &*v.weight];
        let x = work.activations.prepare(&work.normed, rows, &weights)?;
        let layers = [(q, &buffers.q), (k, &buffers.k), (v, &buffers.v)];
        Linear::forward_all(layers, &x, rows)
    }
}
