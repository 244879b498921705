//! A decode step of a gated delta layer between its projections, in one call: short convolution, gated
//! delta rule and gated norm of segments of one token. `short_conv`, `gated_delta` and
//! `rms_norm_gated` are its parts, and what longer segments need.

mod cpu;
mod gpu;
pub mod reference;

use candle_core::Tensor;

use crate::access::{View, check, check_dim, distinct, rows_of, vector_of, write};
use crate::error::{Error, Result};
use crate::gated_delta::{self, Form, GatedDeltaInputs, GatedDeltaOptions, KeyHeads};
use crate::gpu::Gpu;
use crate::recurrence::Recurrence;
use crate::{rms_norm_gated, short_conv};

const OP: &str = "gated_delta_step";

/// What the step reads for each token and each head.
#[derive(Debug, Clone, Copy)]
pub struct GatedDeltaStepInputs<'a> {
    /// What the rule reads, of which `qkv` is as projected, before the convolution.
    pub rule: GatedDeltaInputs<'a>,
    /// Weight of the convolution, `[kernel, 2 * key_heads * key_dim + value_heads * value_dim]`.
    pub conv: &'a Tensor,
    /// `[capacity, value_heads * value_dim]`: gate of the norm.
    pub gate: &'a Tensor,
    /// Weight of the norm, `[value_dim]`.
    pub norm: &'a Tensor,
}

/// The states that the step advances, those of a sequence in slots of one number.
#[derive(Debug, Clone, Copy)]
pub struct GatedDeltaStates<'a> {
    /// `[slots, kernel - 1, channels]`, as in [`short_conv`](crate::short_conv()).
    pub conv: &'a Tensor,
    /// `[slots, value_heads, key_dim, value_dim]`, as in [`gated_delta`](crate::gated_delta()).
    pub delta: &'a Tensor,
}

/// What does not change from step to step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GatedDeltaStepOptions {
    /// Heads of the queries and keys.
    pub key_heads: usize,
    /// Width of a query or key head.
    pub key_dim: usize,
    /// Width of a value head.
    pub value_dim: usize,
    /// Which key head a value head works with.
    pub head_map: KeyHeads,
    /// Added to the mean of the squares by the norm.
    pub eps: f32,
}

/// Advances the states of segments of one token each and writes their outputs, normalized and gated:
/// `rms_norm_gated(gated_delta(short_conv(qkv)), gate)`.
///
/// `out` is `[capacity, value_heads * value_dim]`; rows outside of the segments are not written.
///
/// # Errors
/// Those of the three operators; a segment of more than one token; on a GPU key heads wider than 256,
/// value heads wider than 512, a kernel of more than 8.
pub fn gated_delta_step(
    out: &Tensor,
    inputs: GatedDeltaStepInputs<'_>,
    states: GatedDeltaStates<'_>,
    recurrence: Recurrence<'_>,
    options: GatedDeltaStepOptions,
) -> Result<()> {
    let shape = shape(out, &inputs, states, recurrence, &options)?;
    let GatedDeltaStepInputs { rule, conv, gate, norm } = inputs;
    let GatedDeltaInputs { qkv, a, b, rate, dt_bias } = rule;
    let read = [
        ("qkv", qkv),
        ("conv", conv),
        ("a", a),
        ("b", b),
        ("rate", rate),
        ("dt_bias", dt_bias),
        ("gate", gate),
        ("norm", norm),
    ];
    let written = [("out", out), ("conv state", states.conv), ("state", states.delta)];
    for (index, (_, tensor)) in written.iter().enumerate() {
        distinct(OP, tensor, &read)?;
        distinct(OP, tensor, &written[index + 1..])?;
    }
    if let Some(gpu) = Gpu::of(out) {
        let operands = gpu::Operands { out, inputs, states, shape };
        return gpu::gated_delta_step(gpu, operands, recurrence, options.eps);
    }
    let view = |operand, tensor| View::new(OP, operand, tensor);
    let views = (view("qkv", qkv)?, view("a", a)?, view("b", b)?);
    let (rate, dt_bias) = (view("rate", rate)?, view("dt_bias", dt_bias)?);
    let (conv, gate, norm) = (view("conv", conv)?, view("gate", gate)?, view("norm", norm)?);
    let (qkv, a, b) = (views.0.slice()?, views.1.slice()?, views.2.slice()?);
    let inputs = Inputs {
        conv: short_conv::Inputs { x: qkv, weight: conv.slice()?, channels: shape.qkv_width() },
        rule: gated_delta::Inputs { qkv, a, b, rate: rate.slice()?, dt_bias: dt_bias.slice()? },
        gate: gate.slice()?,
        norm: norm.slice()?,
        eps: options.eps,
    };
    write(OP, out, |out| {
        write(OP, states.conv, |conv| {
            write(OP, states.delta, |delta| {
                cpu::gated_delta_step(out, [conv, delta], inputs, recurrence, &shape);
                Ok(())
            })
        })
    })
}

/// Checks shapes, slots and segments.
fn shape(
    out: &Tensor,
    inputs: &GatedDeltaStepInputs<'_>,
    states: GatedDeltaStates<'_>,
    recurrence: Recurrence<'_>,
    options: &GatedDeltaStepOptions,
) -> Result<gated_delta::Shape> {
    let GatedDeltaStepOptions { key_heads, key_dim, value_dim, head_map, .. } = *options;
    let form = Form::Sequential;
    let heads = GatedDeltaOptions { key_heads, key_dim, value_dim, head_map, form };
    let (shape, rows) = gated_delta::operands::shape(OP, out, &inputs.rule, states.delta, &heads)?;
    let (gated, width) = rows_of(OP, "gate", inputs.gate, 0)?;
    check_dim(OP, "gate", width, shape.value_heads * value_dim)?;
    let found = vector_of(OP, "norm", inputs.norm)?;
    check(OP, "norm", found == value_dim, || (format!("[{value_dim}]"), format!("[{found}]")))?;
    let (kernel, channels) = rows_of(OP, "conv", inputs.conv, 2)?;
    check_dim(OP, "conv", channels, shape.qkv_width())?;
    let expected = [shape.slots, kernel - 1, channels];
    if states.conv.dims() != expected {
        return Err(Error::Shape {
            op: OP,
            operand: "conv state",
            expected: format!("{expected:?}"),
            found: format!("{:?}", states.conv.dims()),
        });
    }
    recurrence.check(OP, rows.min(gated), shape.slots)?;
    let long = recurrence.segments.iter().find(|segment| segment.len > 1);
    check(OP, "segments", long.is_none(), || {
        ("of one token each".to_owned(), format!("{long:?}"))
    })?;
    Ok(shape)
}

/// The elements of [`GatedDeltaStepInputs`].
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// What the convolution reads.
    pub conv: short_conv::Inputs<'a>,
    /// What the rule reads, but that its `qkv` is as projected.
    pub rule: gated_delta::Inputs<'a>,
    /// `[capacity, value_heads * value_dim]`.
    pub gate: &'a [f32],
    /// `[value_dim]`.
    pub norm: &'a [f32],
    /// Added to the mean of the squares.
    pub eps: f32,
}

impl<'a> Inputs<'a> {
    /// What the norm of a row reads: its part of what was read from the states, and of the gates.
    fn row(&self, read: &'a [f32], row: usize) -> rms_norm_gated::Inputs<'a> {
        let range = row * read.len()..(row + 1) * read.len();
        rms_norm_gated::Inputs {
            x: read,
            gate: &self.gate[range],
            weight: self.norm,
            eps: self.eps,
        }
    }
}
