//! Engines on the tiny checkpoints of sconce-models, and what they answer: a warm one beside a cold
//! one, compared bit by bit. Prompts are in `prompts.rs`; what is damaged on disk is in the tests.

mod gate;
mod prompts;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sconce_cache::{Class, Reason, Tier};
use sconce_engine::{
    CacheConfig, CacheReport, CacheUse, CheckpointLoader, EngineConfig, EngineHandle, Event,
    FinishReason, Generation, LoadSettings, LoadedModel, Loader, Request, Sampling, Stopping,
    Usage,
};
use sconce_models::{LoadOptions, MemoryEstimate, Precision, QuantizeFormat};

pub(crate) use gate::WatchedLoader;
pub(crate) use prompts::{Random, common, edited, random_tokens};

/// Longer than anything here takes; a test that waits so long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The name that every model is loaded under.
pub(crate) const MODEL: &str = "m";

/// Tokens of a page.
pub(crate) const PAGE: usize = 64;

/// Every precision of activations.
pub(crate) const PRECISIONS: [Precision; 3] = Precision::ALL;

/// A tiny checkpoint.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fixture {
    /// A folder of `models/tests/fixtures`.
    pub(crate) name: &'static str,
    quantize: Option<QuantizeFormat>,
    /// Whether it has state that cannot be cut.
    pub(crate) recurrent: bool,
}

const fn fixture(name: &'static str, recurrent: bool) -> Fixture {
    Fixture { name, quantize: None, recurrent }
}

/// Its checkpoints of few bits have too short a context, so it is quantized as it is loaded.
pub(crate) const LLAMA: Fixture =
    Fixture { name: "llama_f32", quantize: Some(QuantizeFormat::Int8), recurrent: false };
pub(crate) const QWEN3: Fixture = fixture("qwen3_mlx_6bit", false);
pub(crate) const QWEN3_MOE: Fixture = fixture("qwen3_moe_mlx_4bit", false);
/// Windows of 16 tokens.
pub(crate) const GEMMA3: Fixture = fixture("gemma3_mlx_4bit", false);
/// Latents instead of heads.
pub(crate) const GLM4: Fixture = fixture("glm4_moe_lite_mlx_4bit", false);
pub(crate) const QWEN3_NEXT: Fixture = fixture("qwen3_next_mlx_4bit", true);
pub(crate) const QWEN3_5: Fixture = fixture("qwen3_5_mlx_4bit", true);
pub(crate) const QWEN3_5_MOE: Fixture = fixture("qwen3_5_moe_mlx_6bit", true);

/// One of each architecture.
pub(crate) const ALL: [&Fixture; 8] =
    [&LLAMA, &QWEN3, &QWEN3_MOE, &GEMMA3, &GLM4, &QWEN3_NEXT, &QWEN3_5, &QWEN3_5_MOE];

/// How an engine is started.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) fixture: &'static Fixture,
    pub(crate) precision: Precision,
    pub(crate) config: EngineConfig,
    /// Full contexts that the pool of state has room for; `None` for one of each request that may
    /// run.
    pub(crate) contexts: Option<u64>,
}

impl Setup {
    /// An engine that remembers within its pool.
    pub(crate) fn warm(fixture: &'static Fixture, precision: Precision) -> Self {
        let config = EngineConfig { running_max: 8, ..EngineConfig::default() };
        Self { fixture, precision, config, contexts: None }
    }

    /// An engine that remembers nothing.
    pub(crate) fn cold(fixture: &'static Fixture, precision: Precision) -> Self {
        let mut setup = Self::warm(fixture, precision);
        setup.config.cache = CacheConfig::off();
        setup
    }

    /// With other limits of what is remembered in each tier.
    pub(crate) fn limits(mut self, device: u64, host: u64, disk: u64) -> Self {
        let cache = &mut self.config.cache;
        (cache.device, cache.host, cache.disk) = (device, host, disk);
        self
    }

