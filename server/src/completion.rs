//! A completion as the domain sees it: prompt to tokens, through the engine, tokens to text, until
//! something stops it. What it looks like on a wire is `grpc::convert`'s subject.

use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::time::{Duration, Instant};

use sconce_engine::{
    CacheUse, Event, FinishReason, Finished, Generation, Request, Sampling, Started, Stopping,
    Timings, Token, TraceMark, Usage,
};
use sconce_text::{Detokenizer, StopMatcher};
use serde_json::{Map, Value};
use tokio::time::timeout_at;
use tokio_util::sync::CancellationToken;

use crate::caller::Caller;
use crate::error::CallError;
use crate::layer::access_log::RequestFacts;
use crate::models::EncodedPrompt;

/// How long after the deadline, or after being cut off, the engine may take to give its account;
/// then the account is made from what was seen. A step of the engine can take longer than that.
const ACCOUNT_PATIENCE: Duration = Duration::from_millis(250);

/// What is asked, with every field in its range; what depends on the model is not checked yet.
#[derive(Debug, Clone, PartialEq)]
pub struct CompletionCall {
    /// Name of the model.
    pub model: String,
    /// What to complete.
    pub prompt: Prompt,
    /// How tokens are drawn, where it is not left to the model's defaults.
    pub sampling: SamplingOverrides,
    /// Most completion tokens.
    pub max_tokens: Option<usize>,
    /// Strings that end the completion, none of them empty.
    pub stop: Vec<String>,
    /// Tokens that end the completion.
    pub stop_token_ids: Vec<u32>,
    /// Goes on past the model's own end.
    pub ignore_eos: bool,
    /// Nothing but `max_tokens` ends the completion before it has so many tokens.
    pub min_tokens: usize,
    /// Whether special tokens are part of the text, for stop strings that name them.
    pub show_special: bool,
    /// How many alternatives each token's logprobs list; `None` for no logprobs.
    pub logprobs: Option<usize>,
    /// Larger runs first.
    pub priority: i32,
    /// How the prefix cache takes part; the boundaries of messages are not known yet.
    pub cache: CacheUse,
}

/// A prompt in one of its forms.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// Text.
    Text(String),
    /// Token ids, taken as they are.
    Tokens(Vec<u32>),
    /// A conversation for the model's chat template.
    Chat(ChatCall),
}

impl Prompt {
    /// The request's field it came in, for errors.
    pub fn field(&self) -> &'static str {
        match self {
            Self::Text(_) => "text",
            Self::Tokens(_) => "tokens",
            Self::Chat(_) => "chat",
        }
    }

    /// The beginning of it, at most so many bytes, for logs that show prompts.
    pub fn excerpt(&self, bytes_max: usize) -> String {
        let mut excerpt = Excerpt { text: String::new(), bytes_max };
        // It fails where there is no more room, which is how it ends.
        let _ = match self {
            Self::Text(text) => excerpt.write_str(text),
            Self::Tokens(ids) => write!(excerpt, "{ids:?}"),
            Self::Chat(chat) => chat.messages.iter().try_for_each(|one| writeln!(excerpt, "{one}")),
        };
        excerpt.text
    }
}

/// Takes text as far as there is room.
struct Excerpt {
    text: String,
    bytes_max: usize,
}

impl fmt::Write for Excerpt {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.bytes_max - self.text.len();
        self.text.push_str(&text[..text.floor_char_boundary(room)]);
        if text.len() <= room { Ok(()) } else { Err(fmt::Error) }
    }
}

/// A conversation in the form chat templates see.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatCall {
    /// JSON objects with `role`, `content` and what else was given.
    pub messages: Vec<Value>,
    /// JSON objects, one for each tool.
    pub tools: Vec<Value>,
    /// Further variables.
    pub kwargs: Map<String, Value>,
    /// Whether the template opens the assistant's turn.
    pub add_generation_prompt: bool,
}

