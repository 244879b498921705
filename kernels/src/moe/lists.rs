//! What rows chose, in lists of the host: ids, weights and the order of the pairs. How a row chooses
//! is `select.rs`; the same on a GPU is `gpu/lists.rs`.

use super::routing::RouterOptions;
use super::{BLOCK_PAIRS, select};

/// Lists for the largest step; those of the last routing are their leading parts.
#[derive(Debug)]
pub(super) struct HostLists {
    experts: usize,
    rows: usize,
    /// Choices of a row.
    choices: usize,
    /// `[rows, choices]`, the best first.
    ids: Vec<u32>,
    /// `[rows, choices]`.
    weights: Vec<f32>,
    /// `[rows, choices]`: the pair that a choice became.
    pairs: Vec<u32>,
    /// `[pairs]`: the row of each pair.
    pair_rows: Vec<u32>,
    /// Runs of pairs of one expert.
    blocks: Vec<Block>,
    /// `[experts]`: where the next pair of each expert goes.
    next: Vec<u32>,
}

/// At most [`BLOCK_PAIRS`] consecutive pairs of one expert.
#[derive(Debug, Clone, Copy)]
pub(super) struct Block {
    pub(super) expert: u32,
    pub(super) first: u32,
    pub(super) len: u32,
}

impl HostLists {
    /// Room for `pairs` pairs of `experts` experts.
    pub(super) fn new(experts: usize, pairs: usize) -> Self {
        Self {
            experts,
            rows: 0,
            choices: 0,
            ids: vec![0; pairs],
            weights: vec![0.0; pairs],
            pairs: vec![0; pairs],
            pair_rows: vec![0; pairs],
            blocks: Vec::with_capacity(blocks_max(experts, pairs)),
            next: vec![0; experts],
        }
    }

    /// Bytes that lists of this size take.
    pub(super) fn bytes_for(experts: usize, pairs: usize) -> u64 {
        let blocks = blocks_max(experts, pairs).saturating_mul(size_of::<Block>());
        let numbers = pairs.saturating_mul(4).saturating_add(experts);
        (numbers.saturating_mul(4) as u64).saturating_add(blocks as u64)
    }

    /// Bytes they hold.
    pub(super) fn bytes(&self) -> u64 {
        let numbers = self.ids.len() + self.weights.len() + self.pairs.len() + self.pair_rows.len();
        let blocks = self.blocks.capacity() * size_of::<Block>();
        ((numbers + self.next.len()) * 4 + blocks) as u64
    }

    /// Chooses for the rows of `logits`, `[rows, experts]`, of which there is room for, and sorts the
    /// pairs.
    pub(super) fn route(
        &mut self,
        logits: &[f32],
        correction: Option<&[f32]>,
        options: &RouterOptions,
    ) {
        self.choices = options.experts_per_token;
        self.rows = logits.len() / self.experts.max(1);
        let pairs = self.len();
        let chosen =
            select::Chosen { ids: &mut self.ids[..pairs], weights: &mut self.weights[..pairs] };
        select::rows(logits, self.experts, correction, options, chosen);
        self.sort();
    }

    /// Number of pairs.
    pub(super) fn len(&self) -> usize {
        self.rows * self.choices
    }

    /// Number of rows.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// `[rows, choices]`, the best first.
    pub(super) fn ids(&self) -> &[u32] {
        &self.ids[..self.len()]
    }

    /// `[rows, choices]`.
    pub(super) fn weights(&self) -> &[f32] {
        &self.weights[..self.len()]
    }

    /// `[rows, choices]`.
    pub(super) fn pairs(&self) -> &[u32] {
        &self.pairs[..self.len()]
    }

    /// Pairs and weights of a row's choices.
    pub(super) fn weighted_pairs(&self, row: usize) -> (&[u32], &[f32]) {
        let range = row * self.choices..(row + 1) * self.choices;
        (&self.pairs[range.clone()], &self.weights[range])
    }

    /// Rows of the pairs.
    pub(super) fn pair_rows(&self) -> &[u32] {
        &self.pair_rows[..self.len()]
    }

    /// All pairs, in blocks of one expert each.
    pub(super) fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// Sorts the pairs by expert, those of one expert by row.
    fn sort(&mut self) {
        self.next.fill(0);
        for id in &self.ids[..self.rows * self.choices] {
            self.next[*id as usize] += 1;
        }
        self.blocks.clear();
        let mut first = 0;
        for (expert, next) in self.next.iter_mut().enumerate() {
            let end = first + *next;
            *next = first;
            while first < end {
                let len = (end - first).min(BLOCK_PAIRS as u32);
                self.blocks.push(Block { expert: expert as u32, first, len });
                first += len;
            }
        }
        for row in 0..self.rows {
            for choice in row * self.choices..(row + 1) * self.choices {
                let next = &mut self.next[self.ids[choice] as usize];
                self.pairs[choice] = *next;
                self.pair_rows[*next as usize] = row as u32;
                *next += 1;
            }
        }
    }
}

/// Blocks that any choice of experts makes at most.
pub(super) fn blocks_max(experts: usize, pairs: usize) -> usize {
    experts.min(pairs) + pairs / BLOCK_PAIRS
}