    /// With files in `directory`.
    pub(crate) fn directory(mut self, directory: &Path) -> Self {
        self.config.cache.directory = Some(directory.to_owned());
        self
    }

    /// What it is loaded with.
    pub(crate) fn settings(&self) -> LoadSettings {
        settings(self.fixture, self.precision)
    }

    /// Sizes as its model has them.
    pub(crate) fn estimate(&self) -> MemoryEstimate {
        let settings = self.settings();
        let options = LoadOptions {
            precision: settings.precision,
            quantize: settings.quantize,
            step_tokens_max: self.config.step_tokens_max,
            sequences_max: self.config.running_max,
            ..LoadOptions::default()
        };
        sconce_models::estimate(&settings.path, &options).unwrap()
    }

    /// Bytes of a page, and of a recurrent state.
    pub(crate) fn sizes(&self) -> (u64, u64) {
        let estimate = self.estimate();
        let page = estimate.state_bytes_per_token * PAGE as u64;
        let pages = estimate.context_length.div_ceil(PAGE) as u64;
        (page, estimate.state_bytes_at_context - pages * page)
    }

    /// The configuration, with a budget that leaves the pool no more than it is to have.
    fn budgeted(&self) -> EngineConfig {
        let mut config = self.config.clone();
        if let Some(contexts) = self.contexts {
            let estimate = self.estimate();
            let (page, point) = self.sizes();
            let pages = estimate.context_length.div_ceil(PAGE) as u64 * contexts;
            // The loader gives points at most half of what is left beside the sequences' own.
            let state = match point {
                0 => pages * page,
                _ => 2 * pages * page + self.config.running_max as u64 * point,
            };
            config.budgets.device = estimate.weights_bytes + estimate.workspace_bytes + state;
        }
        config
    }

    /// Starts the engine and loads the model.
    pub(crate) async fn start(&self) -> Server {
        self.start_with(Arc::new(WatchedLoader::default())).await
    }

    /// Why no engine starts so.
    pub(crate) fn refused(&self) -> String {
        let started = EngineHandle::start(self.budgeted(), Arc::new(CheckpointLoader::default()));
        started.expect_err("it does not start").to_string()
    }

    /// Starts the engine with a loader of one's own.
    pub(crate) async fn start_with(&self, loader: Arc<dyn Loader>) -> Server {
        let engine = EngineHandle::start(self.budgeted(), loader).unwrap();
        let model = load(&engine, MODEL, self.settings()).await;
        Server { engine, model, setup: self.clone() }
    }
}

/// How a fixture is loaded.
pub(crate) fn settings(fixture: &Fixture, precision: Precision) -> LoadSettings {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tests/fixtures/");
    let path = format!("{root}{}", fixture.name);
    LoadSettings { path, quantize: fixture.quantize, precision, ..LoadSettings::default() }
}

/// Loads a model to the end.
pub(crate) async fn load(
    engine: &EngineHandle,
    name: &str,
    settings: LoadSettings,
) -> Arc<LoadedModel> {
    engine.load(name, settings).await.unwrap().ready().await.unwrap()
}

/// What is asked of an engine.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ask {
    pub(crate) prompt: Vec<u32>,
    /// Completion tokens.
    pub(crate) count: usize,
    pub(crate) cache: CacheUse,
}

impl Ask {
    /// Asks for a few tokens.
    pub(crate) fn new(prompt: &[u32]) -> Self {
        Self { prompt: prompt.to_vec(), count: 4, cache: CacheUse::default() }
    }

    /// Among those of one salt.
    pub(crate) fn salted(prompt: &[u32], salt: &str) -> Self {
        let cache = CacheUse { salt: Some(salt.to_owned()), ..CacheUse::default() };
        Self { cache, ..Self::new(prompt) }
    }

