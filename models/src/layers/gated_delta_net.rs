//! The linear-attention layer of Qwen3-Next and Qwen3.5 (Yang et al., "Gated Delta Networks", arXiv
//! 2412.06464): projections, a short convolution, the gated delta rule, a gated norm.
//!
//! Its state of a sequence has one size whatever the sequence's length, see `state/recurrent.rs`.

use std::sync::Arc;

use candle_core::Tensor;
use sconce_kernels::{
    Form, GatedDeltaInputs, GatedDeltaOptions, GatedDeltaStates, GatedDeltaStepInputs,
    GatedDeltaStepOptions, KeyHeads, Mode, Recurrence, gated_delta, gated_delta_step, gpu,
    rms_norm_gated, short_conv,
};

use super::decoder::LayerStep;
use super::linear::Linear;
use super::workspace::{Allocator, Workspace};
use crate::checkpoint::RowSelection;
use crate::error::Error;
use crate::load::weights::Weights;
use crate::state::RecurrentGroup;

/// Sizes of a gated delta layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DeltaShape {
    /// Width of the residual stream.
    pub(crate) hidden_size: usize,
    /// Heads of queries and keys.
    pub(crate) key_heads: usize,
    /// Heads of values, a multiple of `key_heads`.
    pub(crate) value_heads: usize,
    /// Elements of a query or key head.
    pub(crate) key_dim: usize,
    /// Elements of a value head.
    pub(crate) value_dim: usize,
    /// Inputs that the convolution sees, at least 2.
    pub(crate) kernel: usize,
}

impl DeltaShape {
    /// Columns of all value heads.
    fn values(&self) -> usize {
        self.value_heads * self.value_dim
    }

    /// Columns of all queries, keys and values: channels of the convolution.
    fn channels(&self) -> usize {
        2 * self.key_heads * self.key_dim + self.values()
    }

    /// State of `layers` such layers.
    pub(crate) fn state(&self, layers: usize) -> RecurrentGroup {
        RecurrentGroup {
            layers,
            conv_tail: self.kernel - 1,
            conv_channels: self.channels(),
            value_heads: self.value_heads,
            key_dim: self.key_dim,
            value_dim: self.value_dim,
        }
    }

    /// Rows of `in_proj_qkvz`, which for each key head has a query, a key, the values of its value
    /// heads and their gates: first those of all queries, keys and values, then those of the gates.
    fn split_qkvz(&self) -> [RowSelection; 2] {
        let values = self.values() / self.key_heads;
        let sizes = [self.key_dim, self.key_dim, values, values];
        let [q, k, v, z] = grouped(self.key_heads, sizes);
        [RowSelection::ranges([q, k, v].concat()), RowSelection::ranges(z)]
    }

    /// Rows of `in_proj_ba`, which for each key head has the `b` and then the `a` of its value heads.
    fn split_ba(&self) -> [RowSelection; 2] {
        let heads = self.value_heads / self.key_heads;
        grouped(self.key_heads, [heads, heads]).map(RowSelection::ranges)
    }
}

/// Ranges of each part, where each of `groups` groups has all parts, one after another.
fn grouped<const N: usize>(groups: usize, sizes: [usize; N]) -> [Vec<std::ops::Range<usize>>; N] {
    let group: usize = sizes.iter().sum();
    std::array::from_fn(|part| {
        let before: usize = sizes[..part].iter().sum();
        let start = |index: usize| index * group + before;
        (0..groups).map(|index| start(index)..start(index) + sizes[part]).collect()
    })
}

/// Weights of a gated delta layer.
#[derive(Debug)]
pub(crate) struct GatedDeltaNet {
    in_proj: InProjections,
    /// `[kernel, channels]`.
    conv1d: Tensor,
    /// `[value_heads]`, `-exp(A_log)`.
    rate: Tensor,
    /// `[value_heads]`.
    dt_bias: Tensor,
    /// `[value_dim]`.
    norm: Tensor,
    rms_norm_eps: f32,
    out_proj: Linear,
    options: GatedDeltaOptions,
    /// Which of the model's recurrent layers this is.
    layer: usize,
}

/// Projections of the residual stream.
#[derive(Debug)]
struct InProjections {
    /// Queries, keys and values, in this order.
    qkv: Linear,
    /// Gate of the norm.
    z: Linear,
    /// Strength of writing.
    b: Linear,
    /// Decay.
    a: Linear,
}

/// Buffers of gated delta layers of one shape, `[rows, columns]` each.
#[derive(Debug)]
pub(crate) struct DeltaBuffers {
    /// Queries, keys and values, as projected.
    qkv: Tensor,
    /// The same after the convolution.
    convolved: Tensor,
    /// Gate of the norm.
    z: Tensor,
    b: Tensor,
    a: Tensor,
    /// What was read from the state.
    read: Tensor,
    /// The same, normalized and gated.
    gated: Tensor,
}

