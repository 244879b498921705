//! Causal self-attention with grouped query heads and rotary embedding, over paged keys and values.

use sconce_kernels::{
    AttentionOptions, KvPages, Mode, PageTable, RopeLayout, paged_attention, rope, write_kv,
};

use super::linear::Linear;
use super::rope::RopeTable;
use super::step::Step;
use super::workspace::Workspace;
use crate::error::Error;
use crate::load::weights::Weights;
use crate::state::LayerKv;

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
}

/// Weights of an attention layer.
#[derive(Debug)]
pub(crate) struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    shape: AttentionShape,
}

/// What an attention layer needs to know of the step besides its rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttentionStep<'a> {
    /// Rows, slots and pages.
    pub(crate) step: &'a Step,
    /// Angles of the rows.
    pub(crate) rope: &'a RopeTable,
    /// Keys and values of the layer.
    pub(crate) kv: &'a LayerKv,
}

impl Attention {
    /// Reads `<name>.{q,k,v,o}_proj`.
    ///
    /// # Errors
    /// A tensor that is missing, has another shape or cannot be read.
    pub(crate) fn load(
        weights: &mut Weights<'_>,
        name: &str,
        shape: AttentionShape,
        bias: bool,
    ) -> Result<Self, Error> {
        let (hidden, q, kv) = (shape.hidden_size, shape.q_dim(), shape.kv_dim());
        Ok(Self {
            q_proj: Linear::load(weights, &format!("{name}.q_proj"), (q, hidden), bias)?,
            k_proj: Linear::load(weights, &format!("{name}.k_proj"), (kv, hidden), bias)?,
            v_proj: Linear::load(weights, &format!("{name}.v_proj"), (kv, hidden), bias)?,
            o_proj: Linear::load(weights, &format!("{name}.o_proj"), (hidden, q), bias)?,
            shape,
        })
    }

    /// Adds the attention of the normalized rows to the residual stream, and writes the rows' keys
    /// and values into their pages.
    ///
    /// # Errors
    /// An operator refused.
    pub(crate) fn forward(&self, work: &mut Workspace, at: AttentionStep<'_>) -> Result<(), Error> {
        let rows = at.step.rows();
        self.project(work, rows)?;

        let (cos, sin, head_dim) = (&at.rope.cos, &at.rope.sin, self.shape.head_dim);
        rope(&work.q, cos, sin, head_dim, RopeLayout::Half, rows)?;
        rope(&work.k, cos, sin, head_dim, RopeLayout::Half, rows)?;

        let kv = KvPages { keys: &at.kv.keys, values: &at.kv.values };
        write_kv(kv, &work.k, &work.v, &at.step.slots)?;
        let table = PageTable { segments: &at.step.segments, pages: &at.step.pages };
        let scale = (head_dim as f32).sqrt().recip();
        let options = AttentionOptions { scale, window: None };
        paged_attention(&work.attended, &work.q, kv, table, options)?;

        let o_proj = &self.o_proj;
        let x = work.activations.prepare(&work.attended, rows, &[&o_proj.weight])?;
        o_proj.forward(&work.hidden, &x, rows, Mode::Add)
    }

    /// Queries, keys and values of the normalized rows.
    fn project(&self, work: &mut Workspace, rows: usize) -> Result<(), Error> {
        let (q, k, v) = (&self.q_proj, &self.k_proj, &self.v_proj);
        let weights = [&*q.weight, &*k.weight, &*v.weight];
        let x = work.activations.prepare(&work.normed, rows, &weights)?;
        q.forward(&work.q, &x, rows, Mode::Store)?;
        k.forward(&work.k, &x, rows, Mode::Store)?;
        v.forward(&work.v, &x, rows, Mode::Store)
    }
}
