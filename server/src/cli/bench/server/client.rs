//! One request, and everything about it that a load test wants to know.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sconce_proto::v1::complete_request::Prompt;
use sconce_proto::v1::complete_response::Event;
use sconce_proto::v1::inference_service_client::InferenceServiceClient;
use sconce_proto::v1::model_service_client::ModelServiceClient;
use sconce_proto::v1::{
    CompleteRequest, FinishReason, ListModelsRequest, ModelInfo, Sampling, TokenizeRequest,
    TokensPrompt, tokenize_request,
};
use tonic::{Code, Request, Status};

use crate::cli::credentials::Connection;
use crate::cli::error::CliError;
use crate::cli::target::{RESPONSE_BYTES_MAX, Session};

/// Most connections.
pub(crate) const CONNECTIONS_MAX: usize = 64;
/// Requests that a connection has room for, as the server's own default; more would wait in the client.
const STREAMS_PER_CONNECTION: usize = 256;

/// What is asked.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    /// Tokens of the prompt.
    pub(crate) prompt: Vec<u32>,
    /// Tokens of the completion, whatever the model thinks of its end.
    pub(crate) completion: u32,
    /// Hangs up after so many tokens.
    pub(crate) hang_up_after: Option<usize>,
    /// The deadline that is sent.
    pub(crate) deadline: Option<Duration>,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// With all its tokens.
    Done,
    /// The caller hung up.
    HungUp,
    /// The server answered so.
    Failed(Code),
}

/// What came of a request. Times are from the moment that was planned for it.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    /// When it was planned, from the beginning of the run.
    pub(crate) planned: Duration,
    /// How late it was sent.
    pub(crate) late: Duration,
    /// How it ended.
    pub(crate) outcome: Outcome,
    /// Of a failure: what the server said.
    pub(crate) message: String,
    /// Until the first token.
    pub(crate) first: Option<Duration>,
    /// Between one message with tokens and the next, for each token of the later one.
    pub(crate) gaps: Vec<Duration>,
    /// Until the end.
    pub(crate) end: Duration,
    /// How long it waited for its turn, by the server's account.
    pub(crate) queue: Option<Duration>,
    /// Tokens of the prompt.
    pub(crate) prompt_tokens: usize,
    /// Tokens of the prompt that did not have to be computed, by the server's account.
    pub(crate) cached_tokens: usize,
    /// The prompt and what was answered, for the conversation to go on; empty unless done.
    pub(crate) conversation: Vec<u32>,
    /// Tokens that were answered.
    pub(crate) completion_tokens: usize,
}

/// Connections to one model of one server.
#[derive(Debug)]
pub(crate) struct Clients {
    channels: Vec<Connection>,
    model: String,
    next: AtomicUsize,
}

impl Clients {
    /// As many connections as asked for.
    ///
    /// # Errors
    /// A number out of bounds, or a server that takes no more connections.
    pub(crate) async fn open(session: &Session, connections: usize) -> Result<Self, CliError> {
        if !(1..=CONNECTIONS_MAX).contains(&connections) {
            return Err(CliError::Usage(format!(
                "--connections: expected 1 to {CONNECTIONS_MAX}, found {connections}"
            )));
        }
        let mut channels = vec![session.channel.clone()];
        while channels.len() < connections {
            channels.push(session.connect_again().await?);
        }
        Ok(Self::new(channels, &session.model))
    }

    /// Clients of the model `model` on these connections, of which there is at least one.
    pub(crate) fn new(channels: Vec<Connection>, model: &str) -> Self {
        Self { channels, model: model.to_owned(), next: AtomicUsize::new(0) }
    }

    /// The same connections once more.
    pub(crate) fn share(&self) -> Self {
        Self::new(self.channels.clone(), &self.model)
    }

    /// Requests that are open together at most.
    pub(crate) fn open_max(&self) -> usize {
        self.channels.len() * STREAMS_PER_CONNECTION
    }

    /// The next connection in turn.
    pub(crate) fn channel(&self) -> Connection {
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        self.channels[index % self.channels.len()].clone()
    }