impl ChatCall {
    /// Bytes of what the messages say.
    pub fn content_bytes(&self) -> usize {
        let contents = self.messages.iter().filter_map(|message| message.get("content")?.as_str());
        contents.map(str::len).sum()
    }
}

/// Sampling as asked; unset fields are the model's defaults.
#[derive(Debug, Clone, Default, PartialEq)]
#[expect(missing_docs, reason = "the fields are those of `sconce_engine::Sampling`")]
pub struct SamplingOverrides {
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<usize>,
    pub min_p: Option<f32>,
    pub repeat_penalty: Option<f32>,
    pub presence_penalty: Option<f32>,
    pub frequency_penalty: Option<f32>,
    pub repeat_last_n: Option<usize>,
    pub seed: Option<u64>,
    pub logit_bias: Vec<(u32, f32)>,
}

impl SamplingOverrides {
    /// The sampling of a request to a model with `defaults`.
    pub fn over(self, defaults: &Sampling) -> Sampling {
        Sampling {
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            min_p: self.min_p.unwrap_or(defaults.min_p),
            repeat_penalty: self.repeat_penalty.unwrap_or(defaults.repeat_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(defaults.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(defaults.frequency_penalty),
            repeat_last_n: self.repeat_last_n.unwrap_or(defaults.repeat_last_n),
            seed: self.seed,
            logit_bias: self.logit_bias,
        }
    }
}

/// Whose call it is and how long it may take.
#[derive(Debug, Clone)]
pub struct CallContext {
    /// For logs.
    pub request_id: String,
    /// Who calls.
    pub caller: Caller,
    /// For logs and traces.
    pub facts: RequestFacts,
    /// Its span, if it has one that is kept.
    pub trace: Option<TraceMark>,
    /// When the caller stops waiting.
    pub deadline: Instant,
    /// When the call arrived.
    pub arrived: Instant,
}

/// Something a completion says.
#[derive(Debug, Clone, PartialEq)]
pub enum CompletionEvent {
    /// New tokens and the text that is certain by now.
    Delta {
        /// Complete UTF-8; may be empty.
        text: String,
        /// The new token; `None` where only text was held back.
        token: Option<Token>,
    },
    /// The account; the last event, but for an error that says why it ended early.
    Finished(Account),
}

/// How a completion ended and what it took.
#[derive(Debug, Clone, PartialEq)]
pub struct Account {
    /// Why it ended.
    pub end: End,
    /// Tokens.
    pub usage: Usage,
    /// Times.
    pub timings: Timings,
}

/// Why a completion ended.
#[derive(Debug, Clone, PartialEq)]
pub enum End {
    /// This stop string appeared.
    StopString(String),
    /// The engine's own reason.
    Engine(FinishReason),
    /// The server shuts down and could not wait for the end.
    Shutdown,
}

impl End {
    /// Its name in logs and traces.
    pub fn name(&self) -> &'static str {
        match self {
            Self::StopString(_)
            | Self::Engine(FinishReason::EndOfSequence(_) | FinishReason::StopToken(_)) => "stop",
            Self::Engine(FinishReason::Length) => "length",
            Self::Engine(FinishReason::Deadline) => "deadline",
            Self::Engine(FinishReason::Stopped) | Self::Shutdown => "shutdown",
        }
    }
}

/// The request for the engine.
pub fn engine_request(
    call: CompletionCall,
    prompt: EncodedPrompt,
    defaults: &Sampling,
    context: &CallContext,
) -> Request {
    Request {
        model: call.model,
        request_id: context.request_id.clone(),
        cache: cache_use(call.cache, prompt.boundaries),
        prompt: prompt.ids,
        sampling: call.sampling.over(defaults),
        stopping: Stopping {
            max_tokens: call.max_tokens,
            stop_token_ids: call.stop_token_ids,
            ignore_eos: call.ignore_eos,
            min_tokens: call.min_tokens,
        },
        logprobs: call.logprobs,
        priority: call.priority,
        deadline: Some(context.deadline),
        arrived: context.arrived,
        trace: context.trace,
    }
}

/// How the cache takes part, once the tokens are known.
pub fn cache_use(asked: CacheUse, boundaries: Vec<usize>) -> CacheUse {
    let mut restore_points = asked.restore_points;
    restore_points.sort_unstable();
    restore_points.dedup();
    CacheUse { restore_points, boundaries, ..asked }
}

/// What turns a completion's tokens into the text to show.
#[derive(Debug)]
pub struct Output {
    /// `None` for a model without a tokenizer, whose completions have no text.
    pub detokenizer: Option<Detokenizer>,
    /// What ends the text.
    pub stops: StopMatcher,
    /// How many more tokens are no part of what may end it.
    pub endless_tokens: usize,
}

impl Output {
    /// The text that is certain with this token.
    fn push(&mut self, id: u32) -> String {
        let text = self.detokenizer.as_mut().map(|detokenizer| detokenizer.push(id));
        let text = text.unwrap_or_default();
        if self.endless_tokens > 0 {
            self.endless_tokens -= 1;
            return text;
        }
        self.stops.push(&text)
    }

