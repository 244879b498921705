//! Completions: the request's fields checked into a [`CompletionCall`], and its events for the wire.

use sconce_engine::{FinishReason as EngineReason, TokenLogprobs};
use sconce_proto::v1::complete_request::{Constraint, Prompt as WirePrompt};
use sconce_proto::v1::{
    ChatPrompt, CompleteRequest, FinishReason, Finished, Sampling as WireSampling, Started,
    Timings, TokenLogprob, TokensPrompt, TopLogprob, Usage,
};
use sconce_text::{MAX_STOP_BYTES, MAX_STOPS};

use super::cache::{cache_report, cache_use};
use super::{chat, count, duration, model_name};
use crate::completion::{Account, CompletionCall, End, Prompt, SamplingOverrides};
use crate::error::CallError;

/// Most alternatives that logprobs list.
pub const LOGPROBS_MAX: usize = 20;

/// Most stop tokens of a request.
pub const STOP_TOKENS_MAX: usize = 1024;

/// Most tokens of a request with a bias.
pub const LOGIT_BIASES_MAX: usize = 4096;

/// Largest temperature.
const TEMPERATURE_MAX: f32 = 100.0;

/// Largest presence or frequency penalty, either way.
const PENALTY_MAX: f32 = 100.0;

/// Checks everything of a request that can be checked without its model.
pub fn completion(request: CompleteRequest) -> Result<CompletionCall, CallError> {
    model_name(&request.model)?;
    if !request.media.is_empty() {
        return Err(CallError::not_offered("media"));
    }
    if let Some(constraint) = &request.constraint {
        return Err(CallError::not_offered(match constraint {
            Constraint::JsonSchema(_) => "json_schema",
            Constraint::Regex(_) => "regex",
            Constraint::Grammar(_) => "grammar",
            Constraint::Choice(_) => "choice",
        }));
    }
    check_stops(&request.stop, &request.stop_token_ids)?;
    Ok(CompletionCall {
        model: request.model,
        prompt: prompt(request.prompt.map(|prompt| match prompt {
            WirePrompt::Text(text) => Given::Text(text),
            WirePrompt::Tokens(tokens) => Given::Tokens(tokens),
            WirePrompt::Chat(chat) => Given::Chat(chat),
        }))?,
        sampling: sampling(request.sampling.unwrap_or_default())?,
        max_tokens: max_tokens(request.max_tokens)?,
        stop: request.stop,
        stop_token_ids: request.stop_token_ids,
        ignore_eos: request.ignore_eos,
        min_tokens: 0,
        show_special: false,
        logprobs: logprobs_asked(request.logprobs)?,
        priority: request.priority,
        cache: cache_use(request.cache.unwrap_or_default())?,
    })
}

/// A prompt on the wire; each request that has one spells this as a type of its own.
pub(super) enum Given {
    /// Plain text.
    Text(String),
    /// Token ids.
    Tokens(TokensPrompt),
    /// A conversation.
    Chat(ChatPrompt),
}

/// Checks a prompt.
pub(super) fn prompt(prompt: Option<Given>) -> Result<Prompt, CallError> {
    match prompt {
        None => {
            let problem = "expected one of `text`, `tokens` and `chat`, found none";
            Err(CallError::field("prompt", problem))
        }
        Some(Given::Text(text)) if text.is_empty() => {
            Err(CallError::field("text", "expected a prompt, found an empty text"))
        }
        Some(Given::Text(text)) => Ok(Prompt::Text(text)),
        Some(Given::Tokens(tokens)) if tokens.ids.is_empty() => {
            Err(CallError::field("tokens.ids", "expected at least one token, found none"))
        }
        Some(Given::Tokens(tokens)) => Ok(Prompt::Tokens(tokens.ids)),
        Some(Given::Chat(prompt)) => Ok(Prompt::Chat(chat(prompt, "chat")?)),
    }
}

fn check_stops(strings: &[String], tokens: &[u32]) -> Result<(), CallError> {
    at_most("stop", strings.len(), MAX_STOPS)?;
    at_most("stop_token_ids", tokens.len(), STOP_TOKENS_MAX)?;
    for (i, string) in strings.iter().enumerate() {
        if !(1..=MAX_STOP_BYTES).contains(&string.len()) {
            let problem = format!("expected 1 to {MAX_STOP_BYTES} bytes, found {}", string.len());
            return Err(CallError::field(format!("stop[{i}]"), problem));
        }
    }
    Ok(())
}

fn at_most(field: &str, found: usize, max: usize) -> Result<(), CallError> {
    if found <= max {
        return Ok(());
    }
    Err(CallError::field(field, format!("expected at most {max} entries, found {found}")))
}

fn max_tokens(max_tokens: Option<u32>) -> Result<Option<usize>, CallError> {
    match max_tokens {
        Some(0) => Err(CallError::field("max_tokens", "expected at least 1, found 0")),
        max_tokens => Ok(max_tokens.map(|n| n as usize)),
    }
}

