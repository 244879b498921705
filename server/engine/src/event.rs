//! What the engine answers: a bounded stream of events for each request.

use std::time::Duration;

use sconce_cache::{Reason, Tier};

use crate::error::EngineError;

/// Something that happened to one request. The order is `Started`, any number of `Token`s, then
/// either `Finished` or `Failed`; nothing follows those. A request that ends in the queue has no
/// `Started`: it is `Failed`, or `Finished` if its caller said stop.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The request was admitted: it left the queue and holds memory.
    Started(Started),
    /// A completion token. The token that ends a generation by EOS or stop id is not sent.
    Token(Token),
    /// The generation ended in order, or was cut short by its deadline or the caller.
    Finished(Finished),
    /// The generation failed; other requests are not affected.
    Failed(EngineError),
}

/// What was known when the request was admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// Length of the prompt.
    pub prompt_tokens: usize,
    /// What the cache did for it.
    pub cache: CacheReport,
}

/// What of a prompt was remembered, and why no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheReport {
    /// Leading tokens whose state is kept.
    pub matched: usize,
    /// Leading tokens that are not computed again; at most `matched`.
    pub resumed: usize,
    /// Tokens that are: the prompt less `resumed`.
    pub recomputed: usize,
    /// The slowest tier that a part of what is resumed lay in; `None` if nothing is.
    pub tier: Option<Tier>,
    /// Why no more is resumed.
    pub reason: Reason,
    /// Index of the first token that differs from what is kept, if one does.
    pub divergence: Option<usize>,
    /// Bytes of state that were brought to the device for it; 0 of a look.
    pub restored_bytes: u64,
}

/// A completion token.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// Its logprob and the likeliest alternatives, where the request asked for them.
    pub logprobs: Option<TokenLogprobs>,
}

/// Logprobs of the raw logits, before penalties and temperature.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// Of the token that was chosen.
    pub logprob: f32,
    /// The likeliest tokens, best first.
    pub top: Vec<(u32, f32)>,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model's own end-of-sequence token.
    EndOfSequence(u32),
    /// A token of `stop_token_ids`.
    StopToken(u32),
    /// `max_tokens` or the end of the context.
    Length,
    /// The caller asked with [`Generation::stop`](crate::Generation::stop), as for a stop string.
    Stopped,
    /// The request's deadline passed.
    Deadline,
}

/// The account of a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finished {
    /// Why it ended.
    pub reason: FinishReason,
    /// What it used.
    pub usage: Usage,
    /// How long it took.
    pub timings: Timings,
}

/// Tokens, counted apart by what they cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Length of the prompt.
    pub prompt_tokens: usize,
    /// Prompt tokens that came from the cache.
    pub cached_tokens: usize,
    /// Prompt tokens that were computed.
    pub evaluated_tokens: usize,
    /// Completion tokens sent.
    pub completion_tokens: usize,
}

/// Where the time of a request went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// From arrival to admission.
    pub queue: Duration,
    /// From admission to the end of the whole prompt.
    pub prefill: Duration,
    /// From the end of the prompt to the last token.
    pub decode: Duration,
    /// From arrival to the first token; `None` if there was none.
    pub first_token: Option<Duration>,
}
