//! Runs a scenario on an engine of its own, request after request, and notes what each one cost.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sconce_cache::{Class, Tier};
use sconce_engine::{
    CacheConfig, CacheReport, CacheUse, CheckpointLoader, EngineConfig, EngineError, EngineHandle,
    Event, LoadSettings, Request, Sampling, Stopping,
};
use tempfile::TempDir;

use super::plan::{Ask, Kind, Scenario, Step, Tiers};
use crate::cli::error::CliError;

/// Sequences that are open together; the scenarios need one.
const SEQUENCES_MAX: usize = 4;
/// The name of the model that is measured.
const MODEL: &str = "measured";
/// The name of the one that takes its place.
const OTHER: &str = "other";
/// Longest wait for an engine to end.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(60);

/// What every scenario is run with.
#[derive(Debug, Clone)]
pub(super) struct Setup {
    /// The checkpoint that is measured.
    pub(super) model: LoadSettings,
    /// The one that takes its place in a swap.
    pub(super) other: LoadSettings,
    /// What the cache may use where there is plenty.
    pub(super) cache: CacheConfig,
    /// Where scenarios with files put them, each in a folder of its own that it removes.
    pub(super) folder: Option<PathBuf>,
    /// Bytes of cached state under pressure, if not as many as the scenario says.
    pub(super) pressed: Option<u64>,
}

/// What a request cost.
#[derive(Debug, Clone)]
pub(super) struct Cost {
    /// What the request is called.
    pub(super) label: String,
    /// What it was asked for.
    pub(super) kind: Kind,
    /// Tokens of its prompt.
    pub(super) prompt_tokens: usize,
    /// What was remembered of it.
    pub(super) report: CacheReport,
    /// From the call to the first token.
    pub(super) ttft: Duration,
    /// Bytes of cached state after it; indexed by [`Tier`].
    pub(super) held: [u64; Tier::ALL.len()],
}

/// What a scenario cost.
#[derive(Debug, Clone)]
pub(super) struct Outcome {
    /// The scenario.
    pub(super) scenario: String,
    /// Most bytes of cached state on the device, if that was bounded.
    pub(super) device_max: Option<u64>,
    /// Of every request that is reported, in order.
    pub(super) costs: Vec<Cost>,
}

/// Runs a scenario.
///
/// # Errors
/// A load or a request that failed.
pub(super) async fn run(setup: &Setup, scenario: &Scenario) -> Result<Outcome, CliError> {
    let mut cache = setup.cache.clone();
    let mut folder = None;
    match scenario.tiers {
        Tiers::Ample => cache.disk = 0,
        Tiers::Pressed => {
            let bytes = match setup.pressed {
                Some(bytes) => bytes,
                None => bytes_pressed(setup, scenario).await?,
            };
            cache = CacheConfig { device: bytes, host: 0, disk: 0, ..cache };
        }
        Tiers::Disk => {
            let made = make_folder(setup)?;
            cache.host = 0;
            cache.directory = Some(made.path().to_owned());
            folder = Some(made);
        }
    }
    let device_max = (cache.device != u64::MAX).then_some(cache.device);
    let mut runner = Runner::start(setup, cache, folder).await?;
    let costs = runner.follow(&scenario.steps).await?;
    runner.end().await;
    Ok(Outcome { scenario: scenario.name.clone(), device_max, costs })
}

/// Half more than the scenario's requests up to the first measured one leave behind.
async fn bytes_pressed(setup: &Setup, scenario: &Scenario) -> Result<u64, CliError> {
    let reported = |step: &Step| matches!(step, Step::Ask(ask) if ask.kind != Kind::Unmeasured);
    let first = scenario.steps.iter().position(reported).unwrap_or_default();
    let cache = CacheConfig { host: 0, disk: 0, ..setup.cache.clone() };
    let mut runner = Runner::start(setup, cache, None).await?;
    let costs = runner.follow(&scenario.steps[..=first]).await?;
    runner.end().await;
    Ok(costs.iter().map(|cost| cost.held[Tier::Device as usize]).sum::<u64>() / 2 * 3)
}

fn make_folder(setup: &Setup) -> Result<TempDir, CliError> {
    let parent = setup.folder.clone().unwrap_or_else(std::env::temp_dir);
    TempDir::new_in(&parent)
        .map_err(|source| CliError::io(format!("no folder in {}", parent.display()), source))
}

/// A prompt that was asked, and what was answered.
struct Asked {
    prompt: Vec<u32>,
    completion: Vec<u32>,
    boundaries: Vec<usize>,
}

struct Runner<'a> {
    setup: &'a Setup,
    config: EngineConfig,
    engine: EngineHandle,
    asked: Vec<Asked>,
    /// Removed with everything in it at the end.
    _folder: Option<TempDir>,
}

