//! Short causal convolution over the tokens of a sequence, each channel on its own, then SiLU: what
//! gives the keys, queries and values of a gated delta layer a view of the last few tokens.

pub(crate) mod cpu;
mod gpu;
pub mod reference;

use candle_core::Tensor;

use crate::access::{View, check, check_dim, distinct, rows_of, write};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::recurrence::Recurrence;

/// `out[t, c] = silu(sum over k of weight[k, c] * x[t - (kernel - 1) + k, c])` within a sequence,
/// with `silu(y) = y / (1 + exp(-y))`.
///
/// `out` and `x` are `[capacity, channels]`, `weight` is `[kernel, channels]` with a kernel of at least 2. `state` is
/// `[slots, kernel - 1, channels]`, the last inputs of each sequence, oldest first: they stand for
/// the tokens before a segment, and its own last inputs replace them.
///
/// # Errors
/// Shapes that do not fit, segments, emits or slots that [`Recurrence`] does not allow, tensors that
/// are not f32 and contiguous, a device without an implementation, tensors that share storage, on a
/// GPU a kernel of more than 8.
pub fn short_conv(
    out: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    state: &Tensor,
    recurrence: Recurrence<'_>,
) -> Result<()> {
    const OP: &str = "short_conv";
    let (capacity, channels) = rows_of(OP, "out", out, 0)?;
    let (rows, found) = rows_of(OP, "x", x, 0)?;
    check_dim(OP, "x", found, channels)?;
    let (kernel, found) = rows_of(OP, "weight", weight, 2)?;
    check_dim(OP, "weight", found, channels)?;
    let [slots, tail, width] = *state.dims() else {
        return Err(state_error(OP, kernel - 1, channels, state));
    };
    if (tail, width) != (kernel - 1, channels) {
        return Err(state_error(OP, kernel - 1, channels, state));
    }
    check(OP, "out", channels > 0, || ("[rows, channels]".to_owned(), "[rows, 0]".to_owned()))?;
    recurrence.check(OP, capacity.min(rows), slots)?;
    distinct(OP, out, &[("x", x), ("weight", weight), ("state", state)])?;
    distinct(OP, state, &[("x", x), ("weight", weight)])?;
    if let Some(gpu) = Gpu::of(out) {
        let operands = gpu::Operands { out, x, weight, state };
        return gpu::short_conv(gpu, operands, recurrence);
    }
    let (x, weight) = (View::new(OP, "x", x)?, View::new(OP, "weight", weight)?);
    let inputs = Inputs { x: x.slice()?, weight: weight.slice()?, channels };
    write(OP, out, |out| {
        write(OP, state, |state| {
            cpu::short_conv(out, state, inputs, recurrence);
            Ok(())
        })
    })
}

fn state_error(op: &'static str, tail: usize, channels: usize, state: &Tensor) -> Error {
    Error::Shape {
        op,
        operand: "state",
        expected: format!("[slots, {tail}, {channels}]"),
        found: format!("{:?}", state.dims()),
    }
}

/// What a short convolution reads.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// `[capacity, channels]`.
    pub x: &'a [f32],
    /// `[kernel, channels]`.
    pub weight: &'a [f32],
    /// Width of a row.
    pub channels: usize,
}

impl Inputs<'_> {
    /// Inputs that an output sees, its own included.
    pub fn kernel(&self) -> usize {
        self.weight.len() / self.channels
    }
}
