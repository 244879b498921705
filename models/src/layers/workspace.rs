//! Buffers of one step, allocated at load for the largest step and used by every layer in turn.
//!
//! One function makes them and, with an allocator that only counts, foretells their size.

use candle_core::{DType, Device, Tensor};
use sconce_kernels::{ActivationBuffer, ActivationType};

use super::attention::{AttentionBuffers, AttentionShape};
use super::gated_delta_net::{DeltaBuffers, DeltaShape};
use super::latent_attention::{LatentBuffers, LatentShape};
use super::mlp::MlpBuffers;
use super::moe::{MoeBuffers, MoeShape};
use crate::error::Error;
use crate::model::Precision;

/// Which buffers the layers of an architecture need.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct WorkspaceShape {
    /// Width of the residual stream.
    pub(crate) hidden_size: usize,
    /// Whether a branch is normalized before it joins the residual stream.
    pub(crate) branch: bool,
    /// Softmax attention.
    pub(crate) attention: Option<AttentionShape>,
    /// Latent attention.
    pub(crate) latent: Option<LatentShape>,
    /// Whether what attention gathers is gated.
    pub(crate) attention_gate: bool,
    /// Gated delta layers.
    pub(crate) delta: Option<DeltaShape>,
    /// Width of the widest dense MLP.
    pub(crate) intermediate_size: Option<usize>,
    /// A mixture of experts.
    pub(crate) moe: Option<MoeShape>,
}

impl WorkspaceShape {
    /// Nothing but the residual stream.
    pub(crate) fn new(hidden_size: usize) -> Self {
        Self {
            hidden_size,
            branch: false,
            attention: None,
            attention_gate: false,
            latent: None,
            delta: None,
            intermediate_size: None,
            moe: None,
        }
    }
}

impl WorkspaceShape {
    /// Multiply-adds of a token and one that it sees, in one attention layer: a score and a
    /// weighted value for each head.
    pub(crate) fn attention_macs(&self) -> u64 {
        let plain = self.attention.map_or(0, |shape| 2 * shape.q_dim());
        let latent =
            self.latent.map_or(0, |shape| shape.heads * (shape.rope_dim + 2 * shape.kv_lora_rank));
        (plain + latent) as u64
    }
}

/// Buffers of a step, `[rows, columns]` in f32 each.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// The residual stream.
    pub(crate) hidden: Tensor,
    /// The residual stream, normalized for the next branch.
    pub(crate) normed: Tensor,
    /// A branch before it joins the residual stream; without columns where none is kept apart.
    pub(crate) branch: Tensor,
    /// Softmax attention.
    pub(crate) attention: Option<AttentionBuffers>,
    /// Latent attention.
    pub(crate) latent: Option<LatentBuffers>,
    /// Gates of what attention gathers; without columns where there are none.
    pub(crate) attention_gate: Tensor,
    /// Gated delta layers.
    pub(crate) delta: Option<DeltaBuffers>,
    /// The dense MLP.
    pub(crate) mlp: Option<MlpBuffers>,
    /// The mixture of experts.
    pub(crate) moe: Option<MoeBuffers>,
    /// Quantized rows of whichever of these is multiplied next.
    pub(crate) activations: ActivationBuffer,
}

impl Workspace {
    /// Allocates the buffers, or counts them.
    ///
    /// # Errors
    /// The device cannot allocate.
    pub(crate) fn new(
        shape: &WorkspaceShape,
        allocator: &mut Allocator<'_>,
    ) -> Result<Self, Error> {
        let hidden = shape.hidden_size;
        allocator.multiplies(hidden);
        let attention = shape.attention.map(|shape| AttentionBuffers::new(&shape, allocator));
        let latent = shape.latent.map(|shape| LatentBuffers::new(&shape, allocator));
        let gate = shape.attention.filter(|_| shape.attention_gate).map_or(0, |of| of.q_dim());
        let delta = shape.delta.map(|shape| DeltaBuffers::new(&shape, allocator));
        let mlp = shape.intermediate_size.map(|width| MlpBuffers::new(width, allocator));
        let (stream, normed) = (allocator.buffer(hidden)?, allocator.buffer(hidden)?);
        let moe = shape.moe.map(|shape| MoeBuffers::new(&shape, allocator, [&normed, &stream]));
        Ok(Self {
            hidden: stream,
            normed,
            branch: allocator.buffer(if shape.branch { hidden } else { 0 })?,
            attention: attention.transpose()?,
            latent: latent.transpose()?,
            attention_gate: allocator.buffer(gate)?,
            delta: delta.transpose()?,
            mlp: mlp.transpose()?,
            moe: moe.transpose()?,
            activations: allocator.activations(Part::Layers, allocator.rows, allocator.dim_max)?,
        })
    }
}

