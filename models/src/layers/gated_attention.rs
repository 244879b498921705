//! The softmax attention of Qwen3-Next and Qwen3.5: as in `attention.rs`, with a norm on each head of
//! queries and keys, and a sigmoid gate for each element of what was gathered (Qiu et al., "Gated
//! Attention for Large Language Models", arXiv 2505.06708).

use std::sync::Arc;

use sconce_kernels::{
    Activation, AttentionOptions, KvPages, Mode, PageTable, gate_mul, paged_attention,
};

use super::attention::AttentionShape;
use super::decoder::LayerStep;
use super::linear::Linear;
use super::norm::{NormKind, RmsNorm};
use super::workspace::Workspace;
use crate::checkpoint::RowSelection;
use crate::error::Error;
use crate::load::weights::Weights;

/// Weights of a gated attention layer.
#[derive(Debug)]
pub(crate) struct GatedAttention {
    q_proj: Linear,
    gate: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    q_norm: RmsNorm,
    k_norm: RmsNorm,
    shape: AttentionShape,
    /// Which of the model's attention layers this is.
    kv_layer: usize,
}

impl GatedAttention {
    /// Reads `<name>.{q,k,v,o}_proj`, of which the first also holds the gate, and
    /// `<name>.{q,k}_norm`.
    ///
    /// # Errors
    /// A tensor that is missing, has another shape or cannot be read.
    pub(crate) fn load(
        weights: &mut Weights<'_>,
        name: &str,
        shape: AttentionShape,
        rms_norm_eps: f32,
        kv_layer: usize,
    ) -> Result<Self, Error> {
        let (hidden, q, kv) = (shape.hidden_size, shape.q_dim(), shape.kv_dim());
        let selections = [false, true].map(|gate| half(&shape, gate));
        let parts =
            weights.split(&format!("{name}.q_proj.weight"), &[2 * q, hidden], selections)?;
        let [q_proj, gate] = <[_; 2]>::try_from(parts)
            .expect("one matrix for each selection")
            .map(|matrix| Linear::shared(Arc::new(matrix)));
        let mut linear =
            |part: &str, size| Linear::load(weights, &format!("{name}.{part}"), size, false);
        let k_proj = linear("k_proj", (kv, hidden))?;
        let v_proj = linear("v_proj", (kv, hidden))?;
        let o_proj = linear("o_proj", (hidden, q))?;
        let of = (NormKind::ZeroCentred, rms_norm_eps);
        let mut norm =
            |part: &str| RmsNorm::load(weights, &format!("{name}.{part}"), shape.head_dim, of);
        let (q_norm, k_norm) = (norm("q_norm")?, norm("k_norm")?);
        Ok(Self { q_proj, gate, k_proj, v_proj, o_proj, q_norm, k_norm, shape, kv_layer })
    }

    /// Adds the attention of the normalized rows to the residual stream; writes the rows' keys and
    /// values into their pages.
    ///
    /// # Errors
    /// An operator refused.
    pub(crate) fn forward(&self, work: &mut Workspace, at: &LayerStep<'_>) -> Result<(), Error> {
        let rows = at.rows();
        self.project(work, rows)?;
        let buffers = work.attention.as_ref().expect("the workspace was made for attention");
        let layer = at.kv(self.kv_layer);
        let kv = KvPages { keys: &layer.keys, values: &layer.values };
        let norms = Some((&self.q_norm, &self.k_norm));
        buffers.prepare(&at.ropes[0], norms, kv, &at.step.slots)?;
        let table = PageTable { segments: &at.step.segments, pages: &at.step.pages };
        let options = AttentionOptions { scale: self.shape.scale(), window: None };
        paged_attention(&buffers.q, &buffers.queries, kv, table, options)?;

        let gate = &work.attention_gate;
        gate_mul(&buffers.queries, gate, &buffers.q, Activation::Sigmoid, rows)?;
        let o_proj = &self.o_proj;
        let x = work.activations.prepare(&buffers.queries, rows, &[&o_proj.weight])?;
        o_proj.forward(&work.hidden, &x, rows, Mode::Add)
    }

    /// Queries, gates, keys and values of the normalized rows.
    fn project(&self, work: &mut Workspace, rows: usize) -> Result<(), Error> {
        let (q, gate, k, v) = (&self.q_proj, &self.gate, &self.k_proj, &self.v_proj);
        let buffers = work.attention.as_ref().expect("the workspace was made for attention");
        let weights = [&*q.weight, &*gate.weight, &*k.weight, &*v.weight];
        let x = work.activations.prepare(&work.normed, rows, &weights)?;
        let layers =
            [(q, &buffers.q), (gate, &work.attention_gate), (k, &buffers.k), (v, &buffers.v)];
        Linear::forward_all(layers, &x, rows)
    }
}

/// Rows of `q_proj` that make queries, or gates: each head has first the ones, then the others.
fn half(shape: &AttentionShape, gate: bool) -> RowSelection {
    let dim = shape.head_dim;
    let start = |head: usize| (2 * head + usize::from(gate)) * dim;
    RowSelection::ranges((0..shape.heads).map(|head| start(head)..start(head) + dim).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_and_gates_take_turns_head_by_head() {
        let shape = AttentionShape { hidden_size: 8, heads: 2, kv_heads: 1, head_dim: 4 };
        assert_eq!(half(&shape, false), RowSelection::ranges(vec![0..4, 8..12]));
        assert_eq!(half(&shape, true), RowSelection::ranges(vec![4..8, 12..16]));
    }
}