fn logprobs_asked(logprobs: Option<u32>) -> Result<Option<usize>, CallError> {
    let logprobs = logprobs.map(|n| n as usize);
    if let Some(found) = logprobs.filter(|&n| n > LOGPROBS_MAX) {
        let problem = format!("expected 0 to {LOGPROBS_MAX}, found {found}");
        return Err(CallError::field("logprobs", problem));
    }
    Ok(logprobs)
}

fn sampling(wire: WireSampling) -> Result<SamplingOverrides, CallError> {
    let number = |name: &str, value: Option<f32>, expected: &str, holds: fn(f32) -> bool| {
        match value {
            // A NaN fails every comparison.
            Some(found) if !holds(found) => {
                let problem = format!("expected {expected}, found {found}");
                Err(CallError::field(format!("sampling.{name}"), problem))
            }
            value => Ok(value),
        }
    };
    let penalty = |name: &str, value| {
        number(name, value, "-100 to 100", |x| (-PENALTY_MAX..=PENALTY_MAX).contains(&x))
    };
    Ok(SamplingOverrides {
        temperature: number("temperature", wire.temperature, "0 to 100", |x| {
            (0.0..=TEMPERATURE_MAX).contains(&x)
        })?,
        top_p: number("top_p", wire.top_p, "above 0, at most 1", |x| x > 0.0 && x <= 1.0)?,
        top_k: wire.top_k.map(|k| k as usize),
        min_p: number("min_p", wire.min_p, "0 to 1", |x| (0.0..=1.0).contains(&x))?,
        repeat_penalty: number(
            "repeat_penalty",
            wire.repeat_penalty,
            "a finite number above 0",
            |x| x > 0.0 && x.is_finite(),
        )?,
        presence_penalty: penalty("presence_penalty", wire.presence_penalty)?,
        frequency_penalty: penalty("frequency_penalty", wire.frequency_penalty)?,
        repeat_last_n: wire.repeat_last_n.map(repeat_last_n).transpose()?,
        seed: wire.seed,
        logit_bias: logit_bias(wire.logit_bias)?,
    })
}

fn repeat_last_n(found: i32) -> Result<usize, CallError> {
    match found {
        -1 => Ok(usize::MAX),
        // Not negative, so it fits.
        0.. => Ok(found as usize),
        _ => {
            let problem = format!("expected -1 or more, found {found}");
            Err(CallError::field("sampling.repeat_last_n", problem))
        }
    }
}

fn logit_bias(wire: std::collections::HashMap<u32, f32>) -> Result<Vec<(u32, f32)>, CallError> {
    at_most("sampling.logit_bias", wire.len(), LOGIT_BIASES_MAX)?;
    let mut biases: Vec<_> = wire.into_iter().collect();
    biases.sort_unstable_by_key(|&(id, _)| id);
    if let Some((id, bias)) = biases.iter().find(|(_, bias)| !bias.is_finite()) {
        let problem = format!("expected a finite bias, found {bias}");
        return Err(CallError::field(format!("sampling.logit_bias[{id}]"), problem));
    }
    Ok(biases)
}

/// The first message of a stream.
pub fn started(started: &sconce_engine::Started) -> Started {
    Started {
        prompt_tokens: count(started.prompt_tokens),
        cache: Some(cache_report(&started.cache)),
    }
}

/// The logprobs of one completion token.
pub fn logprobs(token_id: u32, logprobs: TokenLogprobs) -> TokenLogprob {
    let top = logprobs.top.into_iter();
    TokenLogprob {
        token_id,
        logprob: logprobs.logprob,
        top: top.map(|(token_id, logprob)| TopLogprob { token_id, logprob }).collect(),
    }
}

/// The last message of a stream.
pub fn finished(account: Account) -> Finished {
    let (usage, timings) = (account.usage, account.timings);
    let (reason, stop_token_id, matched_stop) = match account.end {
        End::StopString(text) => (FinishReason::Stop, None, Some(text)),
        End::Engine(EngineReason::EndOfSequence(id) | EngineReason::StopToken(id)) => {
            (FinishReason::Stop, Some(id), None)
        }
        End::Engine(EngineReason::Length) => (FinishReason::Length, None, None),
        End::Engine(EngineReason::Deadline) => (FinishReason::Deadline, None, None),
        // The pipeline stops a generation for a stop string or because the server shuts down.
        End::Engine(EngineReason::Stopped) | End::Shutdown => (FinishReason::Shutdown, None, None),
    };
    Finished {
        reason: reason.into(),
        matched_stop,
        stop_token_id,
        usage: Some(Usage {
            prompt_tokens: count(usage.prompt_tokens),
            cached_tokens: count(usage.cached_tokens),
            completion_tokens: count(usage.completion_tokens),
        }),
        timings: Some(Timings {
            queue: Some(duration(timings.queue)),
            prefill: Some(duration(timings.prefill)),
            decode: Some(duration(timings.decode)),
            first_token: timings.first_token.map(duration),
        }),
    }
}
