//! Every request of `sconce.v1` with every field, drawn from the fuzzer's bytes, on a server in this
//! process. The answer is an account that adds up, or a refusal that is the caller's fault; afterwards
//! nothing runs.

use std::collections::HashMap;
use std::future::Future;

use arbitrary::{Result, Unstructured};
use prost_types::Duration;
use sconce_proto::health::HealthCheckRequest;
use sconce_proto::health::health_client::HealthClient;
use sconce_proto::v1::complete_request::{Constraint, Prompt};
use sconce_proto::v1::inference_service_client::InferenceServiceClient;
use sconce_proto::v1::model_service_client::ModelServiceClient;
use sconce_proto::v1::state_service_client::StateServiceClient;
use sconce_proto::v1::*;
use tonic::{Response, Status, Streaming};

use crate::server::{COMPLETION_TOKENS_MAX, MODEL, Server, answered, check, each, is_harmless};
use crate::text::{count, noises, perhaps, several, text};

/// Most requests of an input.
const REQUESTS_MAX: usize = 6;
/// Most messages that are read of a stream; one has fewer.
const MESSAGES_MAX: usize = 4096;

pub(crate) fn run(bytes: &[u8]) {
    each(bytes, REQUESTS_MAX, ask);
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    noises(96, 400)
}

async fn ask(server: &Server, u: &mut Unstructured<'_>) -> Result<()> {
    let mut inference = InferenceServiceClient::new(server.service.clone());
    let mut models = ModelServiceClient::new(server.service.clone());
    let mut state = StateServiceClient::new(server.service.clone());
    match u.int_in_range(0..=15)? {
        0 => unary("Tokenize", inference.tokenize(tokenize(u)?)).await,
        1 => {
            let request = DetokenizeRequest {
                model: model(u)?,
                token_ids: ids(u)?,
                skip_special_tokens: u.arbitrary()?,
            };
            unary("Detokenize", inference.detokenize(request)).await
        }
        2 => {
            let (request, stop) = (load(u)?, u.int_in_range(0..=20)?);
            stream("Load", models.load(request), stop).await
        }
        3 => unary("Unload", models.unload(UnloadRequest { model: model(u)? })).await,
        4 => unary("ListModels", models.list_models(ListModelsRequest {})).await,
        5 => {
            let LoadRequest { path, quantize, context_length, .. } = load(u)?;
            let request = EstimateLoadRequest { path, quantize, context_length };
            unary("EstimateLoad", models.estimate_load(request)).await
        }
        6 => unary("GetStatus", models.get_status(GetStatusRequest {})).await,
        7 => unary("Snapshot", state.snapshot(snapshot(u)?)).await,
        8 => {
            let request = ListSnapshotsRequest {
                model: perhaps(u, model)?,
                name: perhaps(u, |u| text(u, 20))?,
            };
            unary("ListSnapshots", state.list_snapshots(request)).await
        }
        9 => {
            let request = DropSnapshotRequest { id: text(u, 40)? };
            unary("DropSnapshot", state.drop_snapshot(request)).await
        }
        10 => {
            let request = ExportSnapshotRequest { id: text(u, 40)? };
            stream("ExportSnapshot", state.export_snapshot(request), MESSAGES_MAX).await
        }
        11 => unary("MatchPrefix", state.match_prefix(match_prefix(u)?)).await,
        12 => {
            let request = DescribeCacheRequest { model: model(u)?, nodes_max: perhaps(u, count)? };
            unary("DescribeCache", state.describe_cache(request)).await
        }
        13 => {
            let request = HealthCheckRequest { service: text(u, 30)? };
            unary("Check", HealthClient::new(server.service.clone()).check(request)).await
        }
        _ => complete(&mut inference, u).await?,
    }
    Ok(())
}

/// An answer, or a refusal that is the caller's fault.
pub(crate) async fn unary<T>(
    what: &str,
    answer: impl Future<Output = std::result::Result<Response<T>, Status>>,
) {
    if let Err(status) = answered(what, answer).await {
        check(what, &status);
    }
}

