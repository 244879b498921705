//! The bytes behind the pages: one tensor of keys and one of values for each attention layer.
//! Which page belongs to whom is `pages.rs`.

use candle_core::{Device, Result, Tensor};
use memmap2::MmapMut;
use sconce_kernels::KvSide;

use super::{AttentionGroup, StateError, StateLayout, bytes};

/// Keys and values of one attention layer, for all pages of the pool.
#[derive(Debug, Clone)]
pub struct LayerKv {
    /// `[pages_max, kv_heads, page_tokens, key_dim]` in f32, or as [`KvType`](sconce_kernels::KvType)
    /// says.
    pub keys: Tensor,
    /// `[pages_max, kv_heads, page_tokens, value_dim]`, likewise.
    pub values: Tensor,
}

impl LayerKv {
    fn new(layout: &StateLayout, group: &AttentionGroup, device: &Device) -> Result<Self> {
        // On the CPU the operating system hands out zeroed memory when it is first touched, so a
        // large pool costs only what was ever used, in huge pages where it has them.
        let pages = |side, dim| {
            let row_len = group.kv_type.row_len(side, dim);
            let shape = (layout.pages_max, group.kv_heads, layout.page_tokens, row_len);
            Tensor::zeros(shape, group.kv_type.dtype(), device)
        };
        let keys = pages(KvSide::Keys, group.key_dim)?;
        let kv = Self { keys, values: pages(KvSide::Values, group.value_dim)? };
        bytes::prefer_huge_pages(&kv.keys);
        bytes::prefer_huge_pages(&kv.values);
        Ok(kv)
    }

    /// In the order in which their bytes are read and written.
    fn tensors(&self) -> [&Tensor; 2] {
        [&self.keys, &self.values]
    }
}

/// All layers of a layout, group after group.
///
/// # Errors
/// A device that cannot allocate.
pub(super) fn allocate(layout: &StateLayout, device: &Device) -> Result<Vec<LayerKv>> {
    let mut layers = Vec::new();
    for group in &layout.attention {
        for _ in 0..group.layers {
            layers.push(LayerKv::new(layout, group, device)?);
        }
    }
    Ok(layers)
}

/// Asks the system for as much memory as the pool takes, and gives it back: a tensor that cannot be
/// allocated ends the process, an anonymous mapping that cannot be made is an error.
pub(super) fn probe(bytes: u64) -> std::result::Result<(), StateError> {
    let refused = |message: String| StateError::Memory { bytes, message };
    let len = usize::try_from(bytes).map_err(|error| refused(error.to_string()))?;
    match MmapMut::map_anon(len.max(1)) {
        Ok(_) => Ok(()),
        Err(error) => Err(refused(error.to_string())),
    }
}

/// All tensors of some layers, in the order in which their bytes are read and written.
pub(super) fn tensors(layers: &[LayerKv]) -> Vec<&Tensor> {
    layers.iter().flat_map(LayerKv::tensors).collect()
}

/// Copies page `from` over page `to` in every layer.
///
/// # Errors
/// The device cannot be written.
pub(super) fn copy_page(layers: &[LayerKv], from: u32, to: u32) -> sconce_kernels::Result<()> {
    bytes::copy(&tensors(layers), from, to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_beyond_the_address_space_is_an_error() {
        let error = probe(1 << 60).unwrap_err().to_string();
        assert!(error.starts_with("state memory: the system refused 1152921504606846976 bytes"));
        assert!(probe(1 << 20).is_ok());
    }
}