    /// The text that was held back for the rest of a character or of a stop string.
    fn finish(&mut self) -> String {
        let rest = self.detokenizer.as_mut().map(Detokenizer::finish);
        let mut text = self.stops.push(&rest.unwrap_or_default());
        text.push_str(&self.stops.finish());
        text
    }
}

/// A completion that was admitted. Dropping it cancels it.
#[derive(Debug)]
pub struct Completion {
    /// `None` once nothing more is expected of the engine.
    generation: Option<Generation>,
    output: Output,
    clock: AccountClock,
    deadline: Instant,
    cut_off: CancellationToken,
    /// What is known and not told yet; at most the last text, the account and an error.
    ready: VecDeque<Result<CompletionEvent, CallError>>,
}

/// Waits until the engine admitted `generation`.
///
/// # Errors
/// Whatever ended it before: its deadline, a shutdown, a lack of memory.
pub async fn admitted(
    generation: &mut Generation,
    deadline: Instant,
    cut_off: &CancellationToken,
) -> Result<Started, CallError> {
    // The engine ends what is past its deadline by itself; this is for when it is in a long step.
    let patience = (deadline + ACCOUNT_PATIENCE).into();
    let event = tokio::select! {
        event = timeout_at(patience, generation.next()) => event,
        () = cut_off.cancelled() => return Err(CallError::Draining),
    };
    match event {
        Ok(Some(Event::Started(started))) => Ok(started),
        Ok(Some(Event::Failed(error))) => Err(error.into()),
        Ok(Some(Event::Finished(_))) | Err(_) => {
            Err(CallError::DeadlineExceeded { place: "in the queue" })
        }
        Ok(Some(Event::Token(_)) | None) => {
            Err(CallError::Internal { problem: "the engine answered out of order".into() })
        }
    }
}

impl Completion {
    /// A completion from the engine's tokens on, after [`admitted`].
    pub fn new(
        generation: Generation,
        started: Started,
        output: Output,
        context: &CallContext,
        cut_off: CancellationToken,
    ) -> Self {
        Self {
            generation: Some(generation),
            output,
            clock: AccountClock::new(started, context.arrived),
            deadline: context.deadline,
            cut_off,
            ready: VecDeque::new(),
        }
    }

    /// The next event; `None` after the last. An error is the last.
    ///
    /// May be dropped before it is ready; no event is lost.
    pub async fn next(&mut self) -> Option<Result<CompletionEvent, CallError>> {
        while self.ready.is_empty() {
            let generation = self.generation.as_mut()?;
            let patience = (self.deadline + ACCOUNT_PATIENCE).into();
            tokio::select! {
                biased;
                () = self.cut_off.cancelled() => self.shut_down().await,
                event = timeout_at(patience, generation.next()) => match event {
                    Ok(event) => self.take(event),
                    Err(_) => {
                        let finished = self.clock.finished(FinishReason::Deadline);
                        self.finish(finished);
                    }
                },
            }
        }
        self.ready.pop_front()
    }

