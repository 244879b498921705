//! Tests of the whole engine on simulated models. A gate holds steps and a clock is turned by hand,
//! so that nothing here depends on speed.

mod drawing;
mod faults;
mod generation;
mod memory;
mod models;
mod queue;
mod remembering;
mod tiers;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sconce_models::sim::{EOS_ID, Gate, SimulatedModel, SimulatedSpec};
use sconce_models::{Batch, Drawn, LoadOptions, Model, ModelFootprint};

use crate::*;

/// Longer than anything here takes; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// Makes simulated models that wait at a gate.
struct GatedLoader {
    gate: Gate,
    loads: Loads,
    /// What they draw in every step, as on a device.
    drawn: Vec<Drawn>,
}

/// What comes of loads; they wait while it is locked.
type Loads = Arc<Mutex<Result<(), String>>>;

impl Loader for GatedLoader {
    fn estimate(&self, settings: &LoadSettings, _: &LoadLimits) -> Result<Estimate, String> {
        let spec = SimulatedSpec::parse(&settings.path).map_err(|error| error.to_string())?;
        let footprint =
            ModelFootprint { weights_bytes: spec.weights_bytes, ..ModelFootprint::default() };
        Ok(Estimate { footprint, state_bytes: 0, context_length: spec.context })
    }

    fn load(
        &self,
        settings: &LoadSettings,
        limits: &LoadLimits,
        progress: &mut dyn FnMut(LoadProgress) -> ControlFlow<()>,
    ) -> Result<Box<dyn Model>, String> {
        if progress(LoadProgress::default()).is_break() {
            return Err("given up".into());
        }
        self.loads.lock().clone()?;
        let spec = SimulatedSpec::parse(&settings.path).map_err(|error| error.to_string())?;
        let model =
            SimulatedModel::new(spec, &limits.options()).map_err(|error| error.to_string())?;
        Ok(Box::new(model.with_gate(self.gate.clone()).with_drawn(self.drawn.clone())))
    }
}

impl LoadLimits {
    fn options(&self) -> LoadOptions {
        LoadOptions {
            step_tokens_max: self.step_tokens_max,
            sequences_max: self.sequences_max,
            ..LoadOptions::default()
        }
    }
}

/// A clock that stands still until it is turned.
#[derive(Clone)]
struct ManualClock(Arc<Mutex<Instant>>);

impl ManualClock {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    fn now(&self) -> Instant {
        *self.0.lock()
    }

    fn turn(&self, by: Duration) {
        *self.0.lock() += by;
    }
}

/// An engine with the model `m`, its gate and its clock.
struct Rig {
    engine: EngineHandle,
    gate: Gate,
    clock: ManualClock,
    loads: Loads,
    steps: u64,
}

impl Rig {
    async fn new(path: &str, config: EngineConfig) -> Self {
        let (gate, clock) = (Gate::new(), ManualClock::new());
        let loads = Loads::new(Mutex::new(Ok(())));
        let loader = GatedLoader { gate: gate.clone(), loads: loads.clone(), drawn: Vec::new() };
        let time = clock.clone();
        let engine = EngineHandle::start_with_clock(
            config,
            Arc::new(loader),
            Clock::new(move || time.now()),
        )
        .unwrap();
        load(&engine, "m", path).await.unwrap();
        Self { engine, gate, clock, loads, steps: 0 }
    }

    /// With an open gate.
    async fn open(path: &str, config: EngineConfig) -> Self {
        let rig = Self::new(path, config).await;
        rig.gate.open();
        rig
    }

    fn request(&self, prompt: &[u32]) -> Request {
        Request { arrived: self.clock.now(), ..request(prompt) }
    }

    fn submit(&self, prompt: &[u32]) -> Generation {
        self.engine.generate(self.request(prompt)).unwrap()
    }

    /// Holds the engine in a step, so that what is submitted before the next is taken up together.
    fn hold(&mut self) {
        let mut request = self.request(&[0]);
        request.stopping.max_tokens = Some(1);
        let holder = self.engine.generate(request).unwrap();
        self.arrival();
        drop(holder);
    }

    /// Waits until the next step is at the gate, and returns its batch.
    fn arrival(&mut self) -> Batch {
        self.steps += 1;
        self.gate.arrival(self.steps, PATIENCE).expect("the step comes")
    }

    /// Lets the step at the gate through and waits for the next.
    fn next_step(&mut self) -> Batch {
        self.gate.pass(1);
        self.arrival()
    }

