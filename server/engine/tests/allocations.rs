//! What a token costs in allocations between the model and its reader: scheduling, sampling, sending and
//! telling how things are, counted over all threads of an engine at work.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../../models/tests/support/allocations.rs"]
mod allocations;

use std::sync::Arc;
use std::time::{Duration, Instant};

use sconce_engine::{
    CacheUse, CheckpointLoader, EngineConfig, EngineHandle, Event, LoadSettings, Request, Sampling,
    Stopping,
};

use allocations::{Allocations, so_far};

/// Folders of `models/tests/fixtures`, of every architecture.
const FIXTURES: [&str; 8] = [
    "llama_f32",
    "qwen3_mlx_6bit",
    "qwen3_moe_mlx_4bit",
    "gemma3_mlx_4bit",
    "glm4_moe_lite_mlx_4bit",
    "qwen3_next_mlx_4bit",
    "qwen3_5_mlx_4bit",
    "qwen3_5_moe_mlx_6bit",
];

/// The name that a model is loaded under.
const MODEL: &str = "m";

/// Completions whose costs are compared: what a request costs, however long, is in both.
const SHORT: usize = 40;
const LONG: usize = 100;

/// Tokens for which there may be an allocation: the channel takes memory for 32 events at a time, a
/// sequence's list of tokens doubles, and what is remembered grows by pages.
const TOKENS_PER_ALLOCATION: usize = 10;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs of which the cheapest counts: memory that grows once, as each thread's does, is left out.
const RUNS: usize = 8;

async fn start(fixture: &str) -> EngineHandle {
    let engine =
        EngineHandle::start(EngineConfig::default(), Arc::new(CheckpointLoader::default()))
            .unwrap();
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tests/fixtures/");
    let settings = LoadSettings { path: format!("{root}{fixture}"), ..LoadSettings::default() };
    engine.load(MODEL, settings).await.unwrap().ready().await.unwrap();
    engine
}

fn request(tokens: usize) -> Request {
    Request {
        model: MODEL.to_owned(),
        request_id: "r".to_owned(),
        prompt: vec![1, 2, 3, 4],
        sampling: Sampling { seed: Some(11), ..Sampling::default() },
        stopping: Stopping { max_tokens: Some(tokens), ignore_eos: true, ..Stopping::default() },
        logprobs: None,
        cache: CacheUse::default(),
        priority: 0,
        deadline: None,
        arrived: Instant::now(),
        trace: None,
    }
}

/// Asks for completions of `tokens` tokens together and reads them to their ends.
async fn complete(engine: &EngineHandle, sequences: usize, tokens: usize) {
    let mut reading = tokio::task::JoinSet::new();
    for _ in 0..sequences {
        let mut generation = engine.generate(request(tokens)).unwrap();
        reading.spawn(async move {
            let mut read = 0;
            while let Some(event) = generation.next().await {
                assert!(!matches!(event, Event::Failed(_)), "{event:?}");
                read += usize::from(matches!(event, Event::Token(_)));
            }
            read
        });
    }
    assert_eq!(reading.join_all().await, vec![tokens; sequences]);
}

/// What the cheapest of some runs asked for.
async fn cost(engine: &EngineHandle, sequences: usize, tokens: usize) -> Allocations {
    let mut costs = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        let before = so_far();
        complete(engine, sequences, tokens).await;
        costs.push(so_far().since(before));
    }
    costs.into_iter().min_by_key(|cost| cost.count).unwrap()
}

#[tokio::test]
async fn a_token_hardly_ever_allocates() {
    for fixture in FIXTURES {
        let engine = start(fixture).await;
        for sequences in [1, 4] {
            let short = cost(&engine, sequences, SHORT).await;
            let long = cost(&engine, sequences, LONG).await;
            let more = long.count.saturating_sub(short.count);
            let most = sequences * (LONG - SHORT) / TOKENS_PER_ALLOCATION;
            assert!(more <= most, "{fixture}, {sequences} sequences: {short:?}, {long:?}");
        }
        engine.shutdown(PATIENCE).await;
    }
}
