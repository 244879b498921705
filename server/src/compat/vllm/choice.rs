//! One completion of a request: from the queue to its last message.

use std::collections::VecDeque;

use sconce_engine::{FinishReason, Token, TokenLogprobs};
use sconce_proto::compat::vllm::grpc::engine::generate_complete::MatchedStop;
use sconce_proto::compat::vllm::grpc::engine::generate_response::Response;
use sconce_proto::compat::vllm::grpc::engine::{
    GenerateComplete, GenerateResponse, GenerateStreamChunk, OutputLogProbs, TopLogProbs,
};
use tokio_util::sync::CancellationToken;

use super::aborts::Registered;
use super::request::Asked;
use crate::completion::{CallContext, Completion, CompletionCall, CompletionEvent, End};
use crate::error::CallError;
use crate::grpc::convert::count;
use crate::grpc::notes;
use crate::layer::access_log::RequestFacts;
use crate::models::Models;

/// See the module.
pub(super) struct Choice {
    stage: Stage,
    abort: CancellationToken,
    facts: RequestFacts,
    index: usize,
    streams: bool,
    prompt_tokens: usize,
    cached_tokens: usize,
    completion_tokens: usize,
    /// Tokens that were not sent yet; all of them where the completion does not stream.
    ids: Vec<u32>,
    logprobs: Option<OutputLogProbs>,
    /// What is known and not told yet: at most the last chunk and the end.
    ready: VecDeque<Response>,
}

enum Stage {
    Waiting(Models, Box<(CompletionCall, CallContext)>),
    Running(Box<Completion>),
    Ended,
}

impl Choice {
    /// The completion number `index` of a request.
    pub(super) fn new(
        models: &Models,
        asked: &Asked,
        index: usize,
        context: CallContext,
        abort: &Registered,
    ) -> Self {
        let mut call = asked.call.clone();
        // Each draws its own tokens, and the same ones when the request comes again.
        call.sampling.seed = call.sampling.seed.map(|seed| seed.wrapping_add(index as u64));
        Self {
            abort: abort.token().clone(),
            facts: context.facts.clone(),
            index,
            streams: asked.stream,
            prompt_tokens: 0,
            cached_tokens: 0,
            completion_tokens: 0,
            ids: Vec::new(),
            logprobs: call.logprobs.map(|_| OutputLogProbs::default()),
            ready: VecDeque::new(),
            stage: Stage::Waiting(models.clone(), Box::new((call, context))),
        }
    }

    /// The next message, and what comes after it; an error is the last.
    pub(super) async fn next(mut self) -> Option<(Result<GenerateResponse, CallError>, Self)> {
        loop {
            if let Some(response) = self.ready.pop_front() {
                return Some((Ok(GenerateResponse { response: Some(response) }), self));
            }
            if let Err(error) = self.advance().await {
                self.stage = Stage::Ended;
                return Some((Err(error), self));
            }
            if self.ready.is_empty() && matches!(self.stage, Stage::Ended) {
                return None;
            }
        }
    }

    async fn advance(&mut self) -> Result<(), CallError> {
        let abort = self.abort.clone();
        match std::mem::replace(&mut self.stage, Stage::Ended) {
            Stage::Ended => Ok(()),
            Stage::Waiting(models, asked) => {
                let (call, context) = *asked;
                let request_id = context.request_id.clone();
                tokio::select! {
                    biased;
                    () = abort.cancelled() => self.aborted(),
                    admitted = models.complete(call, context) => {
                        let (started, completion) = admitted?;
                        self.prompt_tokens = started.prompt_tokens;
                        self.cached_tokens = started.cache.resumed;
                        notes::start(&started, &request_id, &self.facts);
                        self.stage = Stage::Running(Box::new(completion));
                    }
                }
                Ok(())
            }
            Stage::Running(mut completion) => {
                tokio::select! {
                    biased;
                    () = abort.cancelled() => self.aborted(),
                    event = completion.next() => {
                        self.stage = Stage::Running(completion);
                        match event {
                            Some(event) => self.take(event?),
                            None => self.stage = Stage::Ended,
                        }
                    }
                }
                Ok(())
            }
        }
    }

    fn take(&mut self, event: CompletionEvent) {
        let account = match event {
            CompletionEvent::Delta { token: Some(token), .. } => return self.token(token),
            CompletionEvent::Delta { token: None, .. } => return,
            CompletionEvent::Finished(account) => account,
        };
        notes::account(&account, &self.facts);
        match account.end {
            End::StopString(text) => self.end("stop", Some(MatchedStop::MatchedStopStr(text))),
            End::Engine(FinishReason::EndOfSequence(id)) => {
                self.token(Token { id, logprobs: None });
                self.end("stop", None);
            }
            End::Engine(FinishReason::StopToken(id)) => {
                self.token(Token { id, logprobs: None });
                self.end("stop", Some(MatchedStop::MatchedTokenId(id)));
            }
            End::Engine(FinishReason::Length) => self.end("length", None),
            // An error that says so follows.
            End::Engine(FinishReason::Deadline | FinishReason::Stopped) | End::Shutdown => {}
        }
    }

    fn token(&mut self, Token { id, logprobs }: Token) {
        self.completion_tokens += 1;
        self.ids.push(id);
        if let Some((all, logprobs)) = self.logprobs.as_mut().zip(logprobs) {
            append(all, id, logprobs);
        }
        if self.streams {
            let told = self.logprobs.as_mut().map(std::mem::take);
            self.ready.push_back(Response::Chunk(GenerateStreamChunk {
                completion_tokens: count(self.ids.len()),
                token_ids: std::mem::take(&mut self.ids),
                prompt_tokens: count(self.prompt_tokens),
                cached_tokens: count(self.cached_tokens),
                output_logprobs: told.filter(|told| !told.token_ids.is_empty()),
                input_logprobs: None,
                index: count(self.index),
            }));
        }
    }

    /// Another call ended it, and the engine has no account of that.
    fn aborted(&mut self) {
        let tokens = self.completion_tokens;
        self.facts.tell(|facts| {
            *facts.completion_tokens.get_or_insert(0) += tokens;
            facts.finish_reason = Some("abort");
        });
        self.end("abort", None);
    }

    fn end(&mut self, reason: &str, matched_stop: Option<MatchedStop>) {
        self.stage = Stage::Ended;
        self.ready.push_back(Response::Complete(GenerateComplete {
            output_ids: std::mem::take(&mut self.ids),
            finish_reason: reason.to_owned(),
            prompt_tokens: count(self.prompt_tokens),
            completion_tokens: count(self.completion_tokens),
            cached_tokens: count(self.cached_tokens),
            output_logprobs: self.logprobs.take().filter(|_| !self.streams),
            index: count(self.index),
            matched_stop,
            ..GenerateComplete::default()
        }));
    }
}

fn append(all: &mut OutputLogProbs, id: u32, logprobs: TokenLogprobs) {
    all.token_logprobs.push(logprobs.logprob);
    all.token_ids.push(id);
    let (token_ids, values) = logprobs.top.into_iter().unzip();
    all.top_logprobs.push(TopLogProbs { values, token_ids });
}
