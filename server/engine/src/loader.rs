//! Where models come from: the engine decides when to load, a [`Loader`] knows how.

use std::ops::ControlFlow;
use std::time::Duration;

use sconce_cache::{Ledger, Tier};
use sconce_models::{Model, ModelFootprint, Precision, QuantizeFormat};

use crate::config::EngineConfig;

/// How a model is to be loaded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadSettings {
    /// A directory, a `.gguf` file, or `sim:` with its options.
    pub path: String,
    /// Quantizes the weights of a checkpoint of full precision; `None` takes them as they are.
    pub quantize: Option<QuantizeFormat>,
    /// Shortens (or, where rope scaling allows, sets) the context; `None` takes the checkpoint's.
    pub context_length: Option<usize>,
    /// Unloads the model after it has had no request for so long; `None` keeps it.
    pub keep_alive: Option<Duration>,
    /// How activations are computed.
    pub precision: Precision,
}

impl LoadSettings {
    /// The first setting in which `other` differs, in words; `None` if they are the same.
    pub fn difference(&self, other: &Self) -> Option<String> {
        fn differ<T: PartialEq + std::fmt::Debug>(name: &str, a: &T, b: &T) -> Option<String> {
            (a != b).then(|| format!("{name} is {a:?}, {b:?} was asked for"))
        }
        differ("path", &self.path, &other.path)
            .or_else(|| differ("quantize", &self.quantize, &other.quantize))
            .or_else(|| differ("context_length", &self.context_length, &other.context_length))
            .or_else(|| differ("keep_alive", &self.keep_alive, &other.keep_alive))
            .or_else(|| differ("precision", &self.precision, &other.precision))
    }
}

/// How far a load is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LoadProgress {
    /// Bytes done.
    pub done_bytes: u64,
    /// Bytes in all; 0 while unknown.
    pub total_bytes: u64,
}

/// What a model would need, before it is loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Estimate {
    /// Weights and workspace.
    pub footprint: ModelFootprint,
    /// The whole pool of sequence state.
    pub state_bytes: u64,
    /// Context the pool is made for.
    pub context_length: usize,
}

/// What an engine will ask of the models it loads, so that they are made no larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadLimits {
    /// Bytes of the device's budget that nothing else has; a pool of state is made to fit.
    pub memory_free: u64,
    /// Most tokens of one step, which decides the workspace.
    pub step_tokens_max: usize,
    /// Most sequences that are open together, which decides the pool of state.
    pub sequences_max: usize,
}

impl LoadLimits {
    /// Those of an engine at this moment.
    pub(crate) fn of(config: &EngineConfig, ledger: &Ledger) -> Self {
        Self {
            memory_free: ledger.snapshot().tier(Tier::Device).free(),
            step_tokens_max: config.step_tokens_max.max(1),
            sequences_max: config.running_max.max(1),
        }
    }
}

/// Turns a path into a model. Called on threads of its own, never on the device thread.
pub trait Loader: Send + Sync + 'static {
    /// What `load` would take, from the headers of the checkpoint alone.
    ///
    /// # Errors
    /// In words, naming the file.
    fn estimate(&self, settings: &LoadSettings, limits: &LoadLimits) -> Result<Estimate, String>;

    /// Loads the model. `progress` is called now and then; a break means that nobody waits any
    /// longer, and that the loader should give up with any error.
    ///
    /// # Errors
    /// In words, naming the file.
    fn load(
        &self,
        settings: &LoadSettings,
        limits: &LoadLimits,
        progress: &mut dyn FnMut(LoadProgress) -> ControlFlow<()>,
    ) -> Result<Box<dyn Model>, String>;
}
