//! Loading: the engine makes the model, and this the text beside it; news of both in one row.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sconce_cache::{Budgets, Policy};
use sconce_engine::{
    CacheConfig, CheckpointLoader, EngineConfig, EngineError, EngineHandle, Estimate, LoadEvent,
    LoadProgress, LoadSettings, Loading, Spacing,
};

use super::text::{self, ModelText};
use super::{Models, ReadyModel};
use crate::error::CallError;
use crate::serve::{CachePlan, CachePolicy, EnginePlan};

/// Starts an engine as planned.
pub(super) fn start_engine(
    plan: &EnginePlan,
    cache: &CachePlan,
) -> Result<EngineHandle, CallError> {
    if let Some(threads) = plan.threads {
        sconce_models::threads::configure(threads)
            .map_err(|error| CallError::Internal { problem: error.to_string() })?;
    }
    let config = EngineConfig {
        waiting_max: plan.waiting_max,
        running_max: plan.sequences_max,
        step_tokens_max: plan.prefill_chunk_tokens,
        budgets: Budgets {
            device: plan.memory_budget.unwrap_or(u64::MAX),
            host: cache.host,
            disk: cache.disk,
        },
        cache: cache_config(cache),
    };
    EngineHandle::start(config, Arc::new(CheckpointLoader { device: plan.device }))
        .map_err(|error| CallError::Internal { problem: format!("no engine: {error}") })
}

fn cache_config(plan: &CachePlan) -> CacheConfig {
    CacheConfig {
        device: plan.device,
        host: plan.host,
        disk: plan.disk,
        directory: plan.directory.clone(),
        policy: match plan.policy {
            CachePolicy::CostToLose => Policy::CostToLose,
            CachePolicy::Lru => Policy::Lru,
            CachePolicy::OldestDeepestLargest => Policy::OldestDeepestLargest,
        },
        spacing: Spacing { every: plan.spacing, tail_factor: plan.tail_factor },
        save_time_max: plan.save_time_max,
    }
}

/// What a load would take. A checkpoint that could be loaded but not quantized is the fault of the
/// field that asks for it.
pub(super) async fn estimate(
    models: &Models,
    settings: LoadSettings,
) -> Result<Estimate, CallError> {
    text::expect_checkpoint(&settings.path)?;
    let engine = &models.inner.engine;
    let error = match engine.estimate(settings.clone()).await {
        Ok(estimate) => return Ok(estimate),
        Err(error) => error,
    };
    if let (EngineError::LoadFailed { message, .. }, Some(_)) = (&error, settings.quantize) {
        let plain = LoadSettings { quantize: None, ..settings };
        if engine.estimate(plain).await.is_ok() {
            return Err(CallError::field("quantize", message.clone()));
        }
    }
    Err(error.into())
}

/// Shortens the context to the server's limit, where the load leaves it open, and refuses one that
/// the checkpoint does not allow.
pub(super) async fn within_context_limit(
    models: &Models,
    mut settings: LoadSettings,
) -> Result<LoadSettings, CallError> {
    let open = LoadSettings { context_length: None, ..settings.clone() };
    let allowed = estimate(models, open).await?.context_length;
    match settings.context_length {
        None => {
            let max = models.inner.context_length_max;
            settings.context_length = (allowed > max).then_some(max);
        }
        Some(found) if found > allowed => {
            let problem =
                format!("expected 1 to {allowed}, what the checkpoint allows, found {found}");
            return Err(CallError::field("context_length", problem));
        }
        Some(_) => {}
    }
    Ok(settings)
}

/// Something a load says.
#[derive(Debug, Clone)]
pub enum LoadNews {
    /// How far it is.
    Step(LoadStep),
    /// It is done; the last news.
    Ready(ReadyModel),
}

/// How far a load is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadStep {
    /// What is being done.
    pub stage: Stage,
    /// Bytes of weights, done and in all.
    pub bytes: LoadProgress,
    /// Since this load was asked for.
    pub elapsed: Duration,
}

/// Stages of a load, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Finding the files and reading their headers.
    Open,
    /// Reading the tokenizer and the chat template.
    Tokenizer,
    /// Reading weights.
    Weights,
}

/// A load in progress. Dropping it gives it up, unless others wait for the same model.
#[derive(Debug)]
pub struct Load {
    models: Models,
    name: String,
    settings: LoadSettings,
    began: Instant,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Open,
    Tokenizer,
    Text,
    Weights { text: Arc<ModelText>, loading: Loading },
    Ready(ReadyModel),
    Over,
}

/// Begins a load, or finds that there is nothing to do.
pub(super) async fn begin(
    models: &Models,
    name: &str,
    settings: LoadSettings,
) -> Result<Load, CallError> {
    let began = Instant::now();
    let settings = within_context_limit(models, settings).await?;
    text::expect_checkpoint(&settings.path)?;
    let phase = match models.inner.engine.model(name) {
        Ok(loaded) => match loaded.settings.difference(&settings) {
            Some(difference) => {
                return Err(CallError::ModelExists { name: name.to_owned(), difference });
            }
            None => Phase::Ready(models.with_text(loaded).await?),
        },
        // Not ready: the engine will say what it is instead, or join the load there is.
        Err(_) => Phase::Open,
    };
    Ok(Load { models: models.clone(), name: name.to_owned(), settings, began, phase })
}

impl Load {
    /// The next news; `None` after the last. An error is the last.
    pub async fn next(&mut self) -> Option<Result<LoadNews, CallError>> {
        match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Over => None,
            Phase::Ready(model) => Some(Ok(LoadNews::Ready(model))),
            Phase::Open => {
                self.phase = Phase::Tokenizer;
                Some(Ok(self.step(Stage::Open, LoadProgress::default())))
            }
            Phase::Tokenizer => {
                self.phase = Phase::Text;
                Some(Ok(self.step(Stage::Tokenizer, LoadProgress::default())))
            }
            // The text first: it is quick, and a model without it would be of no use.
            Phase::Text => Some(match self.begin_weights().await {
                Ok((text, loading)) => {
                    self.phase = Phase::Weights { text, loading };
                    Ok(self.step(Stage::Weights, LoadProgress::default()))
                }
                Err(error) => Err(error),
            }),
            Phase::Weights { text, mut loading } => Some(match loading.next().await {
                LoadEvent::Progress(bytes) => {
                    self.phase = Phase::Weights { text, loading };
                    Ok(self.step(Stage::Weights, bytes))
                }
                LoadEvent::Ready(model) => {
                    self.models.remember(model.clone(), text);
                    self.models.with_text(model).await.map(LoadNews::Ready)
                }
                LoadEvent::Failed(error) => Err(error.into()),
            }),
        }
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// What made the load fail.
    pub async fn finished(mut self) -> Result<ReadyModel, CallError> {
        while let Some(news) = self.next().await {
            match news? {
                LoadNews::Step(step) => {
                    tracing::debug!(model = self.name, ?step, "loading");
                }
                LoadNews::Ready(model) => return Ok(model),
            }
        }
        Err(CallError::LoadCancelled { name: self.name })
    }

    async fn begin_weights(&self) -> Result<(Arc<ModelText>, Loading), CallError> {
        let text = self.models.open_text(&self.settings.path).await?;
        let engine = &self.models.inner.engine;
        let loading = engine.load(&self.name, self.settings.clone()).await?;
        Ok((text, loading))
    }

    fn step(&self, stage: Stage, bytes: LoadProgress) -> LoadNews {
        LoadNews::Step(LoadStep { stage, bytes, elapsed: self.began.elapsed() })
    }
}
