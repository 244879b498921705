//! The shape of a state pool, and what it costs in bytes before there is one.

use sconce_kernels::{KvSide, KvType};

use super::StateError;

/// Tokens a page holds.
///
/// 64 is the grid on which restore points lie, so a run that resumes from one starts on a page of
/// its own and executes the same chunks as a cold run. It also keeps the waste small: a sequence
/// holds on average half a page it does not use.
pub const PAGE_TOKENS: usize = 64;

/// Bytes of an element of the tensors behind the state: an f32, or a word of codes.
const ELEMENT_BYTES: u64 = 4;

/// Attention layers that cache keys and values of one shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionGroup {
    /// Number of layers.
    pub layers: usize,
    /// Key/value heads of each layer.
    pub kv_heads: usize,
    /// Elements of a key. With multi-head latent attention, those of the shared rope key.
    pub key_dim: usize,
    /// Elements of a value. With multi-head latent attention, those of the latent.
    pub value_dim: usize,
    /// How pages hold them.
    pub kv_type: KvType,
}

impl AttentionGroup {
    /// Layers whose keys and values are equally wide and may be kept in 8 bits.
    pub(crate) fn of_heads(layers: usize, kv_heads: usize, head_dim: usize) -> Self {
        let (key_dim, value_dim) = (head_dim, head_dim);
        Self { layers, kv_heads, key_dim, value_dim, kv_type: KvType::Int8 }
    }

    /// Whether pages of `page_tokens` tokens can hold the group's keys and values as `kv_type`.
    pub(crate) fn fits(&self, kv_type: KvType, page_tokens: usize) -> bool {
        [self.key_dim, self.value_dim].iter().all(|dim| kv_type.fits(page_tokens, *dim))
    }

    /// Bytes of one token, in all layers.
    fn bytes_per_token(&self) -> u64 {
        let row = |side, dim| self.kv_type.row_len(side, dim) as u64;
        let keys = row(KvSide::Keys, self.key_dim);
        let elements = keys.saturating_add(row(KvSide::Values, self.value_dim));
        (self.layers as u64)
            .saturating_mul(self.kv_heads as u64)
            .saturating_mul(elements)
            .saturating_mul(ELEMENT_BYTES)
    }
}

/// Gated delta layers: what each keeps of a sequence, whatever the sequence's length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecurrentGroup {
    /// Number of layers.
    pub layers: usize,
    /// Inputs that the short convolution looks back to: its kernel less one.
    pub conv_tail: usize,
    /// Channels of the short convolution.
    pub conv_channels: usize,
    /// Heads of the delta state.
    pub value_heads: usize,
    /// Rows of a head's state.
    pub key_dim: usize,
    /// Columns of a head's state.
    pub value_dim: usize,
}

impl RecurrentGroup {
    /// Bytes of one sequence in all layers.
    pub fn bytes_per_sequence(&self) -> u64 {
        let product = |factors: &[usize]| {
            factors.iter().fold(1, |product: u64, factor| product.saturating_mul(*factor as u64))
        };
        let tail = product(&[self.conv_tail, self.conv_channels]);
        let delta = product(&[self.value_heads, self.key_dim, self.value_dim]);
        tail.saturating_add(delta).saturating_mul(self.layers as u64).saturating_mul(ELEMENT_BYTES)
    }
}

/// What a sequence carries and how many of them fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateLayout {
    /// Attention layers. A page is the same run of tokens in all of them; without any, as for a
    /// simulated model, pages are only counted.
    pub attention: Vec<AttentionGroup>,
    /// Recurrent layers; each open sequence has a slot in all of them, and so has each point.
    pub recurrent: Option<RecurrentGroup>,
    /// Tokens of a page, [`PAGE_TOKENS`] outside tests.
    pub page_tokens: usize,
    /// Pages of the pool.
    pub pages_max: usize,
    /// Sequences that can be open together.
    pub sequences_max: usize,
    /// Recurrent slots that can be held outside of sequences; 0 without recurrent layers.
    pub points_max: usize,
}

impl StateLayout {
    /// Bytes of state for one token: a key and a value in every layer.
    pub fn bytes_per_token(&self) -> u64 {
        self.attention.iter().map(AttentionGroup::bytes_per_token).fold(0, u64::saturating_add)
    }

    /// Bytes of one page in all layers.
    pub fn bytes_per_page(&self) -> u64 {
        self.bytes_per_token().saturating_mul(self.page_tokens as u64)
    }

    /// Bytes of the recurrent state of one sequence, whatever its length; 0 without such layers.
    pub fn bytes_per_sequence(&self) -> u64 {
        self.recurrent.map_or(0, |group| group.bytes_per_sequence())
    }

    /// Bytes of all recurrent slots, of sequences and of points.
    pub fn recurrent_bytes_max(&self) -> u64 {
        let slots = (self.sequences_max as u64).saturating_add(self.points_max as u64);
        self.bytes_per_sequence().saturating_mul(slots)
    }

    /// Bytes of all pages and of all recurrent slots.
    pub fn bytes_max(&self) -> u64 {
        let pages = self.bytes_per_page().saturating_mul(self.pages_max as u64);
        pages.saturating_add(self.recurrent_bytes_max())
    }

    /// Bytes of the state of one sequence of `tokens` tokens.
    pub fn bytes_for(&self, tokens: usize) -> u64 {
        let pages = self.bytes_per_page().saturating_mul(self.pages_for(tokens) as u64);
        pages.saturating_add(self.bytes_per_sequence())
    }

    /// Pages that hold `tokens` tokens of one sequence.
    pub fn pages_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.page_tokens)
    }

    /// The number of pages, of sequences and of points, if a pool can have this layout.
    pub(super) fn check(&self) -> Result<[u32; 3], StateError> {
        let counts = [self.page_tokens, self.pages_max, self.sequences_max];
        if counts.contains(&0) {
            let expected = "at least one page, one token in it and one sequence";
            return Err(StateError::Layout { expected, found: 0 });
        }
        let fits = |group: &AttentionGroup| group.fits(group.kv_type, self.page_tokens);
        if !self.attention.iter().all(fits) {
            let expected = "pages and heads that hold keys and values in 8 bits";
            return Err(StateError::Layout { expected, found: self.page_tokens as u64 });
        }
        if self.points_max > 0 && self.recurrent.is_none() {
            let expected = "no points without recurrent layers";
            return Err(StateError::Layout { expected, found: self.points_max as u64 });
        }
        let count = |value: usize| {
            u32::try_from(value).map_err(|_| StateError::Layout {
                expected: "pages, their tokens, sequences and points that fit 32 bits",
                found: value as u64,
            })
        };
        // Operators number the places of tokens with 32 bits.
        count(self.pages_max.saturating_mul(self.page_tokens))?;
        count(self.sequences_max.saturating_add(self.points_max))?;
        if self.bytes_max() > isize::MAX as u64 {
            let expected = "a pool that fits the address space";
            return Err(StateError::Layout { expected, found: self.bytes_max() });
        }
        Ok([count(self.pages_max)?, count(self.sequences_max)?, count(self.points_max)?])
    }
}
