//! The gated delta rule: linear attention whose state, a matrix for each head, forgets by a gate and
//! overwrites what it holds for a key (Yang et al., "Gated Delta Networks", arXiv 2412.06464).
//!
//! With the state `S` of a head, `[key_dim, value_dim]`, one token does
//! `S = exp(g) S; u = beta (v - S^T k); S = S + k u^T; out = S^T q`.

mod chunked;
pub(crate) mod cpu;
mod gpu;
pub(crate) mod operands;
mod prepare;
pub mod reference;
mod single;

use candle_core::Tensor;

use crate::access::{View, distinct, write};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::recurrence::Recurrence;

/// Added to the sum of squares when queries and keys are brought to length one.
pub const L2_EPS: f32 = 1e-6;

/// Which key head a value head works with; there are `value_heads / key_heads` to each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyHeads {
    /// Value head `j` uses key head `j / (value_heads / key_heads)`: checkpoints of transformers.
    Grouped,
    /// Value head `j` uses key head `j % key_heads`: GGUF files that have the value heads re-tiled.
    Tiled,
}

/// How the rule is computed; equal but for rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// Token by token. The bits do not depend on how a sequence is cut: what models use on the CPU.
    Sequential,
    /// In chunks of 64 tokens, counted from the first row of a segment, as matrix products. The bits
    /// depend on where segments start, not on states copied out of them: what models use on GPUs for
    /// segments of more than one token.
    Chunked,
}

/// What the rule reads for each token and each head.
#[derive(Debug, Clone, Copy)]
pub struct GatedDeltaInputs<'a> {
    /// `[capacity, 2 * key_heads * key_dim + value_heads * value_dim]`: queries, keys and values
    /// after the convolution, head after head, not yet normalized.
    pub qkv: &'a Tensor,
    /// `[capacity, value_heads]`: what the decay depends on.
    pub a: &'a Tensor,
    /// `[capacity, value_heads]`: what the strength of writing depends on.
    pub b: &'a Tensor,
    /// `[value_heads]`: `-exp(A_log)`.
    pub rate: &'a Tensor,
    /// `[value_heads]`: added to `a`.
    pub dt_bias: &'a Tensor,
}

/// What does not change from step to step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GatedDeltaOptions {
    /// Heads of the queries and keys.
    pub key_heads: usize,
    /// Width of a query or key head.
    pub key_dim: usize,
    /// Width of a value head.
    pub value_dim: usize,
    /// Which key head a value head works with.
    pub head_map: KeyHeads,
    /// How it is computed.
    pub form: Form,
}

/// Advances the states of a step's segments and writes what each token reads from them.
///
/// `out` is `[capacity, value_heads * value_dim]`, `state` is
/// `[slots, value_heads, key_dim, value_dim]`. Queries and keys are divided by
/// `sqrt(sum of squares + 1e-6)`, queries multiplied with `key_dim^-0.5`;
/// `g = rate * softplus(a + dt_bias)` and `beta = sigmoid(b)`.
///
/// # Errors
/// Shapes that do not fit, segments, emits or slots that [`Recurrence`] does not allow, tensors that
/// are not f32 and contiguous, a device without an implementation, tensors that share storage.
pub fn gated_delta(
    out: &Tensor,
    inputs: GatedDeltaInputs<'_>,
    state: &Tensor,
    recurrence: Recurrence<'_>,
    options: GatedDeltaOptions,
) -> Result<()> {
    const OP: &str = "gated_delta";
    let (shape, rows) = operands::shape(OP, out, &inputs, state, &options)?;
    recurrence.check(OP, rows, shape.slots)?;
    let GatedDeltaInputs { qkv, a, b, rate, dt_bias } = inputs;
    let read = [("qkv", qkv), ("a", a), ("b", b), ("rate", rate), ("dt_bias", dt_bias)];
    distinct(OP, state, &read)?;
    distinct(OP, out, &read)?;
    distinct(OP, out, &[("state", state)])?;
    if let Some(gpu) = Gpu::of(out) {
        let operands = gpu::Operands { out, inputs, state, shape };
        return gpu::gated_delta(gpu, operands, recurrence, options.form);
    }
    let (qkv, a, b) = (View::new(OP, "qkv", qkv)?, View::new(OP, "a", a)?, View::new(OP, "b", b)?);
    let (rate, dt_bias) = (View::new(OP, "rate", rate)?, View::new(OP, "dt_bias", dt_bias)?);
    let inputs = Inputs {
        qkv: qkv.slice()?,
        a: a.slice()?,
        b: b.slice()?,
        rate: rate.slice()?,
        dt_bias: dt_bias.slice()?,
    };
    write(OP, out, |out| {
        write(OP, state, |state| {
            match options.form {
                Form::Sequential => cpu::gated_delta(out, state, inputs, recurrence, &shape),
                Form::Chunked => chunked::gated_delta(out, state, inputs, recurrence, &shape),
            }
            Ok(())
        })
    })
}

/// The elements of [`GatedDeltaInputs`].
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// `[capacity, 2 * key_heads * key_dim + value_heads * value_dim]`.
    pub qkv: &'a [f32],
    /// `[capacity, value_heads]`.
    pub a: &'a [f32],
    /// `[capacity, value_heads]`.
    pub b: &'a [f32],
    /// `[value_heads]`.
    pub rate: &'a [f32],
    /// `[value_heads]`.
    pub dt_bias: &'a [f32],
}

/// Sizes of the heads and of the states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// States there are.
    pub slots: usize,
    /// Heads of the queries and keys.
    pub key_heads: usize,
    /// Heads of the values, a multiple of `key_heads`.
    pub value_heads: usize,
    /// Width of a query or key head.
    pub key_dim: usize,
    /// Width of a value head.
    pub value_dim: usize,
    /// Which key head a value head works with.
    pub head_map: KeyHeads,
}

impl Shape {
    /// Key head that a value head works with.
    pub fn key_head(&self, value_head: usize) -> usize {
        match self.head_map {
            KeyHeads::Grouped => value_head / (self.value_heads / self.key_heads),
            KeyHeads::Tiled => value_head % self.key_heads,
        }
    }

    /// Width of a row of queries, keys and values.
    pub fn qkv_width(&self) -> usize {
        2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim
    }

    /// Where the query of a row and a value head starts.
    pub fn query(&self, row: usize, value_head: usize) -> usize {
        row * self.qkv_width() + self.key_head(value_head) * self.key_dim
    }

    /// Where the key of a row and a value head starts.
    pub fn key(&self, row: usize, value_head: usize) -> usize {
        self.query(row, value_head) + self.key_heads * self.key_dim
    }

    /// Where the value of a row and a value head starts.
    pub fn value(&self, row: usize, value_head: usize) -> usize {
        let before = 2 * self.key_heads * self.key_dim + value_head * self.value_dim;
        row * self.qkv_width() + before
    }

    /// Where the output of a row and a value head starts.
    pub fn output(&self, row: usize, value_head: usize) -> usize {
        (row * self.value_heads + value_head) * self.value_dim
    }

    /// Where row `key` of the state of a slot and a value head starts.
    pub fn state(&self, slot: usize, value_head: usize, key: usize) -> usize {
        ((slot * self.value_heads + value_head) * self.key_dim + key) * self.value_dim
    }
}