    /// What the server says of the model.
    ///
    /// # Errors
    /// A server that does not answer, or does not have it.
    pub(crate) async fn model(&self) -> Result<ModelInfo, CliError> {
        let mut client = ModelServiceClient::new(self.channel());
        let models = client.list_models(ListModelsRequest {}).await?.into_inner().models;
        let found = models.into_iter().find(|model| model.model == self.model);
        found.ok_or_else(|| {
            CliError::Unavailable(format!("the server has no model `{}`", self.model))
        })
    }

    /// The tokens of `text`.
    ///
    /// # Errors
    /// A server that cannot tell.
    pub(crate) async fn tokenize(&self, text: String) -> Result<Vec<u32>, CliError> {
        let request = TokenizeRequest {
            model: self.model.clone(),
            prompt: Some(tokenize_request::Prompt::Text(text)),
            add_special_tokens: Some(false),
        };
        let mut client = InferenceServiceClient::new(self.channel())
            .max_decoding_message_size(RESPONSE_BYTES_MAX);
        Ok(client.tokenize(request).await?.into_inner().token_ids)
    }

    /// Asks, and reads the answer to its end. `planned` is when, from `began` on.
    pub(crate) async fn ask(&self, ask: Ask, planned: Duration, began: Instant) -> Sample {
        let at = began + planned;
        let mut sample = Sample {
            planned,
            late: at.elapsed(),
            outcome: Outcome::Done,
            message: String::new(),
            first: None,
            gaps: Vec::new(),
            end: Duration::ZERO,
            queue: None,
            prompt_tokens: ask.prompt.len(),
            cached_tokens: 0,
            conversation: Vec::new(),
            completion_tokens: 0,
        };
        let mut answer = Vec::new();
        match self.follow(&ask, at, &mut sample, &mut answer).await {
            Ok(outcome) => sample.outcome = outcome,
            Err(status) => {
                sample.outcome = Outcome::Failed(status.code());
                sample.message = status.message().to_owned();
            }
        }
        sample.end = at.elapsed();
        sample.completion_tokens = answer.len();
        if sample.outcome == Outcome::Done {
            sample.conversation = [ask.prompt, answer].concat();
        }
        sample
    }

    async fn follow(
        &self,
        ask: &Ask,
        at: Instant,
        sample: &mut Sample,
        answer: &mut Vec<u32>,
    ) -> Result<Outcome, Status> {
        let mut request = Request::new(CompleteRequest {
            model: self.model.clone(),
            prompt: Some(Prompt::Tokens(TokensPrompt { ids: ask.prompt.clone() })),
            sampling: Some(Sampling { temperature: Some(0.0), ..Sampling::default() }),
            max_tokens: Some(ask.completion),
            ignore_eos: true,
            ..CompleteRequest::default()
        });
        if let Some(deadline) = ask.deadline {
            request.set_timeout(deadline);
        }
        let mut client = InferenceServiceClient::new(self.channel())
            .max_decoding_message_size(RESPONSE_BYTES_MAX);
        let mut stream = client.complete(request).await?.into_inner();
        let mut last = None;
        let mut reason = FinishReason::Unspecified;
        while let Some(message) = stream.message().await? {
            match message.event {
                Some(Event::Delta(delta)) if !delta.token_ids.is_empty() => {
                    let now = at.elapsed();
                    match last.replace(now) {
                        None => sample.first = Some(now),
                        Some(before) => {
                            let tokens = delta.token_ids.len();
                            let gap = now.saturating_sub(before) / tokens as u32;
                            sample.gaps.extend(std::iter::repeat_n(gap, tokens));
                        }
                    }
                    answer.extend_from_slice(&delta.token_ids);
                    if ask.hang_up_after.is_some_and(|tokens| answer.len() >= tokens) {
                        return Ok(Outcome::HungUp);
                    }
                }
                Some(Event::Finished(finished)) => {
                    let usage = finished.usage.unwrap_or_default();
                    sample.cached_tokens = usage.cached_tokens as usize;
                    let queue = finished.timings.and_then(|timings| timings.queue);
                    sample.queue = queue.and_then(|queue| queue.try_into().ok());
                    reason = finished.reason();
                }
                _ => {}
            }
        }
        Ok(match reason {
            FinishReason::Length | FinishReason::Stop => Outcome::Done,
            FinishReason::Deadline => Outcome::Failed(Code::DeadlineExceeded),
            _ => Outcome::Failed(Code::Unavailable),
        })
    }
}
