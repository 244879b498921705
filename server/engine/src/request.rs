//! What the engine is asked to do: plain data, checked at the edge before it comes here.

use std::time::Instant;

use crate::error::EngineError;
use crate::sampler::TOP_LOGPROBS_MAX;
use crate::status::LoadedModel;
use crate::steps::TraceMark;

/// One generation.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Name under which the model is loaded.
    pub model: String,
    /// For logs; unique per request, chosen by the caller.
    pub request_id: String,
    /// Prompt tokens, at least one.
    pub prompt: Vec<u32>,
    /// How the next token is chosen.
    pub sampling: Sampling,
    /// When to stop.
    pub stopping: Stopping,
    /// How many alternatives each token's logprobs list; `None` for no logprobs at all,
    /// `Some(0)` for the chosen token's only.
    pub logprobs: Option<usize>,
    /// How the cache takes part.
    pub cache: CacheUse,
    /// Larger runs first; equal priorities run in order of arrival.
    pub priority: i32,
    /// When the caller stops waiting.
    pub deadline: Option<Instant>,
    /// When the request reached the server; timings count from here.
    pub arrived: Instant,
    /// Its span, for samples of the steps it is in; `None` where nobody traces it.
    pub trace: Option<TraceMark>,
}

/// How the cache takes part in one request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheUse {
    /// State is shared only among requests of the same salt.
    pub salt: Option<String>,
    /// Neither uses nor fills the cache.
    pub bypass: bool,
    /// Offsets of the prompt at which a later one is likely to branch off, by the caller's word.
    pub restore_points: Vec<usize>,
    /// Offsets of the prompt at which messages end.
    pub boundaries: Vec<usize>,
    /// Keeps what the request leaves behind until it is dropped by name, which is the request's id.
    pub pin: bool,
}

/// How a token is drawn from logits. The order is: penalties on the raw logits, then (temperature
/// 0) argmax, or top_k, softmax of logits/temperature, top_p, min_p, draw.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Finite, not negative; 0 picks the likeliest token.
    pub temperature: f32,
    /// Keeps the likeliest tokens until their sum reaches this, in (0, 1]; 1 keeps all.
    pub top_p: f32,
    /// Keeps that many of the likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps tokens at least this likely relative to the likeliest, in [0, 1]; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens in the history; 1 is off.
    pub repeat_penalty: f32,
    /// Subtracted once from the logit of each token in the history.
    pub presence_penalty: f32,
    /// Subtracted from the logit of each token for each time it is in the history.
    pub frequency_penalty: f32,
    /// How many of the last tokens, prompt included, make the history; 0 is none,
    /// `usize::MAX` is all.
    pub repeat_last_n: usize,
    /// Makes the draw reproducible.
    pub seed: Option<u64>,
    /// Added to the logits of single tokens.
    pub logit_bias: Vec<(u32, f32)>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repeat_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repeat_last_n: 64,
            seed: None,
            logit_bias: Vec::new(),
        }
    }
}

/// When a generation ends, besides the end of the context.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stopping {
    /// Most completion tokens, at least one; `None` runs to the end of the context.
    pub max_tokens: Option<usize>,
    /// Further ids that end the generation, besides the model's own.
    pub stop_token_ids: Vec<u32>,
    /// Goes on past the model's end-of-sequence ids (not past `stop_token_ids`).
    pub ignore_eos: bool,
    /// So many completion tokens are drawn among those that do not end the generation.
    pub min_tokens: usize,
}

impl Request {
    /// Whether `model` can run it.
    ///
    /// # Errors
    /// The first thing that is out of range, with what was expected.
    pub fn check(&self, model: &LoadedModel) -> Result<(), EngineError> {
        let (tokens, vocab_size) = (self.prompt.len(), model.info.vocab_size);
        if tokens == 0 {
            return Err(EngineError::EmptyPrompt);
        }
        let context_length = model.info.context_length;
        if tokens >= context_length {
            return Err(EngineError::ContextExceeded { prompt_tokens: tokens, context_length });
        }
        let pages = tokens.div_ceil(model.page_tokens);
        if pages > model.pages_max {
            let pages_max = model.pages_max;
            return Err(EngineError::OutOfPages { tokens, pages, pages_max });
        }
        let unknown = self.prompt.iter().position(|&id| id as usize >= vocab_size);
        if let Some(index) = unknown {
            let id = self.prompt[index];
            return Err(EngineError::UnknownTokenId { index, id, vocab_size });
        }
        if self.stopping.max_tokens == Some(0) {
            return Err(invalid("max_tokens", "at least 1", 0));
        }
        if let Some(count) = self.logprobs.filter(|&count| count > TOP_LOGPROBS_MAX) {
            return Err(invalid("logprobs", format!("at most {TOP_LOGPROBS_MAX}"), count));
        }
        self.cache.check(tokens)?;
        self.sampling.check(vocab_size)
    }
}

impl CacheUse {
    fn check(&self, tokens: usize) -> Result<(), EngineError> {
        let outside = |offset: &&usize| !(1..=tokens).contains(*offset);
        let all = self.restore_points.iter().chain(&self.boundaries);
        match all.into_iter().find(outside) {
            None => Ok(()),
            Some(&offset) => {
                Err(invalid("restore_points", format!("offsets from 1 to {tokens}"), offset))
            }
        }
    }
}

impl Sampling {
    fn check(&self, vocab_size: usize) -> Result<(), EngineError> {
        let finite = |x: f32| x.is_finite();
        let ranges = [
            ("temperature", self.temperature, "0 or more", self.temperature >= 0.0),
            ("top_p", self.top_p, "above 0, at most 1", self.top_p > 0.0 && self.top_p <= 1.0),
            ("min_p", self.min_p, "0 to 1", (0.0..=1.0).contains(&self.min_p)),
            ("repeat_penalty", self.repeat_penalty, "above 0", self.repeat_penalty > 0.0),
            ("presence_penalty", self.presence_penalty, "a finite number", true),
            ("frequency_penalty", self.frequency_penalty, "a finite number", true),
        ];
        for (option, value, expected, holds) in ranges {
            if !holds || !finite(value) {
                return Err(invalid(option, expected, value));
            }
        }
        for &(id, bias) in &self.logit_bias {
            if id as usize >= vocab_size {
                let expected = format!("token ids below the vocabulary size {vocab_size}");
                return Err(invalid("logit_bias", expected, id));
            }
            if !finite(bias) {
                return Err(invalid("logit_bias", "finite numbers", bias));
            }
        }
        Ok(())
    }
}

fn invalid(option: &'static str, expected: impl Into<String>, found: impl ToString) -> EngineError {
    EngineError::InvalidOption { option, expected: expected.into(), found: found.to_string() }
}