impl DeltaBuffers {
    /// Buffers for layers of `shape`.
    ///
    /// # Errors
    /// The device cannot allocate.
    pub(crate) fn new(shape: &DeltaShape, allocator: &mut Allocator<'_>) -> Result<Self, Error> {
        let (channels, values, heads) = (shape.channels(), shape.values(), shape.value_heads);
        allocator.multiplies(values);
        Ok(Self {
            qkv: allocator.buffer(channels)?,
            convolved: allocator.buffer(channels)?,
            z: allocator.buffer(values)?,
            b: allocator.buffer(heads)?,
            a: allocator.buffer(heads)?,
            read: allocator.buffer(values)?,
            gated: allocator.buffer(values)?,
        })
    }
}

impl InProjections {
    /// Reads them as one, two or four weights.
    fn load(weights: &mut Weights<'_>, name: &str, shape: &DeltaShape) -> Result<Self, Error> {
        let hidden = shape.hidden_size;
        let (channels, values, heads) = (shape.channels(), shape.values(), shape.value_heads);
        let full = |part: &str| format!("{name}.{part}.weight");
        let linear = |weights: &mut Weights<'_>, part: &str, rows: usize| {
            Linear::load(weights, &format!("{name}.{part}"), (rows, hidden), false)
        };
        let (qkvz, ba) = (full("in_proj_qkvz"), full("in_proj_ba"));
        let (qkv, z) = match weights.has(&qkvz) {
            true => pair(weights, &qkvz, [channels + values, hidden], shape.split_qkvz())?,
            false => {
                (linear(weights, "in_proj_qkv", channels)?, linear(weights, "in_proj_z", values)?)
            }
        };
        let (b, a) = match weights.has(&ba) {
            true => pair(weights, &ba, [2 * heads, hidden], shape.split_ba())?,
            false => (linear(weights, "in_proj_b", heads)?, linear(weights, "in_proj_a", heads)?),
        };
        Ok(Self { qkv, z, b, a })
    }
}

/// Two projections that are stored as one weight.
fn pair(
    weights: &mut Weights<'_>,
    name: &str,
    shape: [usize; 2],
    selections: [RowSelection; 2],
) -> Result<(Linear, Linear), Error> {
    let mut parts = weights.split(name, &shape, selections)?.into_iter();
    let mut next = || {
        let matrix = parts.next().expect("one matrix for each selection");
        Linear::shared(Arc::new(matrix))
    };
    Ok((next(), next()))
}

impl GatedDeltaNet {
    /// Reads `<name>.in_proj_*`, `conv1d`, `A_log` or `decay_rate`, `dt_bias`, `norm` and `out_proj`.
    /// `layer` counts the model's recurrent layers.
    ///
    /// # Errors
    /// A tensor that is missing, has another shape or cannot be read.
    pub(crate) fn load(
        weights: &mut Weights<'_>,
        name: &str,
        shape: &DeltaShape,
        rms_norm_eps: f32,
        layer: usize,
    ) -> Result<Self, Error> {
        let (channels, kernel) = (shape.channels(), shape.kernel);
        let full = |part: &str| format!("{name}.{part}");
        let in_proj = InProjections::load(weights, name, shape)?;
        let conv1d = weights.tensor(&full("conv1d.weight"), &[channels, kernel], |values| {
            (transposed(&values, kernel), vec![kernel, channels])
        })?;
        let rate = match weights.has(&full("decay_rate")) {
            true => weights.vector(&full("decay_rate"), shape.value_heads)?,
            false => weights.vector_map(&full("A_log"), shape.value_heads, |log| -log.exp())?,
        };
        let outputs = (shape.hidden_size, shape.values());
        let head_map = match weights.conventions().value_heads_tiled {
            true => KeyHeads::Tiled,
            false => KeyHeads::Grouped,
        };
        Ok(Self {
            in_proj,
            conv1d,
            rate,
            dt_bias: weights.vector(&full("dt_bias"), shape.value_heads)?,
            norm: weights.vector(&full("norm.weight"), shape.value_dim)?,
            rms_norm_eps,
            out_proj: Linear::load(weights, &full("out_proj"), outputs, false)?,
            options: GatedDeltaOptions {
                key_heads: shape.key_heads,
                key_dim: shape.key_dim,
                value_dim: shape.value_dim,
                head_map,
                form: Form::Sequential,
            },
            layer,
        })
    }

