//! Where places of a text lie among its tokens: the place that every token ends at, kept while a
//! text is encoded, and the way from a byte offset to a token offset. Cutting text into tokens is
//! not done here.

/// The ids of a text, and where marked places of the text lie among them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MarkedIds {
    /// What [`encode`](crate::Tokenizer::encode) gives for the same text.
    pub ids: Vec<u32>,
    /// For every mark, in the order of the marks: how many of `ids` stand for text before it. A mark
    /// inside a token's text counts as its start.
    pub offsets: Vec<usize>,
}

/// Ids with the byte of the text that each one's share of it ends at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tokens {
    pub(crate) ids: Vec<u32>,
    /// As many as `ids`. Tokens that share one character all end where the character does.
    pub(crate) ends: Vec<usize>,
}

impl Tokens {
    pub(crate) fn push(&mut self, id: u32, end: usize) {
        self.ids.push(id);
        self.ends.push(end);
    }

    /// Takes back all tokens after the first `len`.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.ids.truncate(len);
        self.ends.truncate(len);
    }

    /// For every mark, how many tokens end at it or before it.
    pub(crate) fn offsets(&self, marks: &[usize]) -> Vec<usize> {
        let offset = |&mark: &usize| {
            // Not a binary search: what a normalizer moved about need not be in order.
            let past = self.ends.iter().position(|&end| end > mark);
            past.unwrap_or(self.ends.len())
        };
        marks.iter().map(offset).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_inside_a_token_counts_as_its_start() {
        let mut tokens = Tokens::default();
        // Two tokens of three bytes, a character of four bytes in two tokens, one more byte.
        for (id, end) in [(1, 3), (2, 6), (3, 10), (4, 10), (5, 11)] {
            tokens.push(id, end);
        }
        let marks = [11, 0, 3, 4, 5, 6, 8, 10, 99];
        assert_eq!(tokens.offsets(&marks), [5, 0, 1, 1, 1, 2, 2, 4, 5]);
    }
}
