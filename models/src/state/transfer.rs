//! Pages and recurrent states as bytes, to keep them elsewhere and to bring them back.
//!
//! The bytes are little-endian words as they lie, and mean something to the same model only. A page
//! is, layer by layer through all attention groups, its blocks of keys and then of values, head by
//! head, in the order that [`KvType`] gives for the device, as `write_kv` of the kernels leaves them. A
//! recurrent state is, layer by layer, its convolution tail
//! `[conv_tail, conv_channels]` and then its delta state `[value_heads, key_dim, value_dim]`.

use candle_core::Tensor;
use sconce_kernels::{BlockOrder, KvSide, KvType, read_entries, write_entries};

use super::{
    AttentionGroup, LayerRecurrent, PointId, SequenceId, StateError, StateLayout, StatePool, bytes,
    kv, recurrent,
};

/// Part of the fingerprint of every model of a checkpoint; to be raised when these bytes begin to mean something else.
pub(crate) const STATE_FORMAT: &str = "state format 2";

impl StatePool {
    /// Reads held pages, of each so many tokens, into blocks of [`StateLayout::bytes_per_page`] bytes.
    /// Those of its other tokens are zero, whatever was written there: they may be another sequence's.
    /// A GPU is much quicker with many at once, and with blocks of its
    /// [`host_buffer`](Self::host_buffer).
    ///
    /// # Errors
    /// [`StateError::PageNotHeld`], [`StateError::Bytes`], or a device that cannot be read.
    pub fn read_pages(
        &self,
        pages: &[(u32, usize)],
        blocks: &mut [&mut [u8]],
    ) -> Result<(), StateError> {
        let entries: Vec<u32> = pages.iter().map(|(page, _)| *page).collect();
        if let Some(&page) = entries.iter().find(|page| self.pages.holders(**page) == 0) {
            return Err(StateError::PageNotHeld { page });
        }
        let tensors = kv::tensors(&self.kv);
        check_len("a page", &tensors, blocks.iter().map(|block| block.len()))?;
        read_entries(&tensors, &entries, blocks)?;
        let page_tokens = self.layout.page_tokens;
        for (block, (_, tokens)) in blocks.iter_mut().zip(pages) {
            if *tokens < page_tokens {
                self.clear_behind(block, *tokens);
            }
        }
        Ok(())
    }

    /// Appends the bytes of one held page, as [`read_pages`](Self::read_pages) reads them.
    ///
    /// # Errors
    /// [`StateError::PageNotHeld`], or a device that cannot be read.
    pub fn read_page(
        &self,
        page: u32,
        tokens: usize,
        into: &mut Vec<u8>,
    ) -> Result<(), StateError> {
        let start = into.len();
        into.resize(start + self.layout.bytes_per_page() as usize, 0);
        let read = self.read_pages(&[(page, tokens)], &mut [&mut into[start..]]);
        read.inspect_err(|_| into.truncate(start))
    }

    /// Writes all bytes of pages, as [`read_pages`](Self::read_pages) reads them. Each page has one
    /// holder, and that is no sequence: it was taken by [`take_pages`](Self::take_pages). The blocks
    /// can be let go when this returns.
    ///
    /// # Errors
    /// [`StateError::PageNotHeld`], [`StateError::PageShared`], [`StateError::Bytes`], or a device
    /// that cannot be written.
    pub fn write_pages(&mut self, pages: &[u32], blocks: &[&[u8]]) -> Result<(), StateError> {
        for &page in pages {
            if self.pages.outside(page) == 0 {
                return Err(StateError::PageNotHeld { page });
            }
            if self.pages.is_shared(page) {
                return Err(StateError::PageShared { page, holders: self.pages.holders(page) });
            }
        }
        let tensors = kv::tensors(&self.kv);
        check_len("a page", &tensors, blocks.iter().map(|block| block.len()))?;
        Ok(write_entries(&tensors, pages, blocks)?)
    }

    /// Writes all bytes of one page.
    ///
    /// # Errors
    /// As for [`write_pages`](Self::write_pages).
    pub fn write_page(&mut self, page: u32, data: &[u8]) -> Result<(), StateError> {
        self.write_pages(&[page], &[data])
    }

    /// Reads the recurrent state of a point into [`StateLayout::bytes_per_sequence`] bytes.
    ///
    /// # Errors
    /// [`StateError::NotAPoint`], [`StateError::Bytes`], or a device that cannot be read.
    pub fn read_point(&self, point: PointId, block: &mut [u8]) -> Result<(), StateError> {
        let slot = self.recurrent_slots.point(point)?;
        let tensors = recurrent::tensors(&self.recurrent);
        check_len("a sequence", &tensors, [block.len()])?;
        Ok(read_entries(&tensors, &[slot], &mut [block])?)
    }

    /// Writes the recurrent state of a point, as [`read_point`](Self::read_point) reads it.
    ///
    /// # Errors
    /// [`StateError::NotAPoint`], [`StateError::Bytes`], or a device that cannot be written.
    pub fn write_point(&mut self, point: PointId, data: &[u8]) -> Result<(), StateError> {
        write_slot(&self.recurrent, self.recurrent_slots.point(point)?, data)
    }

    /// Writes the recurrent state of a sequence, as [`read_point`](Self::read_point) reads it; that it
    /// is the state after the sequence's tokens is the caller's to know.
    ///
    /// # Errors
    /// [`StateError::NotOpen`], [`StateError::Bytes`], or a device that cannot be written.
    pub fn write_recurrent(&mut self, id: SequenceId, data: &[u8]) -> Result<(), StateError> {
        write_slot(&self.recurrent, self.recurrent_slot(id)?, data)
    }

