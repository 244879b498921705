//! The buffers of one step, allocated at load for the largest step and used by every layer in turn.

use candle_core::{DType, Device, Tensor};
use sconce_kernels::{ActivationBuffer, ActivationType, read_rows};

use super::attention::AttentionShape;
use crate::error::Error;
use crate::model::Precision;

/// Columns that the buffers need.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WorkspaceShape {
    /// Rows of the largest step.
    pub(crate) rows: usize,
    /// Sizes of the attention layers.
    pub(crate) attention: AttentionShape,
    /// Width of the MLP.
    pub(crate) intermediate_size: usize,
    /// How affine weights read activations.
    pub(crate) activation: ActivationType,
}

/// Buffers of a step, `[rows, columns]` in f32 each.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// The residual stream.
    pub(crate) hidden: Tensor,
    /// The residual stream, normalized for the next branch.
    pub(crate) normed: Tensor,
    /// Queries.
    pub(crate) q: Tensor,
    /// Keys.
    pub(crate) k: Tensor,
    /// Values.
    pub(crate) v: Tensor,
    /// What attention gathered, head beside head.
    pub(crate) attended: Tensor,
    /// Gate of the MLP.
    pub(crate) gate: Tensor,
    /// What the gate lets through.
    pub(crate) up: Tensor,
    /// Their product.
    pub(crate) gated: Tensor,
    /// Quantized rows of whichever of these is multiplied next.
    pub(crate) activations: ActivationBuffer,
}

/// How a precision lets affine weights read activations.
pub(crate) fn activation_type(precision: Precision) -> ActivationType {
    match precision {
        // In 8 bits SmolLM2 agrees with exact computation on 96 of 100 tokens of a page, in 15 bits
        // on all of them; decoding, which is bound by reading weights, costs the same.
        Precision::Fast => ActivationType::Int16,
        Precision::Exact => ActivationType::F32,
    }
}

impl WorkspaceShape {
    /// The widest rows that are multiplied with a weight.
    fn dim_max(&self) -> usize {
        self.attention.hidden_size.max(self.attention.q_dim()).max(self.intermediate_size)
    }

    /// Bytes that a workspace of this shape takes.
    pub(crate) fn bytes(&self) -> u64 {
        let attention = 2 * (self.attention.q_dim() + self.attention.kv_dim());
        let columns = 2 * self.attention.hidden_size + attention + 3 * self.intermediate_size;
        let codes = match self.activation {
            ActivationType::F32 => 0,
            ActivationType::Int8 => 1,
            ActivationType::Int16 => 2,
        };
        let groups = codes * self.dim_max().div_ceil(ACTIVATION_GROUP);
        let row = columns * size_of::<f32>() + groups * ACTIVATION_GROUP_BYTES;
        self.rows as u64 * row as u64
    }
}

/// Columns that share a scale in a row of quantized activations, and bytes of such a group: a code
/// for each column, scale, offset and two sums.
const ACTIVATION_GROUP: usize = 32;
const ACTIVATION_GROUP_BYTES: usize = ACTIVATION_GROUP + 4 * 4;

impl Workspace {
    /// Allocates the buffers.
    ///
    /// # Errors
    /// The device cannot allocate.
    pub(crate) fn new(shape: &WorkspaceShape, device: &Device) -> Result<Self, Error> {
        let buffer = |columns: usize| Tensor::zeros((shape.rows, columns), DType::F32, device);
        let (hidden, q) = (shape.attention.hidden_size, shape.attention.q_dim());
        Ok(Self {
            hidden: buffer(hidden)?,
            normed: buffer(hidden)?,
            q: buffer(q)?,
            k: buffer(shape.attention.kv_dim())?,
            v: buffer(shape.attention.kv_dim())?,
            attended: buffer(q)?,
            gate: buffer(shape.intermediate_size)?,
            up: buffer(shape.intermediate_size)?,
            gated: buffer(shape.intermediate_size)?,
            activations: ActivationBuffer::new(
                shape.rows,
                shape.dim_max(),
                shape.activation,
                device,
            )?,
        })
    }

    /// Bytes it holds.
    pub(crate) fn bytes(&self) -> u64 {
        let tensors = [
            &self.hidden,
            &self.normed,
            &self.q,
            &self.k,
            &self.v,
            &self.attended,
            &self.gate,
            &self.up,
            &self.gated,
        ];
        tensors.map(tensor_bytes).iter().sum::<u64>() + self.activations.bytes() as u64
    }
}

/// Bytes of an f32 tensor.
fn tensor_bytes(tensor: &Tensor) -> u64 {
    (tensor.elem_count() * size_of::<f32>()) as u64
}

/// Buffers of the head, for the few rows whose logits were asked for.
#[derive(Debug)]
pub(crate) struct HeadWorkspace {
    /// Those rows of the residual stream, `[rows, hidden_size]`.
    pub(crate) hidden: Tensor,
    /// The same, normalized.
    pub(crate) normed: Tensor,
    /// `[rows, vocab_size]`.
    pub(crate) logits: Tensor,
    /// The logits on the host.
    host: Vec<f32>,
    vocab_size: usize,
}

impl HeadWorkspace {
    /// Allocates buffers for up to `rows` rows.
    ///
    /// # Errors
    /// The device cannot allocate.
    pub(crate) fn new(
        rows: usize,
        hidden_size: usize,
        vocab_size: usize,
        device: &Device,
    ) -> Result<Self, Error> {
        Ok(Self {
            hidden: Tensor::zeros((rows, hidden_size), DType::F32, device)?,
            normed: Tensor::zeros((rows, hidden_size), DType::F32, device)?,
            logits: Tensor::zeros((rows, vocab_size), DType::F32, device)?,
            host: vec![0.0; rows * vocab_size],
            vocab_size,
        })
    }

    /// Bytes that buffers for `rows` rows take, on device and host.
    pub(crate) fn bytes_for(rows: usize, hidden_size: usize, vocab_size: usize) -> u64 {
        (2 * rows * (hidden_size + vocab_size) * size_of::<f32>()) as u64
    }

    /// Bytes it holds, on device and host.
    pub(crate) fn bytes(&self) -> u64 {
        let tensors = [&self.hidden, &self.normed, &self.logits];
        tensors.map(tensor_bytes).iter().sum::<u64>() + size_of_val(self.host.as_slice()) as u64
    }

    /// Copies the leading `rows` rows of logits to the host.
    ///
    /// # Errors
    /// The device cannot be read.
    pub(crate) fn read_logits(&mut self, rows: usize) -> Result<&[f32], Error> {
        let host = &mut self.host[..rows * self.vocab_size];
        read_rows(&self.logits, host)?;
        Ok(host)
    }
}
