//! How large a model will be: state from options and configuration, memory from headers alone.

use std::path::Path;

use super::architecture::StateShape;
use super::memory::machine_bytes;
use super::{LoadOptions, SIM_PREFIX, registry};
use crate::checkpoint::{Checkpoint, ModelConfig};
use crate::error::Error;
use crate::sim;
use crate::state::{PAGE_TOKENS, StateLayout};

/// Share of the machine's memory that state may take where no budget is given: weights, workspace
/// and whatever runs beside the server need the rest.
const STATE_SHARE: u64 = 4;

/// Memory that a model would hold once loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// Weights, as they lie in memory after packing.
    pub weights_bytes: u64,
    /// Buffers of a step.
    pub workspace_bytes: u64,
    /// State of one token.
    pub state_bytes_per_token: u64,
    /// State of one sequence at the context length.
    pub state_bytes_at_context: u64,
    /// State of all pages: the most that sequences can take together.
    pub state_bytes_max: u64,
    /// Tokens that a sequence may have.
    pub context_length: usize,
    /// Pages of the pool.
    pub pages_max: usize,
    /// Tokens of a page.
    pub page_tokens: usize,
    /// Sequences that can be open together.
    pub sequences_max: usize,
}

impl MemoryEstimate {
    pub(super) fn new(
        weights_bytes: u64,
        workspace_bytes: u64,
        state: &StateLayout,
        context: usize,
    ) -> Self {
        Self {
            weights_bytes,
            workspace_bytes,
            state_bytes_per_token: state.bytes_per_token(),
            state_bytes_at_context: state.bytes_for(context),
            state_bytes_max: state.bytes_max(),
            context_length: context,
            pages_max: state.pages_max,
            page_tokens: state.page_tokens,
            sequences_max: state.sequences_max,
        }
    }
}

/// What [`load`](super::load) with the same arguments would take, read from headers only.
///
/// # Errors
/// As for [`load`](super::load), as far as headers tell.
pub fn estimate(path: &str, options: &LoadOptions) -> Result<MemoryEstimate, Error> {
    options.check(path)?;
    if path.starts_with(SIM_PREFIX) {
        // A simulated model has no weights to read, so it can as well be made.
        let model = sim::load(path, options)?;
        let (size, context) = (model.footprint(), model.info().context_length);
        let state = model.state().layout();
        return Ok(MemoryEstimate::new(size.weights_bytes, size.workspace_bytes, state, context));
    }
    let checkpoint = Checkpoint::open(Path::new(path))?;
    registry::find(&checkpoint)?.estimate(&checkpoint, options)
}

/// The context length that options ask for, at most `limit`.
///
/// # Errors
/// [`Error::Option`] for zero, or more than the limit.
pub(crate) fn context_length(
    config: &ModelConfig,
    trained: usize,
    limit: usize,
    options: &LoadOptions,
) -> Result<usize, Error> {
    match options.context_length {
        None => Ok(trained),
        Some(asked) if (1..=limit).contains(&asked) => Ok(asked),
        Some(asked) => {
            let expected = format!("1 to {limit}, what {} allows", config.file());
            Err(Error::option("context_length", expected, asked))
        }
    }
}

/// The state pool that options ask for: pages for `sequences_max` full contexts, or as many as the
/// budget has bytes for once every sequence has its recurrent state.
///
/// # Errors
/// [`Error::Option`] if not even one page fits.
pub(crate) fn state_layout(
    shape: StateShape,
    context: usize,
    options: &LoadOptions,
) -> Result<StateLayout, Error> {
    let mut layout = StateLayout {
        attention: shape.attention,
        recurrent: shape.recurrent,
        page_tokens: PAGE_TOKENS,
        pages_max: 1,
        sequences_max: options.sequences_max,
    };
    let full = layout.pages_for(context).saturating_mul(options.sequences_max);
    let budget = options.state_bytes_max.unwrap_or_else(|| machine_bytes() / STATE_SHARE);
    let least = layout.bytes_max();
    if budget < least {
        let expected = format!("at least {least}, the bytes of one page and all recurrent states");
        return Err(Error::option("state_bytes_max", expected, budget));
    }
    // Without attention layers pages take no bytes and are only counted.
    let fitting = (budget - layout.recurrent_bytes_max()).checked_div(layout.bytes_per_page());
    layout.pages_max =
        full.min(fitting.map_or(full, |fitting| usize::try_from(fitting).unwrap_or(usize::MAX)));
    Ok(layout)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{AttentionGroup, RecurrentGroup};

    #[test]
    fn the_pool_holds_full_contexts_or_what_the_budget_allows() {
        let group = AttentionGroup { layers: 2, kv_heads: 1, key_dim: 8, value_dim: 8 };
        let page = 2 * 2 * 8 * 4 * PAGE_TOKENS as u64;
        let with = |state_bytes_max| {
            let options = LoadOptions { sequences_max: 3, state_bytes_max, ..Default::default() };
            let shape = StateShape { attention: vec![group], recurrent: None };
            state_layout(shape, 100, &options)
        };
        assert_eq!(with(Some(100 * page)).unwrap().pages_max, 6);
        assert_eq!(with(Some(4 * page + 1)).unwrap().pages_max, 4);
        let error = with(Some(page - 1)).unwrap_err().to_string();
        assert!(error.contains("state_bytes_max") && error.contains(&page.to_string()), "{error}");
    }

    #[test]
    fn recurrent_states_are_paid_for_before_pages() {
        let attention = AttentionGroup { layers: 1, kv_heads: 1, key_dim: 4, value_dim: 4 };
        let recurrent = RecurrentGroup {
            layers: 2,
            conv_tail: 3,
            conv_channels: 10,
            value_heads: 2,
            key_dim: 4,
            value_dim: 8,
        };
        let (page, slot) = (8 * 4 * PAGE_TOKENS as u64, 2 * (30 + 64) * 4);
        assert_eq!(recurrent.bytes_per_sequence(), slot);
        let with = |state_bytes_max| {
            let options = LoadOptions { sequences_max: 3, state_bytes_max, ..Default::default() };
            let shape = StateShape { attention: vec![attention], recurrent: Some(recurrent) };
            state_layout(shape, 100, &options)
        };
        let layout = with(Some(3 * slot + 2 * page)).unwrap();
        assert_eq!((layout.pages_max, layout.bytes_max()), (2, 3 * slot + 2 * page));
        assert_eq!(layout.bytes_for(65), 2 * page + slot);
        assert!(with(Some(3 * slot + page - 1)).is_err());
    }
}
