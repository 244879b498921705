//! How large a model will be: state from options and configuration, memory from headers alone.

use std::path::Path;

use sconce_kernels::KvType;

use super::architecture::StateShape;
use super::memory::machine_bytes;
use super::{LoadOptions, SIM_PREFIX, registry};
use crate::checkpoint::{Checkpoint, ModelConfig};
use crate::error::Error;
use crate::model::Precision;
use crate::sim;
use crate::state::{AttentionGroup, PAGE_TOKENS, StateLayout};

/// Share of the device's memory that state may take where no budget is given: weights, workspace
/// and whatever runs beside the server need the rest.
const STATE_SHARE: u64 = 4;

/// Share of the bytes of pages that points take where no number of them is given.
const POINTS_SHARE: u64 = 4;

/// Least and most points where no number of them is given: enough for a few conversations, and no
/// more than a cache makes of pages that are not many times larger.
const POINTS: [u64; 2] = [16, 1024];

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
    /// State of all pages and of all recurrent slots: the most that sequences and points can take
    /// together.
    pub state_bytes_max: u64,
    /// Tokens that a sequence may have.
    pub context_length: usize,
    /// Pages of the pool.
    pub pages_max: usize,
    /// Tokens of a page.
    pub page_tokens: usize,
    /// Sequences that can be open together.
    pub sequences_max: usize,
    /// Recurrent states that can be held beside those of open sequences.
    pub points_max: usize,
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
            points_max: state.points_max,
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
/// budget has bytes for once every sequence and every point has its recurrent state.
///
/// # Errors
/// [`Error::Option`] if not even one page fits.
pub(crate) fn state_layout(
    shape: StateShape,
    context: usize,
    options: &LoadOptions,
) -> Result<StateLayout, Error> {
    let mut attention = shape.attention;
    for group in &mut attention {
        group.kv_type = kv_type(group, options.precision);
    }
    let mut layout = StateLayout {
        attention,
        recurrent: shape.recurrent,
        page_tokens: PAGE_TOKENS,
        pages_max: 1,
        sequences_max: options.sequences_max,
        points_max: 0,
    };
    let full = layout.pages_for(context).saturating_mul(options.sequences_max);
    let memory = || options.device.own_memory().unwrap_or_else(machine_bytes);
    let budget = options.state_bytes_max.unwrap_or_else(|| memory() / STATE_SHARE);
    layout.points_max = match (layout.recurrent, options.points_max) {
        (None, _) => 0,
        (Some(_), Some(points)) => points,
        (Some(_), None) => derived_points(&layout, full, budget),
    };
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

/// How the keys and values of a group are kept: in no fewer bits than its operators read.
fn kv_type(group: &AttentionGroup, precision: Precision) -> KvType {
    match (precision, group.kv_type) {
        (Precision::Fast, KvType::Int8) if group.fits(KvType::Int8, PAGE_TOKENS) => KvType::Int8,
        _ => KvType::F32,
    }
}

/// Points of a layout of at most `pages` pages that has none yet, within a budget.
fn derived_points(layout: &StateLayout, pages: usize, budget: u64) -> usize {
    let (page, slot) = (layout.bytes_per_page(), layout.bytes_per_sequence().max(1));
    let shared = budget.saturating_sub(layout.recurrent_bytes_max());
    let pages = page.saturating_mul(pages as u64).min(shared - shared / (POINTS_SHARE + 1));
    let wanted = (pages / POINTS_SHARE / slot).clamp(POINTS[0], POINTS[1]);
    // Where a few states are as large as all pages, pages come first.
    let spare = (shared / 2).min(shared.saturating_sub(page));
    wanted.min(spare / slot) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::RecurrentGroup;

    #[test]
    fn the_pool_holds_full_contexts_or_what_the_budget_allows() {
        let group = AttentionGroup {
            layers: 2,
            kv_heads: 1,
            key_dim: 8,
            value_dim: 8,
            kv_type: KvType::F32,
        };
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
        let attention = AttentionGroup {
            layers: 1,
            kv_heads: 1,
            key_dim: 4,
            value_dim: 4,
            kv_type: KvType::F32,
        };
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
            let points_max = Some(0);
            let options =
                LoadOptions { sequences_max: 3, state_bytes_max, points_max, ..Default::default() };
            let shape = StateShape { attention: vec![attention], recurrent: Some(recurrent) };
            state_layout(shape, 100, &options)
        };
        let layout = with(Some(3 * slot + 2 * page)).unwrap();
        assert_eq!((layout.pages_max, layout.bytes_max()), (2, 3 * slot + 2 * page));
        assert_eq!(layout.bytes_for(65), 2 * page + slot);
        assert!(with(Some(3 * slot + page - 1)).is_err());
    }

    /// A layout whose pages take 2048 bytes and whose slots take `slot`, for 3 sequences of 6400 tokens.
    fn with_slots(
        slot: usize,
        points_max: Option<usize>,
        state_bytes_max: u64,
    ) -> Result<StateLayout, Error> {
        let attention = AttentionGroup {
            layers: 1,
            kv_heads: 1,
            key_dim: 4,
            value_dim: 4,
            kv_type: KvType::F32,
        };
        let recurrent = RecurrentGroup {
            layers: 1,
            conv_tail: 1,
            conv_channels: slot / 8,
            value_heads: 1,
            key_dim: 1,
            value_dim: slot / 8,
        };
        let options = LoadOptions {
            sequences_max: 3,
            points_max,
            state_bytes_max: Some(state_bytes_max),
            ..Default::default()
        };
        let shape = StateShape { attention: vec![attention], recurrent: Some(recurrent) };
        state_layout(shape, 6400, &options)
    }

    #[test]
    fn points_take_a_quarter_of_the_bytes_of_pages_within_bounds() {
        let points = |slot, bytes| with_slots(slot, None, bytes).unwrap().points_max;
        let pages = 300 * 2048;
        assert_eq!(points(2048, u64::MAX), 75);
        assert_eq!(points(8, u64::MAX), 1024);
        assert_eq!(points(1 << 20, u64::MAX), 16);
        // A fifth of the budget is a quarter of what it leaves.
        let layout = with_slots(2048, None, 3 * 2048 + 250 * 2048).unwrap();
        assert_eq!((layout.points_max, layout.pages_max), (50, 200));
        assert_eq!(layout.bytes_max(), 253 * 2048);
        assert!(with_slots(2048, None, pages).unwrap().bytes_max() <= pages);
    }

    #[test]
    fn points_leave_pages_at_least_half_of_a_small_budget() {
        let sequences = 3 << 20;
        for pages in [1, 2, 1000, 1030, 5000] {
            let layout = with_slots(1 << 20, None, sequences + pages * 2048).unwrap();
            assert!(layout.points_max as u64 * (1 << 20) <= pages * 1024, "{layout:?}");
            assert!(layout.pages_max as u64 >= u64::min(300, pages / 2), "{layout:?}");
            assert!(layout.bytes_max() <= sequences + pages * 2048, "{layout:?}");
        }
        assert!(with_slots(1 << 20, None, sequences + 2047).is_err());
    }

    #[test]
    fn as_many_points_as_asked_for_or_an_error() {
        for points in [0, 1, 70_000] {
            let layout = with_slots(8, Some(points), u64::MAX).unwrap();
            assert_eq!((layout.points_max, layout.pages_max), (points, 300));
        }
        let error = with_slots(2048, Some(10), 12 * 2048).unwrap_err().to_string();
        assert!(error.contains("state_bytes_max") && error.contains("28672"), "{error}");
        let options = LoadOptions { points_max: Some(1 << 17), ..Default::default() };
        assert!(options.check("x").unwrap_err().to_string().contains("points_max"));
    }
}
