//! How large a model will be: state from options and configuration, memory from headers alone.

use std::path::Path;

use sconce_kernels::{AffineFormat, AffineRows, DenseRows, DenseType, ScaleType};

use super::memory::machine_bytes;
use super::{Architecture, LoadOptions, SIM_PREFIX};
use crate::checkpoint::{Checkpoint, MatrixRows, ModelConfig};
use crate::error::Error;
use crate::llama::LlamaConfig;
use crate::sim;
use crate::state::{AttentionGroup, PAGE_TOKENS, StateLayout};

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
    fn new(weights_bytes: u64, workspace_bytes: u64, state: &StateLayout, context: usize) -> Self {
        let pages = state.pages_for(context) as u64;
        Self {
            weights_bytes,
            workspace_bytes,
            state_bytes_per_token: state.bytes_per_token(),
            state_bytes_at_context: state.bytes_per_page().saturating_mul(pages),
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
    options.check()?;
    if path.starts_with(SIM_PREFIX) {
        // A simulated model has no weights to read, so it can as well be made.
        let model = sim::load(path, options)?;
        let (size, context) = (model.footprint(), model.info().context_length);
        let state = model.state().layout();
        return Ok(MemoryEstimate::new(size.weights_bytes, size.workspace_bytes, state, context));
    }
    let checkpoint = Checkpoint::open(Path::new(path))?;
    match Architecture::of(&checkpoint)? {
        Architecture::Llama => {
            let config = LlamaConfig::read(checkpoint.config())?;
            let context = config.context_length(checkpoint.config(), options)?;
            let state = state_layout(config.attention_group(), context, options)?;
            let weights = weights_bytes(&checkpoint, &config.ignored())?;
            let workspace = config.workspace_bytes(options);
            Ok(MemoryEstimate::new(weights, workspace, &state, context))
        }
    }
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
/// budget has bytes for.
///
/// # Errors
/// [`Error::Option`] if not even one page fits.
pub(crate) fn state_layout(
    group: AttentionGroup,
    context: usize,
    options: &LoadOptions,
) -> Result<StateLayout, Error> {
    let mut layout = StateLayout {
        attention: vec![group],
        page_tokens: PAGE_TOKENS,
        pages_max: 1,
        sequences_max: options.sequences_max,
    };
    let full = layout.pages_for(context).saturating_mul(options.sequences_max);
    let budget = options.state_bytes_max.unwrap_or_else(|| machine_bytes() / STATE_SHARE);
    let fitting = usize::try_from(budget / layout.bytes_per_page()).unwrap_or(usize::MAX);
    if fitting == 0 {
        let expected = format!("at least {}, the bytes of one page", layout.bytes_per_page());
        return Err(Error::option("state_bytes_max", expected, budget));
    }
    layout.pages_max = full.min(fitting);
    Ok(layout)
}

/// Bytes of all weights once packed.
fn weights_bytes(checkpoint: &Checkpoint, ignored: &dyn Fn(&str) -> bool) -> Result<u64, Error> {
    let mut bytes = 0_u64;
    for tensor in checkpoint.tensors().filter(|tensor| !ignored(tensor.name)) {
        bytes = bytes.saturating_add(match tensor.shape.len() {
            0 | 1 => (tensor.elements() * size_of::<f32>()) as u64,
            _ => match tensor.matrix_rows()? {
                MatrixRows::Affine(source) => {
                    affine_bytes(source.rows() as u64, source.cols() as u64, source.format())
                }
                MatrixRows::Dense(source) => {
                    dense_bytes(source.rows() as u64, source.cols() as u64, source.format())
                }
            },
        });
    }
    Ok(bytes)
}

/// Rows that are packed side by side, and bytes to which each such panel is rounded up: the packing
/// of `sconce_kernels::Matrix`.
const PANEL: u64 = 16;
const LINE: u64 = 64;

fn dense_bytes(rows: u64, cols: u64, format: DenseType) -> u64 {
    let width = match format {
        DenseType::F32 => 4,
        DenseType::Bf16 | DenseType::F16 => 2,
    };
    rows.div_ceil(PANEL) * (cols * PANEL * width).next_multiple_of(LINE)
}

fn affine_bytes(rows: u64, cols: u64, format: AffineFormat) -> u64 {
    let codes = if format.bits <= 4 { cols * PANEL / 2 } else { cols * PANEL };
    let numbers = if format.zero_point.is_some() { PANEL } else { 2 * PANEL };
    let width = match format.scales {
        ScaleType::F32 => 4,
        ScaleType::F16 => 2,
    };
    let scales = cols / format.group_size as u64 * numbers * width;
    rows.div_ceil(PANEL) * (codes.next_multiple_of(LINE) + scales.next_multiple_of(LINE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use sconce_kernels::Matrix;

    struct Source(usize, usize, AffineFormat);

    impl AffineRows for Source {
        fn rows(&self) -> usize {
            self.0
        }
        fn cols(&self) -> usize {
            self.1
        }
        fn format(&self) -> AffineFormat {
            self.2
        }
        fn read_row(&self, _: usize, codes: &mut [u8], scales: &mut [f32], biases: &mut [f32]) {
            codes.fill(1);
            scales.fill(1.0);
            biases.fill(1.0);
        }
    }

    struct Dense(usize, usize, DenseType);

    impl DenseRows for Dense {
        fn rows(&self) -> usize {
            self.0
        }
        fn cols(&self) -> usize {
            self.1
        }
        fn format(&self) -> DenseType {
            self.2
        }
        fn read_row(&self, _: usize, values: &mut [f32]) {
            values.fill(1.0);
        }
    }

    #[test]
    fn bytes_are_foreseen_as_they_are_packed() {
        for (rows, cols) in [(1, 32), (16, 96), (33, 160)] {
            for format in [DenseType::F32, DenseType::Bf16] {
                let matrix = Matrix::pack_dense(&Dense(rows, cols, format), &Device::Cpu).unwrap();
                assert_eq!(dense_bytes(rows as u64, cols as u64, format), matrix.bytes() as u64);
            }
            for (bits, zero_point) in [(4, None), (8, Some(128)), (6, None), (4, Some(8))] {
                for scales in [ScaleType::F16, ScaleType::F32] {
                    let format = AffineFormat { bits, group_size: 32, zero_point, scales };
                    let matrix =
                        Matrix::pack_affine(&Source(rows, cols, format), &Device::Cpu).unwrap();
                    let foreseen = affine_bytes(rows as u64, cols as u64, format);
                    assert_eq!(foreseen, matrix.bytes() as u64, "{rows} {cols} {format:?}");
                }
            }
        }
    }

    #[test]
    fn the_pool_holds_full_contexts_or_what_the_budget_allows() {
        let group = AttentionGroup { layers: 2, kv_heads: 1, head_dim: 8 };
        let page = 2 * 2 * 8 * 4 * PAGE_TOKENS as u64;
        let with = |state_bytes_max| {
            let options = LoadOptions { sequences_max: 3, state_bytes_max, ..Default::default() };
            state_layout(group, 100, &options)
        };
        assert_eq!(with(Some(100 * page)).unwrap().pages_max, 6);
        assert_eq!(with(Some(4 * page + 1)).unwrap().pages_max, 4);
        let error = with(Some(page - 1)).unwrap_err().to_string();
        assert!(error.contains("state_bytes_max") && error.contains(&page.to_string()), "{error}");
    }
}
