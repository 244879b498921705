//! How keys and values are kept in pages: as they are, or in 8 bits.

use candle_core::DType;

/// Columns of a key or a value that share a scale in 8 bits.
pub const KV_GROUP: usize = 32;
/// Most tokens of a page in 8 bits: sums of products with its codes fit 32 bits.
pub const KV_PAGE_TOKENS_MAX: usize = 256;

/// Storage of keys and values.
///
/// A block is what one page holds for one head. In `F32` its elements are keys
/// `[head_dim, page_tokens]` and values `[page_tokens, head_dim]`. In `Int8` they are 32-bit words:
/// first four codes to a word, of keys `[head_dim / 4, page_tokens]` (four elements of a token), of
/// values `[page_tokens / 4, head_dim]` (an element of four tokens); then the bits of f32 scales,
/// `[ceil(head_dim / 32), page_tokens]`. An element is `scale * (code - 128)`, codes are 1 to 255.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KvType {
    /// 4 bytes an element.
    F32,
    /// 1 byte an element, and 4 bytes a token for each [`KV_GROUP`] elements of a head.
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

    /// Elements of such a tensor, 4 bytes each, that a token takes in one head of `dim` elements.
    pub fn row_len(self, dim: usize) -> usize {
        match self {
            Self::F32 => dim,
            Self::Int8 => dim / 4 + dim.div_ceil(KV_GROUP),
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

    /// Elements of a head, of which a token takes `row_len`; none where no head takes that.
    pub(super) fn dim(self, row_len: usize) -> Option<usize> {
        let dim = match self {
            Self::F32 => row_len,
            // 8 words of codes and one scale for each whole group; of the last one, as much.
            Self::Int8 => {
                let words = KV_GROUP / 4 + 1;
                row_len / words * KV_GROUP + (row_len % words).saturating_sub(1) * 4
            }
        };
        (self.row_len(dim) == row_len && self.fits(16, dim)).then_some(dim)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_width_of_a_head_follows_from_what_a_token_takes() {
        for kv_type in [KvType::F32, KvType::Int8] {
            for dim in (16..600).step_by(16) {
                assert_eq!(kv_type.dim(kv_type.row_len(dim)), Some(dim), "{kv_type:?} {dim}");
            }
        }
        assert_eq!(KvType::Int8.row_len(80), 20 + 3);
        for taken in [1, 4, 6, 8, 10, 17] {
            assert_eq!(KvType::Int8.dim(taken), None, "{taken}");
        }
    }

    #[test]
    fn pages_in_eight_bits_have_whole_vectors() {
        assert!(KvType::Int8.fits(64, 80) && KvType::F32.fits(5, 6));
        assert!(!KvType::Int8.fits(8, 64) && !KvType::Int8.fits(64, 24));
        assert!(!KvType::Int8.fits(KV_PAGE_TOKENS_MAX + 16, 64));
    }
}
