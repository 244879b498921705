//! The loader outside of tests: `sconce_models::load`, with a pool of state that fits the memory
//! budget.

use std::ops::ControlFlow;

use sconce_models::{DeviceChoice, LoadOptions, MemoryEstimate, Model, ModelFootprint};

use crate::loader::{Estimate, LoadLimits, LoadProgress, LoadSettings, Loader};

/// Loads checkpoints and simulated models.
#[derive(Debug, Clone, Copy, Default)]
pub struct CheckpointLoader {
    /// What the models compute on.
    pub device: DeviceChoice,
}

impl CheckpointLoader {
    /// The options of a load, and what it takes with them. The pool of state takes what weights and
    /// workspace leave of the memory that is free, if that is less than it would take otherwise.
    fn options(
        &self,
        settings: &LoadSettings,
        limits: &LoadLimits,
    ) -> Result<(LoadOptions, MemoryEstimate), String> {
        let options = LoadOptions {
            device: self.device,
            precision: settings.precision,
            context_length: settings.context_length,
            quantize: settings.quantize,
            step_tokens_max: limits.step_tokens_max,
            sequences_max: limits.sequences_max,
            ..LoadOptions::default()
        };
        let estimate = |options: &LoadOptions| {
            sconce_models::estimate(&settings.path, options).map_err(|error| error.to_string())
        };
        let whole = estimate(&options)?;
        let fixed = whole.weights_bytes.saturating_add(whole.workspace_bytes);
        let left = limits.memory_free.checked_sub(fixed);
        match left {
            Some(left) if left < whole.state_bytes_max && left >= whole.state_bytes_at_context => {
                let options = LoadOptions { state_bytes_max: Some(left), ..options };
                let estimate = estimate(&options)?;
                Ok((options, estimate))
            }
            // What does not fit at all is refused by the ledger, with the numbers.
            _ => Ok((options, whole)),
        }
    }
}

impl Loader for CheckpointLoader {
    fn estimate(&self, settings: &LoadSettings, limits: &LoadLimits) -> Result<Estimate, String> {
        let (_, estimate) = self.options(settings, limits)?;
        Ok(Estimate {
            footprint: ModelFootprint {
                weights_bytes: estimate.weights_bytes,
                workspace_bytes: estimate.workspace_bytes,
            },
            state_bytes: estimate.state_bytes_max,
            context_length: estimate.context_length,
        })
    }

    fn load(
        &self,
        settings: &LoadSettings,
        limits: &LoadLimits,
        progress: &mut dyn FnMut(LoadProgress) -> ControlFlow<()>,
    ) -> Result<Box<dyn Model>, String> {
        let (options, _) = self.options(settings, limits)?;
        // Stages without bytes of their own keep those of the last that had some.
        let mut bytes = LoadProgress::default();
        let mut report = |step: sconce_models::LoadProgress| {
            if step.bytes_total > 0 {
                bytes = LoadProgress { done_bytes: step.bytes_done, total_bytes: step.bytes_total };
            }
            progress(bytes)
        };
        sconce_models::load(&settings.path, &options, &mut report)
            .map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sconce_models::QuantizeFormat;

    const LIMITS: LoadLimits =
        LoadLimits { memory_free: u64::MAX, step_tokens_max: 7, sequences_max: 3 };

    fn settings(path: &str) -> LoadSettings {
        LoadSettings { path: path.to_owned(), ..LoadSettings::default() }
    }

    #[test]
    fn the_limits_reach_the_model() {
        let mut progress = |_| ControlFlow::Continue(());
        let model =
            CheckpointLoader::default().load(&settings("sim:context=64"), &LIMITS, &mut progress);
        let model = model.expect("loads");
        assert_eq!(model.step_tokens_max(), 7);
        assert_eq!(model.state().layout().sequences_max, 3);
        assert_eq!(model.info().context_length, 64);
    }

    #[test]
    fn the_pool_of_state_takes_what_the_budget_leaves() {
        let checkpoint =
            concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tests/fixtures/gguf_llama_f32.gguf");
        let settings = settings(checkpoint);
        let estimate = |memory_free| {
            let limits = LoadLimits { memory_free, ..LIMITS };
            CheckpointLoader::default().estimate(&settings, &limits).expect("is a checkpoint")
        };
        let whole = estimate(u64::MAX);
        let fixed = whole.footprint.weights_bytes + whole.footprint.workspace_bytes;
        let state = whole.state_bytes * 2 / 3;
        let fitted = estimate(fixed + state);
        assert_eq!(fitted.footprint, whole.footprint);
        assert!(
            (1..=state).contains(&fitted.state_bytes),
            "{fitted:?} within {state} of {whole:?}"
        );
        assert_eq!(estimate(fixed - 1), whole);
    }

    #[test]
    fn what_cannot_be_loaded_is_told() {
        let error = CheckpointLoader::default()
            .estimate(&settings("sim:nonsense=1"), &LIMITS)
            .expect_err("no option");
        assert!(error.contains("nonsense"), "{error}");
    }

    #[test]
    fn a_quantizing_load_takes_less_and_what_was_estimated() {
        let checkpoint =
            concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tests/fixtures/llama_f32");
        let plain = settings(checkpoint);
        let quantize = Some(QuantizeFormat::Nvfp4);
        let quantizing = LoadSettings { quantize, ..plain.clone() };
        let bytes = |settings| {
            let estimate =
                CheckpointLoader::default().estimate(settings, &LIMITS).expect("is a checkpoint");
            estimate.footprint.weights_bytes
        };
        let mut progress = |_| ControlFlow::Continue(());
        let model =
            CheckpointLoader::default().load(&quantizing, &LIMITS, &mut progress).expect("loads");
        assert_eq!(model.footprint().weights_bytes, bytes(&quantizing));
        assert!(bytes(&quantizing) < bytes(&plain));
        assert!(plain.difference(&quantizing).expect("differs").contains("quantize"));
    }
}