/// Where activations are multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// In the layers.
    Layers,
    /// In the head.
    Head,
}

/// How a precision lets quantized weights read activations.
pub(crate) fn activation_type(precision: Precision, part: Part) -> ActivationType {
    match (precision, part) {
        (Precision::Fast, Part::Layers) => ActivationType::Int8,
        // An error of the head falls on the logits undamped, and a prefill has one row of them:
        // 15 bits take a third off the divergence of SmolLM2 and a hundredth of its prefill.
        (Precision::Fast, Part::Head) | (Precision::Fine, _) => ActivationType::Int16,
        (Precision::Exact, _) => ActivationType::F32,
    }
}

/// Makes buffers and counts their bytes, or only counts.
#[derive(Debug)]
pub(crate) struct Allocator<'a> {
    /// Where buffers are, or would be.
    device: &'a Device,
    /// False to count only: buffers are on the CPU and have no rows then.
    makes: bool,
    /// Rows of the largest step.
    rows: usize,
    precision: Precision,
    dim_max: usize,
    bytes: u64,
}

impl<'a> Allocator<'a> {
    /// An allocator for steps of `rows` rows on `device`.
    pub(crate) fn new(rows: usize, precision: Precision, device: &'a Device) -> Self {
        Self { device, makes: true, rows, precision, dim_max: 0, bytes: 0 }
    }

    /// One that only counts what that would take.
    pub(crate) fn counting(rows: usize, precision: Precision, device: &'a Device) -> Self {
        Self { makes: false, ..Self::new(rows, precision, device) }
    }

    /// Where buffers are, or would be.
    pub(crate) fn device(&self) -> &'a Device {
        self.device
    }

    /// Rows of the largest step.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A buffer of `columns` for each row of a step.
    ///
    /// # Errors
    /// The device cannot allocate.
    pub(crate) fn buffer(&mut self, columns: usize) -> Result<Tensor, Error> {
        self.tensor(self.rows, columns)
    }

    /// An f32 tensor, `[rows, columns]`.
    ///
    /// # Errors
    /// The device cannot allocate.
    pub(crate) fn tensor(&mut self, rows: usize, columns: usize) -> Result<Tensor, Error> {
        self.count(rows as u64 * columns as u64 * size_of::<f32>() as u64);
        let tensor = match self.makes {
            true => Tensor::zeros((rows, columns), DType::F32, self.device),
            false => Tensor::zeros((0, columns), DType::F32, &Device::Cpu),
        };
        Ok(tensor?)
    }

    /// `len` numbers on the host.
    pub(crate) fn host(&mut self, len: usize) -> Vec<f32> {
        self.count(len as u64 * size_of::<f32>() as u64);
        vec![0.0; if self.makes { len } else { 0 }]
    }

    /// Counts bytes that somebody else allocates.
    pub(crate) fn count(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Whether buffers are made, not only counted.
    pub(crate) fn makes(&self) -> bool {
        self.makes
    }

    /// Says that rows of `columns` will be multiplied with weights.
    pub(crate) fn multiplies(&mut self, columns: usize) {
        self.dim_max = self.dim_max.max(columns);
    }

    /// Room for the quantized form of `rows` rows of at most `dim` columns.
    ///
    /// # Errors
    /// The device cannot allocate.
    pub(crate) fn activations(
        &mut self,
        part: Part,
        rows: usize,
        dim: usize,
    ) -> Result<ActivationBuffer, Error> {
        let activation = activation_type(self.precision, part);
        self.count(ActivationBuffer::bytes_for(rows, dim, activation, self.device));
        let rows = if self.makes { rows } else { 0 };
        Ok(ActivationBuffer::new(rows, dim, activation, self.device)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counted_bytes_are_those_of_the_buffers() {
        let parts = [Part::Layers, Part::Head];
        for (precision, part) in Precision::ALL.iter().flat_map(|p| parts.map(|part| (*p, part))) {
            for dim in [1, 32, 100] {
                let mut counting = Allocator::counting(5, precision, &Device::Cpu);
                let empty = counting.activations(part, 7, dim).unwrap();
                let mut making = Allocator::new(5, precision, &Device::Cpu);
                let buffer = making.activations(part, 7, dim).unwrap();
                assert_eq!(empty.bytes(), 0);
                assert_eq!(counting.bytes(), buffer.bytes() as u64);
                assert_eq!(making.bytes(), counting.bytes());
            }
        }
        let mut counting = Allocator::counting(5, Precision::Exact, &Device::Cpu);
        assert_eq!(counting.buffer(3).unwrap().dims(), [0, 3]);
        assert_eq!((counting.host(2).len(), counting.bytes()), (0, 4 * (15 + 2)));
    }
}