/// Reads up to `most` messages of an answer, then hangs up.
pub(crate) async fn stream<T>(
    what: &str,
    answer: impl Future<Output = std::result::Result<Response<Streaming<T>>, Status>>,
    most: usize,
) {
    let mut messages = match answered(what, answer).await {
        Ok(response) => response.into_inner(),
        Err(status) => return check(what, &status),
    };
    for _ in 0..most {
        match answered(what, messages.message()).await {
            Ok(Some(_)) => {}
            Ok(None) => return,
            Err(status) => return check(what, &status),
        }
    }
}

async fn complete(
    client: &mut InferenceServiceClient<crate::server::Service>,
    u: &mut Unstructured<'_>,
) -> Result<()> {
    let request = completion(u)?;
    let most = perhaps(u, |u| u.int_in_range(0..=8))?.unwrap_or(MESSAGES_MAX);
    let mut messages = match answered("Complete", client.complete(request.clone())).await {
        Ok(response) => response.into_inner(),
        Err(status) => {
            check("Complete", &status);
            return Ok(());
        }
    };
    let (mut tokens, mut finished) = (0, None);
    for index in 0..most {
        let message = match answered("Complete", messages.message()).await {
            Ok(Some(message)) => message,
            Ok(None) => {
                let usage: Usage = Option::unwrap_or_default(finished);
                assert_eq!(usage.completion_tokens, tokens, "{request:?}");
                return Ok(());
            }
            Err(status) => {
                check("Complete", &status);
                return Ok(());
            }
        };
        match message.event.expect("every message has an event") {
            complete_response::Event::Started(_) => assert_eq!(index, 0, "{request:?}"),
            complete_response::Event::Delta(delta) => {
                assert!(finished.is_none(), "text after the end: {request:?}");
                tokens += delta.token_ids.len() as u32;
                assert!(tokens <= COMPLETION_TOKENS_MAX, "{request:?}");
            }
            complete_response::Event::Finished(end) => {
                assert!(finished.is_none(), "two ends: {request:?}");
                finished = Some(end.usage.expect("an account has its usage"));
            }
        }
    }
    Ok(())
}

fn completion(u: &mut Unstructured<'_>) -> Result<CompleteRequest> {
    let constraint = |u: &mut Unstructured<'_>| {
        Ok(match u.int_in_range(0..=3)? {
            0 => Constraint::JsonSchema(text(u, 30)?),
            1 => Constraint::Regex(text(u, 30)?),
            2 => Constraint::Grammar(text(u, 30)?),
            _ => Constraint::Choice(Choice { choices: several(u, 3, |u| text(u, 8))? }),
        })
    };
    Ok(CompleteRequest {
        model: model(u)?,
        prompt: match u.int_in_range(0..=6)? {
            0 => None,
            1 | 2 => Some(Prompt::Tokens(TokensPrompt { ids: ids(u)? })),
            3 => Some(Prompt::Chat(chat(u)?)),
            _ => Some(Prompt::Text(text(u, 300)?)),
        },
        media: if u.ratio(1, 12)? { media(u)? } else { Vec::new() },
        sampling: perhaps(u, sampling)?,
        max_tokens: Some(u.int_in_range(0..=COMPLETION_TOKENS_MAX)?),
        stop: if u.arbitrary()? { several(u, 4, |u| text(u, 6))? } else { Vec::new() },
        stop_token_ids: if u.arbitrary()? { several(u, 4, count)? } else { Vec::new() },
        ignore_eos: u.arbitrary()?,
        logprobs: perhaps(u, count)?,
        constraint: if u.ratio(1, 12)? { Some(constraint(u)?) } else { None },
        cache: perhaps(u, cache)?,
        priority: if u.arbitrary()? { 0 } else { u.arbitrary()? },
    })
}

