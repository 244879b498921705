//! The shape of a state pool, and what it costs in bytes before there is one.

use super::StateError;

/// Tokens a page holds.
///
/// 64 is the grid on which restore points lie, so a run that resumes from one starts on a page of
/// its own and executes the same chunks as a cold run. It also keeps the waste small: a sequence
/// holds on average half a page it does not use.
pub const PAGE_TOKENS: usize = 64;

/// Bytes of one key or value element: attention state is f32.
const ELEMENT_BYTES: u64 = 4;

/// Attention layers that cache keys and values of one shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionGroup {
    /// Number of layers.
    pub layers: usize,
    /// Key/value heads of each layer.
    pub kv_heads: usize,
    /// Elements of a key and of a value.
    pub head_dim: usize,
}

/// What a sequence carries and how many of them fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateLayout {
    /// Attention layers. A page is the same run of tokens in all of them; without any, as for a
    /// simulated model, pages are only counted.
    pub attention: Vec<AttentionGroup>,
    /// Tokens of a page, [`PAGE_TOKENS`] outside tests.
    pub page_tokens: usize,
    /// Pages of the pool.
    pub pages_max: usize,
    /// Sequences that can be open together.
    pub sequences_max: usize,
}

impl StateLayout {
    /// Bytes of state for one token: a key and a value in every layer.
    pub fn bytes_per_token(&self) -> u64 {
        let elements = |group: &AttentionGroup| {
            (group.layers as u64)
                .saturating_mul(group.kv_heads as u64)
                .saturating_mul(group.head_dim as u64)
        };
        let sum = self.attention.iter().map(elements).fold(0, u64::saturating_add);
        sum.saturating_mul(2 * ELEMENT_BYTES)
    }

    /// Bytes of one page in all layers.
    pub fn bytes_per_page(&self) -> u64 {
        self.bytes_per_token().saturating_mul(self.page_tokens as u64)
    }

    /// Bytes of all pages.
    pub fn bytes_max(&self) -> u64 {
        self.bytes_per_page().saturating_mul(self.pages_max as u64)
    }

    /// Pages that hold `tokens` tokens of one sequence.
    pub fn pages_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.page_tokens)
    }

    /// The number of pages and of sequences, if a pool can have this layout.
    pub(super) fn check(&self) -> Result<(u32, u32), StateError> {
        let counts = [self.page_tokens, self.pages_max, self.sequences_max];
        if counts.contains(&0) {
            let expected = "at least one page, one token in it and one sequence";
            return Err(StateError::Layout { expected, found: 0 });
        }
        let count = |value: usize| {
            u32::try_from(value).map_err(|_| StateError::Layout {
                expected: "pages, their tokens and sequences that fit 32 bits",
                found: value as u64,
            })
        };
        // Operators number the places of tokens with 32 bits.
        count(self.pages_max.saturating_mul(self.page_tokens))?;
        if self.bytes_max() > isize::MAX as u64 {
            let expected = "a pool that fits the address space";
            return Err(StateError::Layout { expected, found: self.bytes_max() });
        }
        Ok((count(self.pages_max)?, count(self.sequences_max)?))
    }
}
