//! Requests of HTTP in JSON, as the gateway parses them, and the Generate that its client makes of each.

use serde_json::{Value, json};
use smg_grpc_client::VllmEngineClient;
use smg_grpc_client::vllm_proto::GenerateRequest;

use crate::worker::MODEL;

/// `POST /v1/chat/completions`: greedy, with `options` on top.
pub(crate) fn chat(id: &str, ids: Vec<u32>, options: Value) -> GenerateRequest {
    chat_with_tools(id, ids, options, None).expect("makes a Generate")
}

/// The same with a constraint that the gateway makes of tools that have to be called.
pub(crate) fn chat_with_tools(
    id: &str,
    ids: Vec<u32>,
    options: Value,
    tools: Option<(&str, &str)>,
) -> Result<GenerateRequest, String> {
    let messages = json!([{"role": "user", "content": "as in the tokens"}]);
    let body = merged(json!({"model": MODEL, "messages": messages, "temperature": 0}), options);
    let constraint = tools.map(|(kind, value)| (kind.to_owned(), value.to_owned()));
    let (body, text) = (parsed(body), "as in the tokens".to_owned());
    VllmEngineClient::build_generate_request_from_chat(
        id.to_owned(),
        &body,
        text,
        ids,
        None,
        constraint,
    )
}

/// `POST /v1/completions`: greedy, with `options` on top.
pub(crate) fn completion(id: &str, ids: Vec<u32>, options: Value) -> GenerateRequest {
    let body = json!({"model": MODEL, "prompt": "as in the tokens", "temperature": 0});
    let (body, text) = (parsed(merged(body, options)), "as in the tokens".to_owned());
    VllmEngineClient::build_generate_request_from_completion(id.to_owned(), &body, text, ids)
        .expect("makes a Generate")
}

/// `POST /generate`: greedy, with `sampling` on top, streamed or not.
pub(crate) fn plain(id: &str, ids: Vec<u32>, stream: bool, sampling: Value) -> GenerateRequest {
    let sampling = merged(json!({"temperature": 0}), sampling);
    let body = json!({
        "model": MODEL, "text": "as in the tokens", "stream": stream, "sampling_params": sampling
    });
    VllmEngineClient::build_plain_generate_request(id.to_owned(), &parsed(body), None, ids)
        .expect("makes a Generate")
}

/// `POST /v1/messages` with `options`.
pub(crate) fn messages(id: &str, ids: Vec<u32>, options: Value) -> GenerateRequest {
    let messages = json!([{"role": "user", "content": "as in the tokens"}]);
    let body = parsed(merged(json!({"model": MODEL, "messages": messages}), options));
    VllmEngineClient::build_generate_request_from_messages(
        id.to_owned(),
        &body,
        "as in the tokens".to_owned(),
        ids,
        None,
        None,
    )
    .expect("makes a Generate")
}

/// `POST /v1/responses` with `options`, as it goes to models whose text the gateway itself reads.
pub(crate) fn responses(id: &str, ids: Vec<u32>, options: Value) -> GenerateRequest {
    let body = parsed(merged(json!({"model": MODEL, "input": "as in the tokens"}), options));
    VllmEngineClient::build_generate_request_from_responses(
        id.to_owned(),
        &body,
        "as in the tokens".to_owned(),
        ids,
        None,
    )
    .expect("makes a Generate")
}

/// A chat that streams until it is ended.
pub(crate) fn endless(id: &str) -> GenerateRequest {
    let options = json!({
        "stream": true, "max_completion_tokens": crate::worker::ENDLESS, "ignore_eos": true
    });
    chat(id, bytes("x"), options)
}

/// The tokens of a text for the simulated model, whose tokens are bytes.
pub(crate) fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

fn merged(mut body: Value, options: Value) -> Value {
    let (Value::Object(fields), Value::Object(more)) = (&mut body, options) else {
        panic!("expected objects of JSON");
    };
    fields.extend(more);
    body
}

fn parsed<T: serde::de::DeserializeOwned>(body: Value) -> T {
    serde_json::from_value(body).expect("a request that the gateway takes")
}
