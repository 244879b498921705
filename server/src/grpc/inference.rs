//! `sconce.v1.InferenceService`: each RPC decodes, asks [`Models`], encodes.

use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, StreamExt as _, stream};
use sconce_proto::v1::complete_response::Event;
use sconce_proto::v1::inference_service_server::InferenceService;
use sconce_proto::v1::tokenize_request::Prompt as TokenizePrompt;
use sconce_proto::v1::{
    CompleteRequest, CompleteResponse, Delta, DetokenizeRequest, DetokenizeResponse,
    TokenizeRequest, TokenizeResponse,
};
use tokio::time::timeout;
use tonic::{Request, Response, Status};

use super::{call_context, convert, notes};
use crate::completion::{CompletionEvent, Prompt};
use crate::error::CallError;
use crate::layer::access_log::RequestFacts;
use crate::models::Models;

/// How long `started` waits for the first token, to travel with it. After a short prompt both come in
/// one write: the client wakes once, and not while every core computes its first token.
const STARTED_PATIENCE: Duration = Duration::from_millis(50);

/// See the module.
#[derive(Debug, Clone)]
pub struct Inference {
    models: Models,
}

impl Inference {
    /// A service on `models`.
    pub fn new(models: Models) -> Self {
        Self { models }
    }
}

type CompleteStream = Pin<Box<dyn Stream<Item = Result<CompleteResponse, Status>> + Send>>;

#[tonic::async_trait]
impl InferenceService for Inference {
    async fn tokenize(
        &self,
        request: Request<TokenizeRequest>,
    ) -> Result<Response<TokenizeResponse>, Status> {
        let facts = RequestFacts::of(request.extensions());
        let request = request.into_inner();
        convert::model_name(&request.model)?;
        facts.tell(|facts| facts.model = Some(request.model.clone()));
        let prompt = match request.prompt {
            Some(TokenizePrompt::Text(text)) => Prompt::Text(text),
            Some(TokenizePrompt::Chat(chat)) => Prompt::Chat(convert::chat(chat, "chat")?),
            None => {
                let problem = "expected one of `text` and `chat`, found none";
                return Err(CallError::field("prompt", problem).into());
            }
        };
        let model = self.models.ready(&request.model).await?;
        let prompt = model.encode(prompt, request.add_special_tokens).await?;
        let (token_ids, pieces) = model.pieces(prompt.ids).await?;
        facts.tell(|facts| facts.prompt_tokens = Some(token_ids.len()));
        Ok(Response::new(TokenizeResponse { token_ids, pieces }))
    }

    async fn detokenize(
        &self,
        request: Request<DetokenizeRequest>,
    ) -> Result<Response<DetokenizeResponse>, Status> {
        let facts = RequestFacts::of(request.extensions());
        let request = request.into_inner();
        convert::model_name(&request.model)?;
        facts.tell(|facts| {
            facts.model = Some(request.model.clone());
            facts.prompt_tokens = Some(request.token_ids.len());
        });
        let model = self.models.ready(&request.model).await?;
        let skip_special = request.skip_special_tokens.unwrap_or(false);
        let text = model.decode(request.token_ids, skip_special).await?;
        Ok(Response::new(DetokenizeResponse { text }))
    }

    type CompleteStream = CompleteStream;

    async fn complete(
        &self,
        request: Request<CompleteRequest>,
    ) -> Result<Response<CompleteStream>, Status> {
        let context = call_context(&request)?;
        let facts = RequestFacts::of(request.extensions());
        let call = convert::completion(request.into_inner())?;
        notes::call(&call, &context.request_id, &facts);
        let request_id = context.request_id.clone();
        let (started, mut completion) = self.models.complete(call, context).await?;
        notes::start(&started, &request_id, &facts);
        let started = Event::Started(convert::started(&started));
        let first = timeout(STARTED_PATIENCE, completion.next()).await.ok().flatten();
        let rest = stream::unfold(completion, |mut completion| async {
            let event = completion.next().await?;
            Some((event, completion))
        });
        let events = stream::once(async { Ok(started) })
            .chain(stream::iter(first).chain(rest).map(move |event| {
                let event = event.inspect(|event| {
                    if let CompletionEvent::Finished(account) = event {
                        notes::account(account, &facts);
                    }
                });
                event.map(event_for_wire).map_err(Status::from)
            }))
            .map(|event| event.map(|event| CompleteResponse { event: Some(event) }));
        Ok(Response::new(Box::pin(events)))
    }
}

fn event_for_wire(event: CompletionEvent) -> Event {
    match event {
        CompletionEvent::Delta { text, token } => {
            let (token_ids, logprobs) = match token {
                Some(token) => {
                    let logprobs = token.logprobs.map(|l| convert::logprobs(token.id, l));
                    (vec![token.id], logprobs.into_iter().collect())
                }
                None => (Vec::new(), Vec::new()),
            };
            Event::Delta(Delta { text, token_ids, logprobs })
        }
        CompletionEvent::Finished(account) => Event::Finished(convert::finished(account)),
    }
}
