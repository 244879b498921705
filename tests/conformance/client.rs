//! What the gateway's own client makes of a server; `SCONCE_ENDPOINT` says where that is. It serves
//! `sim:decode_us=1000,context=1000000`, whose tokens are bytes.
#![cfg(test)]

use std::time::Duration;

use smg_grpc_client::VllmEngineClient;
use smg_grpc_client::common_proto::kv_cache_event::Data;
use smg_grpc_client::vllm_proto::generate_response::Response;
use smg_grpc_client::vllm_proto::sampling_params::Constraint;
use smg_grpc_client::vllm_proto::{
    GenerateRequest, SamplingParams, TokenizedInput, generate_request::Input,
};
use tokio_stream::StreamExt as _;

/// Longest that anything is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

async fn client() -> VllmEngineClient {
    let endpoint = std::env::var("SCONCE_ENDPOINT").expect("SCONCE_ENDPOINT says where to connect");
    VllmEngineClient::connect(&endpoint).await.expect("connects")
}

fn request(id: &str, prompt: Vec<u32>, max_tokens: u32) -> GenerateRequest {
    let tokenized = TokenizedInput { original_text: String::new(), input_ids: prompt };
    let params = SamplingParams {
        temperature: Some(0.0),
        max_tokens: Some(max_tokens),
        ..SamplingParams::default()
    };
    GenerateRequest {
        request_id: id.to_owned(),
        input: Some(Input::Tokenized(tokenized)),
        sampling_params: Some(params),
        stream: true,
        ..GenerateRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_and_load_are_read() {
    let client = client().await;
    assert!(client.health_check().await.expect("answers").healthy);
    let model = client.get_model_info().await.expect("answers");
    assert_eq!((model.served_model_name.as_str(), model.vocab_size), ("sim", 259));
    let server = client.get_server_info().await.expect("answers");
    assert_eq!(server.block_size, 64);
    let loads = client.get_loads(vec!["core".to_owned()]).await.expect("answers");
    assert_eq!(loads.loads.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tokenizer_passes_the_clients_checks() {
    let client = client().await;
    let bundle = client.get_tokenizer().await.expect("a bundle that the client takes");
    assert_eq!(bundle.sha256.len(), 64);
    assert!(bundle.compressed_data.starts_with(b"PK"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_read_to_its_end() {
    let client = client().await;
    let mut stream = client.generate(request("whole", vec![97; 8], 12)).await.expect("runs");
    let (mut tokens, mut end) = (0, None);
    while let Some(message) = stream.next().await {
        match message.expect("no error").response.expect("says something") {
            Response::Chunk(chunk) => tokens += chunk.completion_tokens,
            Response::Complete(complete) => end = Some(complete),
        }
    }
    stream.mark_completed();
    assert_eq!((tokens, end.expect("an end").finish_reason.as_str()), (12, "length"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_dropped_is_aborted() {
    let client = client().await;
    let mut stream = client.generate(request("dropped", vec![98; 8], 900_000)).await.expect("runs");
    stream.next().await.expect("is open").expect("no error");
    drop(stream);
    let ended = async {
        while client.get_server_info().await.expect("answers").active_requests > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, ended).await.expect("nothing runs any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_constraint_is_an_error_of_the_call() {
    let client = client().await;
    let mut asked = request("constrained", vec![97; 8], 12);
    let params = asked.sampling_params.as_mut().expect("was set");
    params.constraint = Some(Constraint::JsonSchema("{}".to_owned()));
    let refused = client.generate(asked).await.err().expect("is refused");
    assert!(refused.message().contains("json_schema"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_the_cache_are_decoded() {
    let client = client().await;
    let mut events = client.subscribe_kv_events(0).await.expect("opens");
    let prompt: Vec<u32> = (0..192).map(|i| (i * 7) % 251).collect();
    let mut stream = client.generate(request("kept", prompt.clone(), 1)).await.expect("runs");
    while stream.next().await.is_some() {}
    stream.mark_completed();
    let mut known = Vec::new();
    let told = async {
        while known != prompt {
            let batch = events.message().await.expect("no error").expect("is open");
            for event in batch.events {
                let Some(Data::Stored(stored)) = event.data else { continue };
                for block in stored.blocks {
                    if prompt[known.len()..].starts_with(&block.token_ids) {
                        known.extend(block.token_ids);
                    }
                }
            }
        }
    };
    tokio::time::timeout(PATIENCE, told).await.expect("all blocks are told");
}