    /// Clears the tokens from `tokens` on in the bytes of a page.
    fn clear_behind(&self, block: &mut [u8], tokens: usize) {
        let page_tokens = self.layout.page_tokens;
        let part = (page_tokens, tokens);
        let mut rest = block;
        for (group, layer) in layers(&self.layout).zip(&self.kv) {
            let keys;
            let values;
            (keys, rest) = rest.split_at_mut(bytes::entry_len(&layer.keys));
            (values, rest) = rest.split_at_mut(bytes::entry_len(&layer.values));
            match self.order {
                BlockOrder::Tokens => {
                    clear_tokens(keys, group, (KvSide::Keys, group.key_dim), part);
                    clear_tokens(values, group, (KvSide::Values, group.value_dim), part);
                }
                BlockOrder::Lanes => {
                    // Of keys, every row has an element or a word of each token, in either type.
                    clear_columns(keys, page_tokens, tokens);
                    clear_values(values, group, page_tokens, tokens);
                }
            }
        }
    }
}

/// Writes a whole slot.
///
/// # Errors
/// [`StateError::Bytes`], or a device that cannot be written.
pub(super) fn write_slot(
    layers: &[LayerRecurrent],
    slot: u32,
    data: &[u8],
) -> Result<(), StateError> {
    let tensors = recurrent::tensors(layers);
    check_len("a sequence", &tensors, [data.len()])?;
    Ok(write_entries(&tensors, &[slot], &[data])?)
}

/// Refuses blocks that are not as long as entries of all tensors together.
fn check_len(
    what: &'static str,
    tensors: &[&Tensor],
    found: impl IntoIterator<Item = usize>,
) -> Result<(), StateError> {
    let expected = tensors.iter().map(|tensor| bytes::entry_len(tensor)).sum::<usize>() as u64;
    let mut found = found.into_iter().map(|len| len as u64);
    found
        .find(|found| *found != expected)
        .map_or(Ok(()), |found| Err(StateError::Bytes { what, expected, found }))
}

/// The group of each attention layer.
fn layers(layout: &StateLayout) -> impl Iterator<Item = &AttentionGroup> {
    layout.attention.iter().flat_map(|group| std::iter::repeat_n(group, group.layers))
}

/// Clears the tokens from `tokens` on in the blocks of all heads, where token lies after token.
fn clear_tokens(
    data: &mut [u8],
    group: &AttentionGroup,
    (side, dim): (KvSide, usize),
    (page_tokens, tokens): (usize, usize),
) {
    let row = group.kv_type.row_len(side, dim) * bytes::ELEMENT;
    let codes = match group.kv_type {
        KvType::F32 => row,
        KvType::Int8 => dim,
    };
    for block in data.chunks_exact_mut(page_tokens * row) {
        let (codes_part, scales) = block.split_at_mut(page_tokens * codes);
        codes_part[tokens * codes..].fill(0);
        scales[tokens * (row - codes)..].fill(0);
    }
}

/// Clears the values of the tokens from `tokens` on in the blocks of all heads.
fn clear_values(data: &mut [u8], group: &AttentionGroup, page_tokens: usize, tokens: usize) {
    let row = group.value_dim;
    match group.kv_type {
        KvType::F32 => clear_columns(data, page_tokens * row, tokens * row),
        KvType::Int8 => {
            let block = page_tokens * group.kv_type.row_len(KvSide::Values, row) * bytes::ELEMENT;
            for block in data.chunks_exact_mut(block) {
                // A byte of each token; four tokens to a word.
                let (codes, scales) = block.split_at_mut(page_tokens * row);
                let (whole, part) = (tokens / 4 * 4, tokens % 4);
                let words = codes[whole * row..].chunks_exact_mut(4);
                words.enumerate().for_each(|(index, word)| {
                    word[if index < row { part } else { 0 }..].fill(0);
                });
                clear_columns(scales, page_tokens, tokens);
            }
        }
    }
}

/// Clears the columns from `from` on of a matrix of rows of `columns` elements.
fn clear_columns(data: &mut [u8], columns: usize, from: usize) {
    let (row, from) = (columns * bytes::ELEMENT, from * bytes::ELEMENT);
    data.chunks_exact_mut(row).for_each(|row| row[from..].fill(0));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_that_follow_one_another_are_cleared_in_each_block() {
        let group = |kv_type| AttentionGroup {
            layers: 1,
            kv_heads: 2,
            key_dim: 36,
            value_dim: 36,
            kv_type,
        };
        // Two heads of 16 tokens, of which 5 stay: 36 elements; 36 codes and 2 scales.
        for (kv_type, codes, scales) in [(KvType::F32, 144, 0), (KvType::Int8, 36, 8)] {
            let mut data = vec![7; 2 * 16 * (codes + scales)];
            clear_tokens(&mut data, &group(kv_type), (KvSide::Keys, 36), (16, 5));
            for block in data.chunks(16 * (codes + scales)) {
                let kept: usize = block.iter().filter(|byte| **byte == 7).count();
                assert_eq!(kept, 5 * (codes + scales));
                assert!(block[..5 * codes].iter().all(|byte| *byte == 7));
                assert!(block[16 * codes..][..5 * scales].iter().all(|byte| *byte == 7));
            }
        }
    }
}