    /// Adds the layer's result for the normalized rows to the residual stream, and advances the state
    /// of the step's sequences: on the CPU token by token, so that bits do not depend on how a sequence
    /// is cut; on a GPU single tokens in one launch, longer segments in chunks.
    ///
    /// # Errors
    /// An operator refused.
    pub(crate) fn forward(&self, work: &mut Workspace, at: &LayerStep<'_>) -> Result<(), Error> {
        let rows = at.rows();
        self.project(work, rows)?;
        let buffers = work.delta.as_ref().expect("the workspace was made for gated delta layers");
        let step = at.step;
        match gpu::is_gpu(buffers.qkv.device()) {
            false => {
                let all = Recurrence { segments: &step.recurrent, emits: &step.emits };
                self.mix(buffers, at, all, Form::Sequential)?;
            }
            true => {
                let (long, single) = (step.long.recurrence(), step.single.recurrence());
                // Its norm is over all rows: what it leaves in those of single tokens is replaced.
                if !long.segments.is_empty() {
                    self.mix(buffers, at, long, Form::Chunked)?;
                }
                if !single.segments.is_empty() {
                    self.mix_single(buffers, at, single)?;
                }
            }
        }
        let out_proj = &self.out_proj;
        let x = work.activations.prepare(&buffers.gated, rows, &[&out_proj.weight])?;
        out_proj.forward(&work.hidden, &x, rows, Mode::Add)
    }

    /// Takes segments through convolution, rule and norm, one after another.
    fn mix(
        &self,
        buffers: &DeltaBuffers,
        at: &LayerStep<'_>,
        recurrence: Recurrence<'_>,
        form: Form,
    ) -> Result<(), Error> {
        let state = at.recurrent(self.layer);
        short_conv(&buffers.convolved, &buffers.qkv, &self.conv1d, &state.conv, recurrence)?;
        let inputs = self.inputs(buffers, &buffers.convolved);
        let options = GatedDeltaOptions { form, ..self.options };
        gated_delta(&buffers.read, inputs, &state.delta, recurrence, options)?;
        let (norm, eps) = (&self.norm, self.rms_norm_eps);
        Ok(rms_norm_gated(&buffers.gated, &buffers.read, &buffers.z, norm, eps, at.rows())?)
    }

    /// The same for segments of one token, at once.
    fn mix_single(
        &self,
        buffers: &DeltaBuffers,
        at: &LayerStep<'_>,
        recurrence: Recurrence<'_>,
    ) -> Result<(), Error> {
        let state = at.recurrent(self.layer);
        let inputs = GatedDeltaStepInputs {
            rule: self.inputs(buffers, &buffers.qkv),
            conv: &self.conv1d,
            gate: &buffers.z,
            norm: &self.norm,
        };
        let states = GatedDeltaStates { conv: &state.conv, delta: &state.delta };
        let GatedDeltaOptions { key_heads, key_dim, value_dim, head_map, .. } = self.options;
        let eps = self.rms_norm_eps;
        let options = GatedDeltaStepOptions { key_heads, key_dim, value_dim, head_map, eps };
        Ok(gated_delta_step(&buffers.gated, inputs, states, recurrence, options)?)
    }

    fn inputs<'a>(&'a self, buffers: &'a DeltaBuffers, qkv: &'a Tensor) -> GatedDeltaInputs<'a> {
        let DeltaBuffers { a, b, .. } = buffers;
        GatedDeltaInputs { qkv, a, b, rate: &self.rate, dt_bias: &self.dt_bias }
    }

    /// Everything that is projected from the normalized rows.
    fn project(&self, work: &mut Workspace, rows: usize) -> Result<(), Error> {
        let InProjections { qkv, z, b, a } = &self.in_proj;
        let buffers = work.delta.as_ref().expect("the workspace was made for gated delta layers");
        let weights = [&*qkv.weight, &*z.weight, &*b.weight, &*a.weight];
        let x = work.activations.prepare(&work.normed, rows, &weights)?;
        let layers = [(qkv, &buffers.qkv), (z, &buffers.z), (b, &buffers.b), (a, &buffers.a)];
        Linear::forward_all(layers, &x, rows)
    }
}

/// `[rows, columns]` as `[columns, rows]`.
fn transposed(values: &[f32], columns: usize) -> Vec<f32> {
    let column = |index: usize| values.iter().skip(index).step_by(columns);
    (0..columns).flat_map(column).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_groups_are_found_group_by_group() {
        assert_eq!(grouped(2, [1, 3]), [vec![0..1, 4..5], vec![1..4, 5..8]]);
        let shape = DeltaShape {
            hidden_size: 8,
            key_heads: 2,
            value_heads: 4,
            key_dim: 3,
            value_dim: 5,
            kernel: 4,
        };
        assert_eq!((shape.values(), shape.channels()), (20, 32));
        let [qkv, z] = shape.split_qkvz();
        let expected = vec![0..3, 26..29, 3..6, 29..32, 6..16, 32..42];
        assert_eq!(qkv, RowSelection::ranges(expected));
        assert_eq!(z, RowSelection::ranges(vec![16..26, 42..52]));
        let [b, a] = shape.split_ba();
        assert_eq!(b, RowSelection::ranges(vec![0..2, 4..6]));
        assert_eq!(a, RowSelection::ranges(vec![2..4, 6..8]));
    }

    #[test]
    fn a_convolution_is_stored_channel_by_channel_and_used_input_by_input() {
        assert_eq!(transposed(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2), [1.0, 3.0, 5.0, 2.0, 4.0, 6.0]);
    }
}
