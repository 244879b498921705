//! What the model and the server are, as labels for a gateway.

use std::path::Path;

use sconce_engine::Sampling;
use sconce_models::PAGE_TOKENS;
use sconce_proto::compat::vllm::grpc::engine::{GetModelInfoResponse, GetServerInfoResponse};
use serde_json::{Map, Value, json};

use crate::grpc::convert::count;
use crate::models::{Models, ReadyModel};

/// What the model is.
pub(super) fn model(model: &ReadyModel) -> GetModelInfoResponse {
    let loaded = model.loaded();
    let info = &loaded.info;
    let path = absolute(&loaded.settings.path);
    let eos_token_ids: Vec<i32> = info.eos_token_ids.iter().map(|&id| id.cast_signed()).collect();
    GetModelInfoResponse {
        model_path: path.clone(),
        is_generation: true,
        max_context_length: count(info.context_length),
        vocab_size: count(info.vocab_size),
        supports_vision: false,
        served_model_name: loaded.name.clone(),
        tokenizer_path: path,
        model_type: info.architecture.clone(),
        architectures: vec![info.architecture.clone()],
        pad_token_id: eos_token_ids.first().copied().unwrap_or(0),
        eos_token_ids,
        bos_token_id: info.bos_token_id.map_or(0, u32::cast_signed),
        max_req_input_len: small(info.context_length - 1),
        default_sampling_params_json: defaults(model.sampling_defaults()),
    }
}

/// What the server is; `last_generate` in milliseconds since 1970.
pub(super) fn server(
    models: &Models,
    model: Option<&ReadyModel>,
    sequences_max: usize,
    last_generate: u64,
) -> GetServerInfoResponse {
    let status = models.status();
    GetServerInfoResponse {
        active_requests: count(status.running + status.waiting),
        is_paused: models.is_draining(),
        last_receive_timestamp: last_generate as f64 / 1e3,
        uptime_seconds: models.uptime().as_secs_f64(),
        server_type: "sconce".to_owned(),
        data_parallel_size: 1,
        block_size: small(PAGE_TOKENS),
        model_dtype: model.map_or_else(String::new, |m| m.loaded().info.weight_format.clone()),
        max_num_seqs: small(sequences_max),
        ..GetServerInfoResponse::default()
    }
}

/// A path that begins at the root: any other text a gateway would look up as a name elsewhere.
fn absolute(path: &str) -> String {
    let whole = std::path::absolute(path);
    whole.unwrap_or_else(|_| Path::new("/").join(path)).display().to_string()
}

/// How the model draws where it differs from the protocol's defaults, as the gateway fills it in;
/// empty if it does not.
fn defaults(model: &Sampling) -> String {
    let protocol = Sampling::default();
    let mut fields = Map::new();
    let mut number = |name: &str, value: f32, default: f32| {
        if value != default {
            // Through text, so that 0.6 stays 0.6.
            let value = value.to_string().parse::<f64>().unwrap_or_else(|_| value.into());
            fields.insert(name.to_owned(), json!(value));
        }
    };
    number("temperature", model.temperature, protocol.temperature);
    number("top_p", model.top_p, protocol.top_p);
    number("min_p", model.min_p, protocol.min_p);
    number("repetition_penalty", model.repeat_penalty, protocol.repeat_penalty);
    if model.top_k != protocol.top_k {
        fields.insert("top_k".to_owned(), json!(model.top_k));
    }
    if fields.is_empty() { String::new() } else { Value::Object(fields).to_string() }
}

fn small(value: usize) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_from_the_protocol_is_told() {
        assert_eq!(defaults(&Sampling::default()), "");
        let model = Sampling { temperature: 0.6, top_k: 20, ..Sampling::default() };
        assert_eq!(defaults(&model), r#"{"temperature":0.6,"top_k":20}"#);
    }

    #[test]
    fn paths_begin_at_the_root() {
        assert_eq!(absolute("/models/a"), "/models/a");
        assert!(absolute("sim:layers=2").starts_with('/'));
    }
}