    fn take(&mut self, event: Option<Event>) {
        match event {
            Some(Event::Token(token)) => self.token(token),
            Some(Event::Finished(finished)) => self.finish(finished),
            Some(Event::Failed(error)) => self.fail(error.into()),
            Some(Event::Started(_)) | None => {
                self.fail(CallError::Internal {
                    problem: "the engine answered out of order".into(),
                });
            }
        }
    }

    fn token(&mut self, token: Token) {
        self.clock.token();
        let text = self.output.push(token.id);
        if self.output.stops.matched().is_some()
            && let Some(generation) = self.generation.as_mut()
        {
            generation.stop();
        }
        self.ready.push_back(Ok(CompletionEvent::Delta { text, token: Some(token) }));
    }

    /// Tells the text held back, the account, and the error if it ended early.
    fn finish(&mut self, finished: Finished) {
        self.generation = None;
        let text = self.output.finish();
        if !text.is_empty() {
            self.ready.push_back(Ok(CompletionEvent::Delta { text, token: None }));
        }
        let end = match self.output.stops.matched_stop() {
            Some(stop) => End::StopString(stop.to_owned()),
            None if finished.reason == FinishReason::Stopped => End::Shutdown,
            None => End::Engine(finished.reason),
        };
        let error = match end {
            End::Engine(FinishReason::Deadline) => {
                Some(CallError::DeadlineExceeded { place: "while the completion was generated" })
            }
            End::Shutdown => Some(CallError::Draining),
            _ => None,
        };
        let account = Account { end, usage: finished.usage, timings: finished.timings };
        self.ready.push_back(Ok(CompletionEvent::Finished(account)));
        self.ready.extend(error.map(Err));
    }

    fn fail(&mut self, error: CallError) {
        self.generation = None;
        self.ready.push_back(Err(error));
    }

    async fn shut_down(&mut self) {
        let Some(generation) = self.generation.as_mut() else { return };
        generation.stop();
        let account = async {
            loop {
                match generation.next().await {
                    Some(Event::Finished(finished)) => break Some(finished),
                    Some(Event::Failed(_)) | None => break None,
                    Some(_) => {}
                }
            }
        };
        let finished = tokio::time::timeout(ACCOUNT_PATIENCE, account).await.ok().flatten();
        let finished = finished.unwrap_or_else(|| self.clock.finished(FinishReason::Stopped));
        self.finish(finished);
    }
}

/// Keeps the times and counts of an account at the edge, for when the engine's does not come.
#[derive(Debug)]
struct AccountClock {
    started: Started,
    arrived: Instant,
    admitted: Instant,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    completion_tokens: usize,
}

impl AccountClock {
    fn new(started: Started, arrived: Instant) -> Self {
        Self {
            started,
            arrived,
            admitted: Instant::now(),
            first_token: None,
            last_token: None,
            completion_tokens: 0,
        }
    }

    fn token(&mut self) {
        let now = Instant::now();
        self.completion_tokens += 1;
        self.first_token.get_or_insert(now);
        self.last_token = Some(now);
    }

    fn finished(&self, reason: FinishReason) -> Finished {
        let Started { prompt_tokens, cache } = self.started;
        let first = self.first_token.unwrap_or_else(Instant::now);
        Finished {
            reason,
            usage: Usage {
                prompt_tokens,
                cached_tokens: cache.resumed,
                evaluated_tokens: cache.recomputed,
                completion_tokens: self.completion_tokens,
            },
            timings: Timings {
                queue: self.admitted - self.arrived,
                prefill: first - self.admitted,
                decode: self.last_token.map_or(Duration::ZERO, |last| last - first),
                first_token: self.first_token.map(|first| first - self.arrived),
            },
        }
    }
}
