//! A client of the gateway protocol, and what a Generate said.

use sconce_proto::compat::vllm::grpc::engine::generate_request::Input;
use sconce_proto::compat::vllm::grpc::engine::generate_response::Response;
use sconce_proto::compat::vllm::grpc::engine::vllm_engine_client::VllmEngineClient;
use sconce_proto::compat::vllm::grpc::engine::{
    GenerateComplete, GenerateRequest, GenerateResponse, GenerateStreamChunk, SamplingParams,
    TokenizedInput,
};
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::Fixture;

/// A client on the fixture's connection.
pub(crate) fn engine(fixture: &Fixture) -> VllmEngineClient<Channel> {
    VllmEngineClient::new(fixture.channel.clone())
}

/// Greedy, of a length.
pub(crate) fn greedy(max_tokens: u32) -> SamplingParams {
    let (temperature, max_tokens) = (Some(0.0), Some(max_tokens));
    SamplingParams { temperature, max_tokens, ..SamplingParams::default() }
}

/// A request for tokens, streamed.
pub(crate) fn request(id: &str, ids: Vec<u32>, params: SamplingParams) -> GenerateRequest {
    let tokenized = TokenizedInput { original_text: String::new(), input_ids: ids };
    GenerateRequest {
        request_id: id.to_owned(),
        input: Some(Input::Tokenized(tokenized)),
        sampling_params: Some(params),
        stream: true,
        ..GenerateRequest::default()
    }
}

/// The same as one answer.
pub(crate) fn whole(request: GenerateRequest) -> GenerateRequest {
    GenerateRequest { stream: false, ..request }
}

/// The tokens of a text for the simulated model, whose tokens are bytes.
pub(crate) fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

/// What a Generate's stream said.
#[derive(Debug, Default)]
pub(crate) struct Said {
    pub(crate) chunks: Vec<GenerateStreamChunk>,
    pub(crate) complete: Vec<GenerateComplete>,
    pub(crate) status: Option<Status>,
}

impl Said {
    /// Tokens of one completion, as they came in chunks.
    pub(crate) fn ids(&self, index: u32) -> Vec<u32> {
        let own = self.chunks.iter().filter(|chunk| chunk.index == index);
        own.flat_map(|chunk| chunk.token_ids.clone()).collect()
    }

    /// The end of the only completion.
    pub(crate) fn end(&self) -> &GenerateComplete {
        assert_eq!(self.complete.len(), 1, "{self:?}");
        &self.complete[0]
    }
}

/// The message of a response.
pub(crate) fn said(response: GenerateResponse) -> Response {
    response.response.expect("a message says something")
}

/// Reads a stream to its end.
pub(crate) async fn read(mut stream: Streaming<GenerateResponse>) -> Said {
    let mut all = Said::default();
    loop {
        match stream.message().await {
            Ok(Some(message)) => match said(message) {
                Response::Chunk(chunk) => {
                    let over = all.complete.iter().any(|end| end.index == chunk.index);
                    assert!(!over, "a chunk after the end: {chunk:?}");
                    all.chunks.push(chunk);
                }
                Response::Complete(end) => all.complete.push(end),
            },
            Ok(None) => return all,
            Err(status) => {
                all.status = Some(status);
                return all;
            }
        }
    }
}

/// Runs a request to its end.
pub(crate) async fn generate(fixture: &Fixture, request: GenerateRequest) -> Said {
    let stream = engine(fixture).generate(request).await.expect("is accepted").into_inner();
    let said = read(stream).await;
    assert!(said.status.is_none(), "{said:?}");
    said
}
