//! Which experts each row chose, with which weights, and the order of the pairs by expert. How a
//! row chooses is `select.rs`.

use candle_core::Tensor;

use super::{BLOCK_PAIRS, select};
use crate::access::{View, check, check_dim, rows_of, vector_of};
use crate::error::Result;

/// What becomes of the router's logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scoring {
    /// Probabilities over all experts.
    Softmax,
    /// A score in 0..1 for each expert alone (DeepSeek-V3, arXiv 2412.19437).
    Sigmoid,
}

/// How experts are chosen and weighted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RouterOptions {
    /// What a logit becomes.
    pub scoring: Scoring,
    /// Experts that a token chooses: those with the largest scores, the lower index first among
    /// equals. Scores that are not numbers come first, so that results show them.
    pub experts_per_token: usize,
    /// Groups of consecutive experts, of which a token first chooses some, by the sum of a group's
    /// two largest scores; 1 where there are none. [`Scoring::Sigmoid`] only.
    pub groups: usize,
    /// Groups that a token chooses its experts from.
    pub groups_per_token: usize,
    /// Whether the weights of a token's experts are divided by their sum.
    pub renormalize: bool,
    /// Factor on the weights.
    pub scale: f32,
}

/// The experts of the rows of a step, allocated once for the largest step.
#[derive(Debug)]
pub struct Routing {
    rows_max: usize,
    experts: usize,
    rows: usize,
    /// Choices of a row in the last routing.
    choices: usize,
    choices_max: usize,
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

impl Routing {
    /// Room for at most `rows_max` rows that choose at most `choices_max` of `experts`; their
    /// product is below 2^32.
    pub fn new(rows_max: usize, experts: usize, choices_max: usize) -> Self {
        let pairs = rows_max * choices_max;
        Self {
            rows_max,
            experts,
            rows: 0,
            choices: 0,
            choices_max,
            ids: vec![0; pairs],
            weights: vec![0.0; pairs],
            pairs: vec![0; pairs],
            pair_rows: vec![0; pairs],
            blocks: Vec::with_capacity(blocks_max(experts, pairs)),
            next: vec![0; experts],
        }
    }

    /// Bytes that a routing of this size takes.
    pub fn bytes_for(rows_max: usize, experts: usize, choices_max: usize) -> u64 {
        let pairs = rows_max.saturating_mul(choices_max);
        let blocks = blocks_max(experts, pairs).saturating_mul(size_of::<Block>());
        let numbers = pairs.saturating_mul(4).saturating_add(experts);
        (numbers.saturating_mul(4) as u64).saturating_add(blocks as u64)
    }

    /// Bytes it holds.
    pub fn bytes(&self) -> u64 {
        let numbers = self.ids.len() + self.weights.len() + self.pairs.len() + self.pair_rows.len();
        let blocks = self.blocks.capacity() * size_of::<Block>();
        ((numbers + self.next.len()) * 4 + blocks) as u64
    }

    /// Chooses experts for the leading `rows` of `logits`, `[capacity, experts]`, and sorts the
    /// pairs. `correction`, `[experts]`, is added to scores for the choice, not for the weights;
    /// [`Scoring::Sigmoid`] only.
    ///
    /// # Errors
    /// More rows or choices than there is room for, options that no choice of experts keeps, shapes
    /// that do not fit, tensors that are not f32 and contiguous, a device without an implementation.
    pub fn route(
        &mut self,
        logits: &Tensor,
        correction: Option<&Tensor>,
        options: &RouterOptions,
        rows: usize,
    ) -> Result<()> {
        const OP: &str = "route";
        self.check_options(OP, options, correction.is_some())?;
        check_dim(OP, "logits", rows_of(OP, "logits", logits, rows)?.1, self.experts)?;
        check(OP, "rows", rows <= self.rows_max, || {
            (format!("at most {}", self.rows_max), rows.to_string())
        })?;
        let logits = View::new(OP, "logits", logits)?;
        let logits = &logits.slice()?[..rows * self.experts];
        let correction = match correction {
            None => None,
            Some(correction) => {
                let len = vector_of(OP, "correction", correction)?;
                check_dim(OP, "correction", len, self.experts)?;
                Some(View::new(OP, "correction", correction)?)
            }
        };
        let correction = correction.as_ref().map(View::slice).transpose()?;
        (self.rows, self.choices) = (rows, options.experts_per_token);
        let pairs = self.pairs();
        let chosen =
            select::Chosen { ids: &mut self.ids[..pairs], weights: &mut self.weights[..pairs] };
        select::rows(logits, self.experts, correction, options, chosen);
        self.sort();
        Ok(())
    }

    /// Number of rows of the last routing.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of pairs of the last routing: rows times choices.
    pub fn pairs(&self) -> usize {
        self.rows * self.choices
    }

    /// Experts and weights that a row of the last routing chose, the best first.
    pub fn choices(&self, row: usize) -> (&[u32], &[f32]) {
        let range = row * self.choices..(row + 1) * self.choices;
        (&self.ids[range.clone()], &self.weights[range])
    }

    /// The pairs that the choices of a row became.
    pub fn pairs_of(&self, row: usize) -> &[u32] {
        &self.pairs[row * self.choices..(row + 1) * self.choices]
    }

    /// Number of experts.
    pub(super) fn experts(&self) -> usize {
        self.experts
    }

    /// Rows of the pairs.
    pub(super) fn pair_rows(&self) -> &[u32] {
        &self.pair_rows[..self.pairs()]
    }

    /// All pairs, in blocks of one expert each.
    pub(super) fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    fn check_options(
        &self,
        op: &'static str,
        options: &RouterOptions,
        corrected: bool,
    ) -> Result<()> {
        let RouterOptions { experts_per_token, groups, groups_per_token, .. } = *options;
        let softmax = options.scoring == Scoring::Softmax;
        check(op, "groups", groups > 0 && self.experts.is_multiple_of(groups), || {
            (format!("a divisor of {} experts", self.experts), groups.to_string())
        })?;
        check(op, "groups", groups == 1 || !softmax, || {
            ("1 with softmax scores".to_owned(), groups.to_string())
        })?;
        check(op, "correction", !(corrected && softmax), || {
            ("none with softmax scores".to_owned(), "some".to_owned())
        })?;
        check(op, "groups_per_token", (1..=groups).contains(&groups_per_token), || {
            (format!("1 to {groups}"), groups_per_token.to_string())
        })?;
        let limit = (self.experts / groups * groups_per_token).min(self.choices_max);
        check(op, "experts_per_token", (1..=limit).contains(&experts_per_token), || {
            (format!("1 to {limit}"), experts_per_token.to_string())
        })
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
fn blocks_max(experts: usize, pairs: usize) -> usize {
    experts.min(pairs) + pairs / BLOCK_PAIRS
}