    /// As the engine takes it. The draws are seeded, so that the same logits give the same tokens.
    pub(crate) fn request(&self) -> Request {
        Request {
            model: MODEL.to_owned(),
            request_id: "r".to_owned(),
            prompt: self.prompt.clone(),
            sampling: Sampling { seed: Some(11), ..Sampling::default() },
            stopping: Stopping {
                max_tokens: Some(self.count),
                ignore_eos: true,
                ..Stopping::default()
            },
            logprobs: Some(3),
            cache: self.cache.clone(),
            priority: 0,
            deadline: None,
            arrived: Instant::now(),
            trace: None,
        }
    }
}

/// Tokens, their logprobs and those of the likeliest alternatives as bits, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) tokens: Vec<u32>,
    logprobs: Vec<(u32, Vec<(u32, u32)>)>,
    reason: FinishReason,
}

/// All that an engine answered.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) said: Said,
    pub(crate) report: CacheReport,
    pub(crate) usage: Usage,
}

/// An engine with one model.
pub(crate) struct Server {
    pub(crate) engine: EngineHandle,
    pub(crate) model: Arc<LoadedModel>,
    pub(crate) setup: Setup,
}

impl Server {
    /// Queues a request.
    pub(crate) fn submit(&self, ask: &Ask) -> Generation {
        self.engine.generate(ask.request()).unwrap()
    }

    /// Runs a request to its end, and holds its account to what can be known of it.
    pub(crate) async fn ask(&self, ask: &Ask) -> Answer {
        let answer = read(self.submit(ask)).await;
        check_account(ask, &answer);
        answer
    }

    /// Runs requests that are queued together.
    pub(crate) async fn ask_together(&self, asks: &[Ask]) -> Vec<Answer> {
        let mut reading = tokio::task::JoinSet::new();
        for (index, ask) in asks.iter().enumerate() {
            let generation = self.submit(ask);
            reading.spawn(async move { (index, read(generation).await) });
        }
        let mut answers = reading.join_all().await;
        answers.sort_by_key(|(index, _)| *index);
        let answers: Vec<_> = answers.into_iter().map(|(_, answer)| answer).collect();
        asks.iter().zip(&answers).for_each(|(ask, answer)| check_account(ask, answer));
        answers
    }

    /// Unloads the model.
    pub(crate) async fn unload(&self) {
        self.engine.unload(MODEL, false).await.unwrap();
    }

    /// Loads it again as it was.
    pub(crate) async fn load(&self) {
        load(&self.engine, MODEL, self.setup.settings()).await;
    }

    /// Checks that no tier is over its limit, shuts the engine down, and checks that no byte of the
    /// device is left behind.
    pub(crate) async fn stop(&self) {
        let cache = &self.setup.config.cache;
        let memory = self.engine.ledger().snapshot();
        let held = Tier::ALL.map(|tier| memory.tier(tier).used(Class::CachedState));
        let limits = [cache.device, cache.host, cache.disk];
        assert!(
            held.iter().zip(limits).all(|(held, limit)| *held <= limit),
            "{held:?}, {limits:?}"
        );
        self.engine.shutdown(PATIENCE).await;
        let memory = self.engine.ledger().snapshot();
        assert_eq!(memory.tier(Tier::Device).total(), 0, "{memory:?}");
    }

    /// [`stop`](Self::stop) of an engine that has nothing to do, which must hold no lease.
    pub(crate) async fn end(self) {
        let nodes = self.engine.describe_cache(MODEL).await.unwrap();
        assert!(nodes.iter().all(|node| !node.leased), "{nodes:?}");
        self.stop().await;
    }
}

