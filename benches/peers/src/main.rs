//! Times candle's own quantized llama on a GGUF file: prefill and decode, as JSON.
//!
//! The cases, the random tokens and the copy of the logits to the host are those of
//! `sconce bench engine`; `compare.py` runs the two in turn.

use std::fs::File;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use candle_core::quantized::gguf_file::Content;
use candle_core::{Device, IndexOp, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;
use serde_json::json;

/// Tokens of each case that are run before anything is measured.
const WARM_UP_TOKENS: usize = 16;

/// The model and random tokens to feed it.
struct Peer {
    model: ModelWeights,
    tokens: Vec<u32>,
}

impl Peer {
    fn load(path: &str, context: usize) -> Result<Self> {
        let mut file = File::open(path).with_context(|| path.to_owned())?;
        let content = Content::read(&mut file)?;
        let vocab = content.tensor_infos["token_embd.weight"].shape.dims()[0] as u64;
        let model = ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?;
        let mut state = 0x5eed_u64;
        let tokens = (0..context)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                ((state >> 33) % vocab) as u32
            })
            .collect();
        Ok(Self { model, tokens })
    }

    /// Evaluates tokens `[from, to)` and brings the logits after the last to the host.
    fn step(&mut self, from: usize, to: usize) -> Result<()> {
        let input = Tensor::new(&self.tokens[from..to], &Device::Cpu)?.unsqueeze(0)?;
        let logits = self.model.forward(&input, from)?.i(0)?.to_vec1::<f32>()?;
        ensure!(logits.iter().all(|logit| logit.is_finite()), "logits are not finite");
        Ok(())
    }

    /// Time to evaluate a prompt in one forward pass.
    fn prefill(&mut self, tokens: usize) -> Result<Duration> {
        self.model.clear_kv_cache();
        let start = Instant::now();
        self.step(0, tokens)?;
        Ok(start.elapsed())
    }

    /// Time to decode `tokens` one at a time after `depth` others.
    fn decode(&mut self, tokens: usize, depth: usize) -> Result<Duration> {
        self.model.clear_kv_cache();
        if depth > 0 {
            self.step(0, depth)?;
        }
        let start = Instant::now();
        for position in depth..depth + tokens {
            self.step(position, position + 1)?;
        }
        Ok(start.elapsed())
    }
}

/// Numbers separated by commas; empty or `0` is none.
fn list(text: &str) -> Result<Vec<usize>> {
    let numbers = text.split(',').map(|n| n.trim().parse::<usize>());
    numbers.collect::<Result<_, _>>().with_context(|| format!("a list of numbers: {text}"))
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [path, prompts, generate, depths] = args.as_slice() else {
        anyhow::bail!(
            "usage: peer-candle FILE PROMPTS GENERATE DEPTHS, such as model.gguf 512,2048 128 0"
        );
    };
    let (prompts, depths, generate) = (list(prompts)?, list(depths)?, generate.parse::<usize>()?);
    let context = prompts.iter().copied().chain(depths.iter().map(|d| d + generate)).max();
    let mut peer = Peer::load(path, context.unwrap_or(0).max(WARM_UP_TOKENS))?;
    peer.prefill(WARM_UP_TOKENS)?;
    peer.decode(WARM_UP_TOKENS, 0)?;
    let mut results = Vec::new();
    for &tokens in prompts.iter().filter(|tokens| **tokens > 0) {
        let rate = tokens as f64 / peer.prefill(tokens)?.as_secs_f64();
        results.push(json!({"work": "prefill", "tokens": tokens, "depth": 0, "tokens_per_second_median": rate}));
    }
    for &depth in depths.iter().filter(|_| generate > 0) {
        let rate = generate as f64 / peer.decode(generate, depth)?.as_secs_f64();
        results.push(json!({"work": "decode", "tokens": generate, "depth": depth, "tokens_per_second_median": rate}));
    }
    println!("{}", json!({"version": "candle 0.11.1", "results": results}));
    Ok(())
}