fn tokenize(u: &mut Unstructured<'_>) -> Result<TokenizeRequest> {
    use tokenize_request::Prompt;
    let prompt = match u.int_in_range(0..=2)? {
        0 => None,
        1 => Some(Prompt::Text(text(u, 300)?)),
        _ => Some(Prompt::Chat(chat(u)?)),
    };
    Ok(TokenizeRequest { model: model(u)?, prompt, add_special_tokens: u.arbitrary()? })
}

fn snapshot(u: &mut Unstructured<'_>) -> Result<SnapshotRequest> {
    use snapshot_request::Prompt;
    Ok(SnapshotRequest {
        model: model(u)?,
        prompt: match u.int_in_range(0..=3)? {
            0 => None,
            1 => Some(Prompt::Tokens(TokensPrompt { ids: ids(u)? })),
            2 => Some(Prompt::Chat(chat(u)?)),
            _ => Some(Prompt::Text(text(u, 200)?)),
        },
        media: if u.ratio(1, 12)? { media(u)? } else { Vec::new() },
        name: text(u, 20)?,
        pinned: u.arbitrary()?,
        ttl: perhaps(u, duration)?,
        salt: perhaps(u, |u| text(u, 20))?,
    })
}

fn match_prefix(u: &mut Unstructured<'_>) -> Result<MatchPrefixRequest> {
    use match_prefix_request::Prompt;
    Ok(MatchPrefixRequest {
        model: model(u)?,
        prompt: match u.int_in_range(0..=3)? {
            0 => None,
            1 => Some(Prompt::Tokens(TokensPrompt { ids: ids(u)? })),
            2 => Some(Prompt::Chat(chat(u)?)),
            _ => Some(Prompt::Text(text(u, 200)?)),
        },
        media: if u.ratio(1, 12)? { media(u)? } else { Vec::new() },
        salt: perhaps(u, |u| text(u, 20))?,
    })
}

fn load(u: &mut Unstructured<'_>) -> Result<LoadRequest> {
    const KEYS: [&str; 9] = [
        "vocab",
        "context",
        "pages",
        "weights_bytes",
        "eos_after",
        "recurrent",
        "seed",
        "load_steps",
        "x",
    ];
    let option = |u: &mut Unstructured<'_>| {
        let key = u.choose(&KEYS)?;
        Ok(match u.int_in_range(0..=3)? {
            0 => format!("{key}={}", u.arbitrary::<u64>()?),
            1 => format!("{key}={}", text(u, 5)?),
            2 => format!("{key}=true"),
            _ => format!("{key}={}", u.int_in_range(0..=600)?),
        })
    };
    let path = match u.int_in_range(0..=7)? {
        0 => String::new(),
        1 => format!("sim:{}", text(u, 20)?),
        _ => format!("sim:{}", several(u, 3, option)?.join(",")),
    };
    Ok(LoadRequest {
        model: model(u)?,
        path: if is_harmless(&path) { path } else { "sim:".to_owned() },
        quantize: perhaps(u, |u| Ok((*u.choose(&["q4_0", "affine4", "", "x"])?).to_owned()))?,
        context_length: perhaps(u, count)?,
        keep_alive: perhaps(u, duration)?,
    })
}

fn model(u: &mut Unstructured<'_>) -> Result<String> {
    Ok(match u.int_in_range(0..=15)? {
        0 => text(u, 200)?,
        1 => String::new(),
        2 | 3 => "other".to_owned(),
        _ => MODEL.to_owned(),
    })
}

/// Tokens of the simulated model, at times of none.
pub(crate) fn ids(u: &mut Unstructured<'_>) -> Result<Vec<u32>> {
    let beyond = u.ratio(1, 16)?;
    several(u, 300, |u| if beyond { u.arbitrary() } else { u.int_in_range(0..=258) })
}

