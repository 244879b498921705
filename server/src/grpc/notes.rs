//! What a completion leaves on its way for the access log, for traces, and for a log that shows prompts;
//! the same by every protocol.

use std::time::Instant;

use sconce_engine::Started;

use super::convert;
use crate::completion::{Account, CompletionCall, Prompt};
use crate::layer::access_log::{Asked, RequestFacts};

/// Target of log lines with prompts. The binary shuts it unless `telemetry.log_prompts` asks for it.
pub const PROMPTS_TARGET: &str = "sconce::prompts";

/// Most bytes of a prompt in such a line.
pub const PROMPT_BYTES_LOGGED_MAX: usize = 2048;

/// Leaves what is asked for the access log, and the prompt for a log that shows prompts.
pub(crate) fn call(call: &CompletionCall, request_id: &str, facts: &RequestFacts) {
    let operation = match call.prompt {
        Prompt::Chat(_) => "chat",
        Prompt::Text(_) | Prompt::Tokens(_) => "text_completion",
    };
    facts.tell(|facts| {
        facts.model = Some(call.model.clone());
        facts.priority = Some(call.priority).filter(|&priority| priority != 0);
        facts.asked = Some(Asked {
            operation,
            max_tokens: call.max_tokens,
            temperature: call.sampling.temperature,
            top_p: call.sampling.top_p,
            top_k: call.sampling.top_k,
        });
    });
    tracing::debug!(
        target: PROMPTS_TARGET,
        request_id,
        prompt = %call.prompt.excerpt(PROMPT_BYTES_LOGGED_MAX),
        "prompt"
    );
}

/// Leaves what was remembered of a prompt for the access log, and for whoever traces the request.
pub(crate) fn start(started: &Started, request_id: &str, facts: &RequestFacts) {
    let Started { prompt_tokens, cache } = started;
    let reason = convert::reason_name(cache.reason);
    facts.tell(|facts| {
        facts.prompt_tokens = Some(*prompt_tokens);
        if let Some(phases) = &mut facts.phases {
            phases.admitted = Some(Instant::now());
        }
        facts.tell_cache(cache, reason);
    });
    tracing::debug!(
        request_id,
        prompt_tokens,
        matched_tokens = cache.matched,
        resumed_tokens = cache.resumed,
        recomputed_tokens = cache.recomputed,
        tier = cache.tier.map(tracing::field::display),
        reason,
        divergence_index = cache.divergence,
        "prefix cache"
    );
}

/// Leaves the account of a completion for the access log, and for whoever traces the request. Of several
/// completions of one request it is the last one's account, with the tokens of all.
pub(crate) fn account(account: &Account, facts: &RequestFacts) {
    facts.tell(|facts| {
        facts.cached_tokens = Some(account.usage.cached_tokens);
        *facts.completion_tokens.get_or_insert(0) += account.usage.completion_tokens;
        facts.first_token = account.timings.first_token;
        facts.finish_reason = Some(account.end.name());
        facts.timings = Some(account.timings);
    });
}
