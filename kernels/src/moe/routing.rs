//! Which experts each row chose, with which weights, and the order of the pairs by expert: the
//! contract. The lists lie on the host (`lists.rs`), or on a GPU (`gpu/lists.rs`), which they never
//! leave while a model runs.

use candle_core::{Device, Tensor};

use super::gpu::GpuLists;
use super::lists::HostLists;
use crate::access::{View, check, check_dim, rows_of, vector_of};
use crate::error::{Error, Result};
use crate::gpu::Gpu;

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
    choices_max: usize,
    /// Rows of the last routing.
    rows: usize,
    /// Choices of a row in the last routing.
    choices: usize,
    lists: Lists,
}

/// Where what rows chose lies.
#[derive(Debug)]
enum Lists {
    Host(HostLists),
    Gpu(GpuLists),
}

/// A copy on the host of what the rows of a routing chose.
#[derive(Debug, Clone, PartialEq)]
pub struct Choices {
    /// Choices of a row.
    choices: usize,
    ids: Vec<u32>,
    weights: Vec<f32>,
    pairs: Vec<u32>,
}

impl Choices {
    /// Experts that a row chose and their weights, the best first.
    pub fn of(&self, row: usize) -> (&[u32], &[f32]) {
        let range = row * self.choices..(row + 1) * self.choices;
        (&self.ids[range.clone()], &self.weights[range])
    }

    /// The pairs that the choices of a row became.
    pub fn pairs_of(&self, row: usize) -> &[u32] {
        &self.pairs[row * self.choices..(row + 1) * self.choices]
    }
}

impl Routing {
    /// Room on `device` for at most `rows_max` rows that choose at most `choices_max` of `experts`;
    /// the product of the two is below 2^32.
    ///
    /// # Errors
    /// A device without an implementation, or that cannot allocate.
    pub fn new(
        rows_max: usize,
        experts: usize,
        choices_max: usize,
        device: &Device,
    ) -> Result<Self> {
        let lists = match Gpu::of_device(device) {
            Some(_) => Lists::Gpu(GpuLists::new(rows_max, experts, choices_max, device)?),
            None if device.is_cpu() => Lists::Host(HostLists::new(experts, rows_max * choices_max)),
            None => return Err(Error::Unsupported { op: "route", device: device.location() }),
        };
        Ok(Self { rows_max, experts, choices_max, rows: 0, choices: 0, lists })
    }

    /// Bytes that a routing of this size takes at most, whatever its device.
    pub fn bytes_for(rows_max: usize, experts: usize, choices_max: usize) -> u64 {
        let host = HostLists::bytes_for(experts, rows_max.saturating_mul(choices_max));
        host.max(GpuLists::bytes_for(rows_max, experts, choices_max))
    }

    /// Bytes it holds.
    pub fn bytes(&self) -> u64 {
        match &self.lists {
            Lists::Host(lists) => lists.bytes(),
            Lists::Gpu(lists) => lists.bytes(),
        }
    }

    /// Chooses experts for the leading `rows` of `logits`, `[capacity, experts]`, and sorts the
    /// pairs. `correction`, `[experts]`, is added to scores for the choice, not for the weights;
    /// [`Scoring::Sigmoid`] only.
    ///
    /// # Errors
    /// More rows or choices than there is room for, options that no choice of experts keeps, shapes
    /// that do not fit, tensors that are not f32 and contiguous, another device than the routing's.
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
        if let Some(correction) = correction {
            let len = vector_of(OP, "correction", correction)?;
            check_dim(OP, "correction", len, self.experts)?;
        }
        if let Some((gpu, lists)) = self.on_gpu(OP, logits)? {
            lists.route(gpu, (logits, correction), options, rows)?;
        } else if let Lists::Host(lists) = &mut self.lists {
            let logits = View::new(OP, "logits", logits)?;
            let logits = &logits.slice()?[..rows * self.experts];
            let correction = match correction {
                None => None,
                Some(correction) => Some(View::new(OP, "correction", correction)?),
            };
            let correction = correction.as_ref().map(View::slice).transpose()?;
            lists.route(logits, correction, options);
        }
        (self.rows, self.choices) = (rows, options.experts_per_token);
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

    /// Copies what the rows of the last routing chose from wherever it lies: for tests and
    /// measurements, as it waits for a GPU.
    ///
    /// # Errors
    /// The device cannot be read.
    pub fn choices(&self) -> Result<Choices> {
        let choices = self.choices;
        Ok(match &self.lists {
            Lists::Host(lists) => {
                let (ids, weights) = (lists.ids().to_vec(), lists.weights().to_vec());
                Choices { choices, ids, weights, pairs: lists.pairs().to_vec() }
            }
            Lists::Gpu(lists) => {
                let (ids, weights, pairs) = lists.copied(self.pairs())?;
                Choices { choices, ids, weights, pairs }
            }
        })
    }

    /// Number of experts.
    pub(super) fn experts(&self) -> usize {
        self.experts
    }

    /// Choices of a row in the last routing.
    pub(super) fn choices_of_row(&self) -> usize {
        self.choices
    }

    /// The GPU that `tensor` is on and the lists there; none for the CPU.
    ///
    /// # Errors
    /// A tensor elsewhere than the lists.
    pub(super) fn on_gpu(
        &self,
        op: &'static str,
        tensor: &Tensor,
    ) -> Result<Option<(Gpu, &GpuLists)>> {
        match (Gpu::of(tensor), &self.lists) {
            (Some(gpu), Lists::Gpu(lists)) => Ok(Some((gpu, lists))),
            (None, Lists::Host(_)) => Ok(None),
            _ => Err(Error::Unsupported { op, device: tensor.device().location() }),
        }
    }

    /// The lists of the host.
    ///
    /// # Errors
    /// They lie on a GPU.
    pub(super) fn on_host(&self, op: &'static str) -> Result<&HostLists> {
        match &self.lists {
            Lists::Host(lists) => Ok(lists),
            Lists::Gpu(lists) => Err(Error::Unsupported { op, device: lists.location() }),
        }
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
}
