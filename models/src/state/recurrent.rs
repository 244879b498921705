//! What recurrent layers keep of each open sequence and of each point: one slot in two tensors of
//! every layer. Whose a slot is, is `slots.rs`.
//!
//! Unlike pages, a slot has one owner and no tokens: it stands for the whole sequence up to its last
//! token, so it cannot be shared or cut, only copied as a whole.

use candle_core::{DType, Device, Result, Tensor};

use super::{RecurrentGroup, bytes};

/// State of one gated delta layer, for all slots of the pool.
#[derive(Debug, Clone)]
pub struct LayerRecurrent {
    /// `[slots, conv_tail, conv_channels]`, f32: the last inputs of the short convolution.
    pub conv: Tensor,
    /// `[slots, value_heads, key_dim, value_dim]`, f32.
    pub delta: Tensor,
}

impl LayerRecurrent {
    fn new(group: &RecurrentGroup, slots: usize, device: &Device) -> Result<Self> {
        let conv = (slots, group.conv_tail, group.conv_channels);
        let delta = (slots, group.value_heads, group.key_dim, group.value_dim);
        Ok(Self {
            conv: Tensor::zeros(conv, DType::F32, device)?,
            delta: Tensor::zeros(delta, DType::F32, device)?,
        })
    }

    /// In the order in which their bytes are read and written.
    fn tensors(&self) -> [&Tensor; 2] {
        [&self.conv, &self.delta]
    }
}

/// All tensors of some layers, in the order in which their bytes are read and written.
pub(super) fn tensors(layers: &[LayerRecurrent]) -> Vec<&Tensor> {
    layers.iter().flat_map(LayerRecurrent::tensors).collect()
}

/// All layers of a group.
///
/// # Errors
/// A device that cannot allocate.
pub(super) fn allocate(
    group: Option<RecurrentGroup>,
    slots: usize,
    device: &Device,
) -> Result<Vec<LayerRecurrent>> {
    let Some(group) = group else { return Ok(Vec::new()) };
    (0..group.layers).map(|_| LayerRecurrent::new(&group, slots, device)).collect()
}

/// Makes a slot that of an empty sequence, in every layer.
///
/// # Errors
/// The device cannot be written.
pub(super) fn clear_slot(layers: &[LayerRecurrent], slot: u32) -> sconce_kernels::Result<()> {
    bytes::clear(&tensors(layers), slot)
}

/// Copies slot `from` over slot `to`, in every layer.
///
/// # Errors
/// The device cannot be written.
pub(super) fn copy_slot(
    layers: &[LayerRecurrent],
    from: u32,
    to: u32,
) -> sconce_kernels::Result<()> {
    bytes::copy(&tensors(layers), from, to)
}