    fn turn(&self, by: Duration) {
        self.clock.turn(by);
        self.engine.wake();
    }

    async fn status_where(&self, condition: impl Fn(&Status) -> bool) -> Arc<Status> {
        let mut statuses = self.engine.watch_status();
        let found = tokio::time::timeout(PATIENCE, statuses.wait_for(|s| condition(s))).await;
        found.expect("the status comes").unwrap().clone()
    }

    /// Waits until nothing is left of any request.
    async fn at_rest(&self) -> Arc<Status> {
        let free = |model: &ModelStatus| model.pages_used == 0 && model.waiting == 0;
        self.status_where(|s| s.waiting == 0 && s.running == 0 && s.models.iter().all(free)).await
    }
}

async fn load(engine: &EngineHandle, name: &str, path: &str) -> Result<(), EngineError> {
    let settings = LoadSettings { path: path.into(), ..LoadSettings::default() };
    engine.load(name, settings).await?.ready().await.map(drop)
}

fn request(prompt: &[u32]) -> Request {
    Request {
        model: "m".into(),
        request_id: "r".into(),
        prompt: prompt.to_vec(),
        sampling: Sampling { temperature: 0.0, ..Sampling::default() },
        stopping: Stopping { max_tokens: Some(4), ..Stopping::default() },
        logprobs: None,
        cache: CacheUse::default(),
        priority: 0,
        deadline: None,
        arrived: Instant::now(),
        trace: None,
    }
}

/// An engine that remembers nothing, for tests that count what is held.
fn forgetful() -> EngineConfig {
    EngineConfig { cache: CacheConfig::off(), ..EngineConfig::default() }
}

/// A prompt that no other `seed` shares a token with at the same place.
fn prompt(len: usize, seed: usize) -> Vec<u32> {
    (0..len).map(|i| ((i * 7 + seed) % 251) as u32).collect()
}

/// What the model would say alone: its likeliest tokens, up to the end or `count`.
fn expected(path: &str, prompt: &[u32], count: usize) -> Vec<u32> {
    let spec = SimulatedSpec { pages: 0, ..SimulatedSpec::parse(path).unwrap() };
    let mut model = SimulatedModel::new(spec, &LoadOptions::default()).unwrap();
    let id = model.state_mut().open().unwrap();
    model.state_mut().reserve(id, prompt.len() + count).unwrap();
    let (mut said, mut next) = (Vec::new(), prompt.to_vec());
    while said.len() < count {
        let mut batch = Batch::default();
        batch.push(id, model.state().len(id).unwrap(), &next, true);
        let mut logits = model.forward(&batch).unwrap();
        let row = logits.row(0).unwrap();
        let best = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as u32;
        if best == EOS_ID {
            break;
        }
        said.push(best);
        next = vec![best];
    }
    said
}

/// Everything that came of a generation.
#[derive(Debug)]
struct Told {
    started: Option<Started>,
    tokens: Vec<Token>,
    end: Result<Finished, EngineError>,
}

impl Told {
    fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|token| token.id).collect()
    }

    fn finished(&self) -> Finished {
        *self.end.as_ref().expect("it finished")
    }

    fn error(&self) -> &EngineError {
        self.end.as_ref().expect_err("it failed")
    }
}

/// Reads a generation to its end, and checks the order of its events.
async fn read(generation: &mut Generation) -> Told {
    let mut told = Told { started: None, tokens: Vec::new(), end: Err(EngineError::Stopped) };
    let mut ended = false;
    loop {
        let event = tokio::time::timeout(PATIENCE, generation.next()).await;
        let Some(event) = event.expect("an event comes") else { break };
        assert!(!ended, "{event:?} after the end");
        match event {
            Event::Started(started) => {
                assert!(told.started.is_none() && told.tokens.is_empty());
                told.started = Some(started);
            }
            Event::Token(token) => told.tokens.push(token),
            Event::Finished(finished) => (told.end, ended) = (Ok(finished), true),
            Event::Failed(error) => (told.end, ended) = (Err(error), true),
        }
    }
    assert!(ended, "no last event");
    told
}

/// The lengths of a batch's segments by their first token.
fn segments(batch: &Batch) -> Vec<(u32, usize)> {
    let mut from = 0;
    let lengths = batch.segments.iter().map(|segment| {
        let first = batch.tokens[from];
        from += segment.len;
        (first, segment.len)
    });
    lengths.collect()
}