impl<'a> Runner<'a> {
    async fn start(
        setup: &'a Setup,
        cache: CacheConfig,
        folder: Option<TempDir>,
    ) -> Result<Self, CliError> {
        let config = EngineConfig { running_max: SEQUENCES_MAX, cache, ..EngineConfig::default() };
        let engine = start(&config)?;
        let runner = Self { setup, config, engine, asked: Vec::new(), _folder: folder };
        runner.load(MODEL, &setup.model).await?;
        Ok(runner)
    }

    async fn end(self) {
        self.engine.shutdown(SHUTDOWN_PATIENCE).await;
    }

    async fn load(&self, name: &str, settings: &LoadSettings) -> Result<(), CliError> {
        let loading = self.engine.load(name, settings.clone()).await.map_err(failed)?;
        loading.ready().await.map_err(failed)?;
        Ok(())
    }

    async fn follow(&mut self, steps: &[Step]) -> Result<Vec<Cost>, CliError> {
        let mut costs = Vec::new();
        for step in steps {
            match step {
                Step::Swap => self.swap().await?,
                Step::Restart => self.restart().await?,
                Step::Ask(ask) => {
                    let cost = self.ask(ask).await?;
                    costs.extend((ask.kind != Kind::Unmeasured).then_some(cost));
                }
            }
        }
        Ok(costs)
    }

    async fn swap(&mut self) -> Result<(), CliError> {
        self.engine.unload(MODEL, false).await.map_err(failed)?;
        self.load(OTHER, &self.setup.other).await?;
        // Any vocabulary has this token, and any prompt makes the other model take its memory.
        self.complete(OTHER, vec![0], Vec::new(), 1).await?;
        self.engine.unload(OTHER, false).await.map_err(failed)?;
        self.load(MODEL, &self.setup.model).await
    }

    async fn restart(&mut self) -> Result<(), CliError> {
        self.engine.shutdown(SHUTDOWN_PATIENCE).await;
        self.engine = start(&self.config)?;
        self.load(MODEL, &self.setup.model).await
    }

    async fn ask(&mut self, ask: &Ask) -> Result<Cost, CliError> {
        let (mut prompt, mut boundaries) = (Vec::new(), Vec::new());
        if let Some(before) = ask.after.map(|index| &self.asked[index]) {
            prompt.extend_from_slice(&before.prompt);
            boundaries.extend_from_slice(&before.boundaries);
            boundaries.push(prompt.len());
            prompt.extend_from_slice(&before.completion);
            boundaries.push(prompt.len());
        }
        boundaries.extend(ask.boundaries.iter().map(|boundary| prompt.len() + boundary));
        prompt.extend_from_slice(&ask.tokens);
        let answer =
            self.complete(MODEL, prompt.clone(), boundaries.clone(), ask.completion).await?;
        let memory = self.engine.status().memory;
        let cost = Cost {
            label: ask.label.clone(),
            kind: ask.kind,
            prompt_tokens: prompt.len(),
            report: answer.report,
            ttft: answer.ttft,
            held: Tier::ALL.map(|tier| memory.tier(tier).used(Class::CachedState)),
        };
        self.asked.push(Asked { prompt, completion: answer.tokens, boundaries });
        Ok(cost)
    }

    /// Greedy completion of `tokens` tokens, whatever the model thinks of its end.
    async fn complete(
        &self,
        model: &str,
        prompt: Vec<u32>,
        boundaries: Vec<usize>,
        tokens: usize,
    ) -> Result<Answer, CliError> {
        let began = Instant::now();
        let request = Request {
            model: model.to_owned(),
            request_id: format!("bench-{}", self.asked.len()),
            prompt,
            sampling: Sampling { temperature: 0.0, ..Sampling::default() },
            stopping: Stopping {
                max_tokens: Some(tokens),
                ignore_eos: true,
                ..Stopping::default()
            },
            logprobs: None,
            cache: CacheUse { boundaries, ..CacheUse::default() },
            priority: 0,
            deadline: None,
            arrived: began,
            trace: None,
        };
        let mut generation = self.engine.generate(request).map_err(failed)?;
        let (mut report, mut first, mut tokens) = (None, None, Vec::new());
        while let Some(event) = generation.next().await {
            match event {
                Event::Started(started) => report = Some(started.cache),
                Event::Token(token) => {
                    first.get_or_insert_with(|| began.elapsed());
                    tokens.push(token.id);
                }
                Event::Finished(_) => {}
                Event::Failed(error) => return Err(failed(error)),
            }
        }
        match (report, first) {
            (Some(report), Some(ttft)) => Ok(Answer { report, ttft, tokens }),
            _ => Err(CliError::Internal("a request ended without a token".to_owned())),
        }
    }
}

struct Answer {
    report: CacheReport,
    ttft: Duration,
    tokens: Vec<u32>,
}

fn start(config: &EngineConfig) -> Result<EngineHandle, CliError> {
    EngineHandle::start(config.clone(), Arc::new(CheckpointLoader::default()))
        .map_err(|source| CliError::io("no device thread", source))
}

fn failed(error: EngineError) -> CliError {
    CliError::Internal(error.to_string())
}