fn chat(u: &mut Unstructured<'_>) -> Result<ChatPrompt> {
    let call = |u: &mut Unstructured<'_>| {
        Ok(ToolCall {
            id: perhaps(u, |u| text(u, 8))?,
            name: text(u, 8)?,
            arguments: if u.arbitrary()? { "{\"a\": [1]}".to_owned() } else { text(u, 12)? },
        })
    };
    let message = |u: &mut Unstructured<'_>| {
        Ok(ChatMessage {
            role: (*u.choose(&["user", "system", "assistant", "tool", "", "x"])?).to_owned(),
            content: perhaps(u, |u| text(u, 40))?,
            name: perhaps(u, |u| text(u, 8))?,
            reasoning_content: perhaps(u, |u| text(u, 8))?,
            tool_calls: if u.ratio(1, 4)? { several(u, 2, call)? } else { Vec::new() },
            tool_call_id: perhaps(u, |u| text(u, 8))?,
        })
    };
    Ok(ChatPrompt {
        messages: several(u, 5, message)?,
        tools: if u.ratio(1, 4)? { several(u, 2, |u| text(u, 12))? } else { Vec::new() },
        template_kwargs: perhaps(u, |u| structure(u, 3))?,
        add_generation_prompt: u.arbitrary()?,
    })
}

fn structure(u: &mut Unstructured<'_>, depth: usize) -> Result<prost_types::Struct> {
    let fields = several(u, 3, |u| Ok((text(u, 8)?, value(u, depth)?)))?;
    Ok(prost_types::Struct { fields: fields.into_iter().collect() })
}

fn value(u: &mut Unstructured<'_>, depth: usize) -> Result<prost_types::Value> {
    use prost_types::value::Kind;
    let kind = match u.int_in_range(0..=if depth == 0 { 4 } else { 6 })? {
        0 => None,
        1 => Some(Kind::NullValue(u.arbitrary()?)),
        2 => Some(Kind::NumberValue(u.arbitrary()?)),
        3 => Some(Kind::StringValue(text(u, 12)?)),
        4 => Some(Kind::BoolValue(u.arbitrary()?)),
        5 => Some(Kind::StructValue(structure(u, depth - 1)?)),
        _ => {
            let values = several(u, 3, |u| value(u, depth - 1))?;
            Some(Kind::ListValue(prost_types::ListValue { values }))
        }
    };
    Ok(prost_types::Value { kind })
}

fn media(u: &mut Unstructured<'_>) -> Result<Vec<Media>> {
    several(u, 2, |u| Ok(Media { data: text(u, 8)?.into(), mime_type: text(u, 8)? }))
}

/// A number that samplers take, at times of any kind.
pub(crate) fn float(u: &mut Unstructured<'_>) -> Result<f32> {
    if u.ratio(1, 6)? { u.arbitrary() } else { Ok(f32::from(u.int_in_range(0..=20_u8)?) / 10.0) }
}

fn sampling(u: &mut Unstructured<'_>) -> Result<Sampling> {
    let bias = |u: &mut Unstructured<'_>| Ok((count(u)?, float(u)?));
    Ok(Sampling {
        temperature: perhaps(u, float)?,
        top_p: perhaps(u, float)?,
        top_k: perhaps(u, count)?,
        min_p: perhaps(u, float)?,
        repeat_penalty: perhaps(u, float)?,
        presence_penalty: perhaps(u, float)?,
        frequency_penalty: perhaps(u, float)?,
        repeat_last_n: perhaps(u, Unstructured::arbitrary)?,
        seed: perhaps(u, Unstructured::arbitrary)?,
        logit_bias: several(u, 3, bias)?.into_iter().collect::<HashMap<_, _>>(),
    })
}

fn cache(u: &mut Unstructured<'_>) -> Result<CacheOptions> {
    Ok(CacheOptions {
        restore_points: several(u, 4, count)?,
        salt: perhaps(u, |u| text(u, 20))?,
        bypass: u.arbitrary()?,
        pin: u.arbitrary()?,
    })
}

fn duration(u: &mut Unstructured<'_>) -> Result<Duration> {
    let small = u.arbitrary()?;
    Ok(Duration {
        seconds: if small { u.int_in_range(0..=100)? } else { u.arbitrary()? },
        nanos: if small { 0 } else { u.arbitrary()? },
    })
}
