//! From a path to a model that can be stepped: options, progress, and which architecture is whose.
//!
//! What a checkpoint means is the business of its architecture (`llama.rs` and its neighbours), which
//! `load/registry.rs` finds; reading its tensors is `load/weights.rs`, sizes are `load/sizes.rs`.

pub(crate) mod architecture;
pub(crate) mod config;
pub(crate) mod experts;
mod memory;
mod part;
mod plan;
mod progress;
mod random;
mod registry;
pub(crate) mod sizes;
pub(crate) mod turn;
pub(crate) mod weights;

use std::ops::ControlFlow;
use std::path::Path;

use sconce_kernels::gpu::DeviceChoice;
use serde_json::Value;

pub use self::progress::{LoadProgress, LoadStage};
pub use self::sizes::{MemoryEstimate, estimate};
use crate::checkpoint::Checkpoint;
use crate::error::Error;
use crate::model::{Batch, Model, Precision};
use crate::quantize::QuantizeFormat;
use crate::sim;

/// Most tokens of a step unless asked otherwise: enough for the weights to be read once for many
/// rows, and a step that still ends soon after a cancellation.
pub const STEP_TOKENS_MAX: usize = 2048;

/// Most open sequences unless asked otherwise.
pub const SEQUENCES_MAX: usize = 64;

/// Largest value of both counts: buffers are allocated for it.
const COUNT_LIMIT: usize = 1 << 16;

/// Prefix of paths that name a simulated model.
pub const SIM_PREFIX: &str = "sim:";

/// How a model is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadOptions {
    /// What computes. Simulated models have no use for it.
    pub device: DeviceChoice,
    /// How activations are computed.
    pub precision: Precision,
    /// Most tokens of a sequence; what the checkpoint was trained for if `None`.
    pub context_length: Option<usize>,
    /// Most tokens of a step, at least one.
    pub step_tokens_max: usize,
    /// Most open sequences, at least one.
    pub sequences_max: usize,
    /// Bytes that the state of sequences may take. If `None`: what `sequences_max` full contexts
    /// need, but at most a quarter of the machine's memory.
    pub state_bytes_max: Option<u64>,
    /// Recurrent states that can be held beside those of open sequences, for models with recurrent
    /// layers. If `None`: what a quarter of the bytes of pages is enough for, from 16 to 1024, but
    /// fewer where bytes are few.
    pub points_max: Option<usize>,
    /// Quantizes the weights of a checkpoint of full precision, as
    /// [`quantize`](crate::quantize::quantize) would; `None` takes them as they are.
    pub quantize: Option<QuantizeFormat>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            device: DeviceChoice::default(),
            precision: Precision::default(),
            context_length: None,
            step_tokens_max: STEP_TOKENS_MAX,
            sequences_max: SEQUENCES_MAX,
            state_bytes_max: None,
            points_max: None,
            quantize: None,
        }
    }
}

impl LoadOptions {
    /// Refuses counts of zero where there must be one, those that no machine has buffers for, and to
    /// quantize the weights that a simulated model has not.
    pub(crate) fn check(&self, path: &str) -> Result<(), Error> {
        if let Some(format) = self.quantize
            && path.starts_with(SIM_PREFIX)
        {
            return Err(Error::option("quantize", "nothing for a simulated model", format));
        }
        let counts =
            [("step_tokens_max", self.step_tokens_max), ("sequences_max", self.sequences_max)];
        if let Some((option, count)) =
            counts.iter().find(|(_, count)| !(1..=COUNT_LIMIT).contains(count))
        {
            return Err(Error::option(option, format!("1 to {COUNT_LIMIT}"), count));
        }
        match self.points_max {
            Some(count) if count > COUNT_LIMIT => {
                Err(Error::option("points_max", format!("0 to {COUNT_LIMIT}"), count))
            }
            _ => Ok(()),
        }
    }
}

/// Loads the checkpoint at `path`, or the simulated model that a `sim:` path describes.
///
/// `progress` hears of every stage and every tensor; [`ControlFlow::Break`] stops the load before
/// the next tensor and frees what was read.
///
/// # Errors
/// A path that holds no checkpoint, a damaged one, an architecture that is not built, options that
/// do not fit it, [`Error::Cancelled`].
pub fn load(
    path: &str,
    options: &LoadOptions,
    progress: &mut dyn FnMut(LoadProgress) -> ControlFlow<()>,
) -> Result<Box<dyn Model>, Error> {
    options.check(path)?;
    if path.starts_with(SIM_PREFIX) {
        return sim::load_with_progress(path, options, progress);
    }
    report(progress, LoadProgress::at(LoadStage::Open))?;
    load_checkpoint(&Checkpoint::open(Path::new(path))?, options, progress)
}

/// Makes a model of a shape, as `config.json` has it, with weights that are made from `seed` on the
/// device: matrices of 4 bits. To measure what the shape costs; what it generates means nothing.
///
/// # Errors
/// As for [`load`]; sizes that cannot be made on the device.
pub fn load_random(
    config: Value,
    seed: u64,
    options: &LoadOptions,
    progress: &mut dyn FnMut(LoadProgress) -> ControlFlow<()>,
) -> Result<Box<dyn Model>, Error> {
    options.check("")?;
    if let Some(format) = options.quantize {
        return Err(Error::option("quantize", "nothing for random weights", format));
    }
    load_checkpoint(&Checkpoint::random(config, seed)?, options, progress)
}

fn load_checkpoint(
    checkpoint: &Checkpoint,
    options: &LoadOptions,
    progress: &mut dyn FnMut(LoadProgress) -> ControlFlow<()>,
) -> Result<Box<dyn Model>, Error> {
    let mut model = registry::find(checkpoint)?.load(checkpoint, options, progress)?;
    report(progress, LoadProgress::at(LoadStage::WarmUp))?;
    warm_up(model.as_mut())?;
    report(progress, LoadProgress::at(LoadStage::Ready))?;
    Ok(model)
}

/// What a load tells its caller, and whether to go on.
type Progress<'a> = dyn FnMut(LoadProgress) -> ControlFlow<()> + 'a;

fn report(progress: &mut Progress<'_>, now: LoadProgress) -> Result<(), Error> {
    match progress(now) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Cancelled),
    }
}

/// Steps one token through the model, so that the first request finds weights and buffers mapped,
/// and a model that cannot be stepped fails to load.
fn warm_up(model: &mut dyn Model) -> Result<(), Error> {
    let id = model.state_mut().open()?;
    model.state_mut().reserve(id, 1)?;
    let mut batch = Batch::default();
    batch.push(id, 0, &[0], true);
    model.forward(&batch)?;
    model.state_mut().close(id)?;
    Ok(())
}