/// Reads a generation to its end.
pub(crate) async fn read(mut generation: Generation) -> Answer {
    let (mut tokens, mut logprobs, mut report) = (Vec::new(), Vec::new(), None);
    loop {
        let event = tokio::time::timeout(PATIENCE, generation.next()).await;
        match event.expect("an event comes").expect("a last event") {
            Event::Started(started) => report = Some(started.cache),
            Event::Token(token) => {
                tokens.push(token.id);
                let found = token.logprobs.expect("they were asked for");
                let top = found.top.iter().map(|(id, logprob)| (*id, logprob.to_bits()));
                logprobs.push((found.logprob.to_bits(), top.collect()));
            }
            Event::Finished(finished) => {
                let said = Said { tokens, logprobs, reason: finished.reason };
                let report = report.expect("it started");
                return Answer { said, report, usage: finished.usage };
            }
            Event::Failed(error) => panic!("it fails, and should not: {error}"),
        }
    }
}

/// What holds for every report, whatever was remembered.
fn check_account(ask: &Ask, answer: &Answer) {
    let (n, Answer { report, usage, .. }) = (ask.prompt.len(), answer);
    assert!(report.resumed <= report.matched && report.matched < n, "{n} tokens: {report:?}");
    assert_eq!(report.recomputed, n - report.resumed, "{report:?}");
    assert_eq!(report.tier.is_some(), report.resumed > 0, "{report:?}");
    assert_eq!((usage.prompt_tokens, usage.cached_tokens), (n, report.resumed), "{usage:?}");
    assert_eq!(usage.evaluated_tokens, report.recomputed, "{usage:?}");
    assert!(report.divergence.is_none_or(|at| (report.matched..n).contains(&at)), "{report:?}");
}

/// A warm engine, and a cold one that knows the right answers.
pub(crate) struct Twins {
    pub(crate) warm: Server,
    pub(crate) cold: Server,
}

impl Twins {
    /// Starts both.
    pub(crate) async fn start(warm: &Setup) -> Self {
        Self { warm: warm.start().await, cold: Self::cold_of(warm).await }
    }

    /// The cold twin of an engine.
    pub(crate) async fn cold_of(warm: &Setup) -> Server {
        Setup::cold(warm.fixture, warm.precision).start().await
    }

    /// What a cold engine says.
    pub(crate) async fn truth(&self, ask: &Ask) -> Said {
        truth(&self.cold, ask).await
    }

    /// Asks both, and holds the warm one to what the cold one said. `case` says where it failed.
    pub(crate) async fn ask(&self, ask: &Ask, case: &str) -> Answer {
        let answer = self.warm.ask(ask).await;
        assert_eq!(answer.said, self.truth(ask).await, "{case}: {:?}", answer.report);
        answer
    }

    /// As [`ask`](Self::ask) for requests that the warm engine has at the same time.
    pub(crate) async fn ask_together(&self, asks: &[Ask], case: &str) -> Vec<Answer> {
        let answers = self.warm.ask_together(asks).await;
        for (index, (ask, answer)) in asks.iter().zip(&answers).enumerate() {
            let truth = self.truth(ask).await;
            assert_eq!(answer.said, truth, "{case}, request {index}: {:?}", answer.report);
        }
        answers
    }

    /// Ends both, with the checks of [`Server::end`].
    pub(crate) async fn end(self) {
        self.warm.end().await;
        self.cold.end().await;
    }
}

/// What an engine that remembers nothing says.
pub(crate) async fn truth(cold: &Server, ask: &Ask) -> Said {
    let answer = cold.ask(ask).await;
    assert_eq!((answer.report.resumed, answer.report.reason), (0, Reason::Disabled));
    answer.said
}

/// Most tokens that an exact repeat of a prompt computes: one, or for a model with restore points
/// those after the last of them.
pub(crate) fn repeat_max(fixture: &Fixture) -> usize {
    if fixture.recurrent { 4 } else { 1 }
}

/// A prompt of random tokens that fills most of a context.
pub(crate) fn long_prompt(server: &Server, seed: u64) -> Vec<u32> {
    let len = server.model.info.context_length * 4 / 5;
    random_tokens(&mut Random::new(seed), len, server.model.info.vocab_size as u32)
}
