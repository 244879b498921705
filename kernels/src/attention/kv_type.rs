//! How keys and values are kept in pages: as they are, or in 8 bits.

use candle_core::{DType, Device};

use crate::gpu::is_gpu;

/// Columns of a key that share a scale in 8 bits.
pub(crate) const KEY_GROUP: usize = 32;
/// Columns of a value that share a scale in 8 bits: values lose less than keys by wider groups, as
/// `docs/PERFORMANCE.md` has it.
pub(crate) const VALUE_GROUP: usize = 64;
/// Most tokens of a page in 8 bits: sums of products with its codes fit 32 bits.
pub(crate) const KV_PAGE_TOKENS_MAX: usize = 256;

/// Keys or values, which lie in different orders and groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KvSide {
    /// What queries are matched with.
    Keys,
    /// What is summed up.
    Values,
}

/// In which order the elements of a block lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BlockOrder {
    /// That of the CPU, where one load of keys serves several tokens.
    Lanes,
    /// That of GPUs: token after token, of codes and then of scales.
    Tokens,
}

impl BlockOrder {
    /// The order of pages on a device.
    pub fn of(device: &Device) -> Self {
        if is_gpu(device) { Self::Tokens } else { Self::Lanes }
    }
}

impl KvSide {
    /// Columns that share a scale in 8 bits.
    pub const fn group(self) -> usize {
        match self {
            Self::Keys => KEY_GROUP,
            Self::Values => VALUE_GROUP,
        }
    }
}

/// Storage of keys and values.
///
/// A block is what one page holds for one head. In `F32` its elements are, on the CPU, keys
/// `[head_dim, page_tokens]` and values `[page_tokens, head_dim]`. In `Int8` they are 32-bit words:
/// first four codes to a word, of keys `[head_dim / 4, page_tokens]` (four elements of a token), of
/// values `[page_tokens / 4, head_dim]` (an element of four tokens); then the bits of f32 scales,
/// `[ceil(head_dim / group), page_tokens]`. An element is `scale * (code - 128)`, codes are 1 to 255.
///
/// On GPUs keys and values lie alike: elements, or words of four codes of a token, are
/// `[page_tokens, head_dim]` or `[page_tokens, head_dim / 4]`, scales after all codes
/// `[page_tokens, ceil(head_dim / group)]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KvType {
    /// 4 bytes an element.
    F32,
    /// 1 byte an element, and 4 bytes a token for each [`KvSide::group`] elements of a head.
    Int8,
}

impl KvType {
    /// Type of the tensors that hold pages.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Int8 => DType::U32,
        }
    }

    /// Elements of such a tensor, 4 bytes each, that a key or a value of `dim` elements takes.
    pub fn row_len(self, side: KvSide, dim: usize) -> usize {
        match self {
            Self::F32 => dim,
            Self::Int8 => dim / 4 + dim.div_ceil(side.group()),
        }
    }

    /// Whether pages of `page_tokens` tokens can hold heads of `dim` elements.
    pub fn fits(self, page_tokens: usize, dim: usize) -> bool {
        match self {
            Self::F32 => true,
            Self::Int8 => {
                let tokens = page_tokens.is_multiple_of(16) && page_tokens <= KV_PAGE_TOKENS_MAX;
                tokens && dim.is_multiple_of(16)
            }
        }
    }

    /// The type that a tensor of pages has.
    pub(super) fn of(dtype: DType) -> Option<Self> {
        [Self::F32, Self::Int8].into_iter().find(|kv_type| kv_type.dtype() == dtype)
    }

    /// Elements of a key or a value that takes `row_len`; none where none takes that.
    pub(super) fn dim(self, side: KvSide, row_len: usize) -> Option<usize> {
        let dim = match self {
            Self::F32 => row_len,
            // Words of codes and one scale for each whole group; of the last one, as much.
            Self::Int8 => {
                let words = side.group() / 4 + 1;
                row_len / words * side.group() + (row_len % words).saturating_sub(1) * 4
            }
        };
        (self.row_len(side, dim) == row_len && self.fits(16, dim)).then_some(dim)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIDES: [KvSide; 2] = [KvSide::Keys, KvSide::Values];

    #[test]
    fn the_width_of_a_head_follows_from_what_a_token_takes() {
        for kv_type in [KvType::F32, KvType::Int8] {
            for (side, dim) in
                SIDES.into_iter().flat_map(|side| (16..600).step_by(16).map(move |dim| (side, dim)))
            {
                let taken = kv_type.row_len(side, dim);
                assert_eq!(kv_type.dim(side, taken), Some(dim), "{kv_type:?} {side:?} {dim}");
            }
        }
        assert_eq!(SIDES.map(|side| KvType::Int8.row_len(side, 80)), [20 + 3, 20 + 2]);
        for taken in [1, 4, 6, 8, 10, 17] {
            assert_eq!(KvType::Int8.dim(KvSide::Keys, taken), None, "{taken}");
        }
        for taken in [1, 4, 6, 8, 10, 12, 14, 16, 18] {
            assert_eq!(KvType::Int8.dim(KvSide::Values, taken), None, "{taken}");
        }
    }

    #[test]
    fn pages_in_eight_bits_have_whole_vectors() {
        assert!(KvType::Int8.fits(64, 80) && KvType::F32.fits(5, 6));
        assert!(!KvType::Int8.fits(8, 64) && !KvType::Int8.fits(64, 24));
        assert!(!KvType::Int8.fits(KV_PAGE_TOKENS_MAX + 16, 64));
    }
}
