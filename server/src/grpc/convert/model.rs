//! Models: load requests checked, descriptions and status for the wire.

use std::time::Duration;

use sconce_cache::{Class, Tier};
use sconce_engine::{LoadSettings, LoadedModel, ModelState, ModelStatus, Sampling, Status};
use sconce_models::QuantizeFormat;
use sconce_proto::v1::{
    EstimateLoadRequest, GetStatusResponse, LoadProgress, LoadRequest, LoadStage, MemoryLedger,
    ModelInfo, Sampling as WireSampling, SequenceCounts, Totals,
};
use sconce_proto::v1::{
    ModelState as WireState, ModelStatus as WireStatus, SecretStatus as WireSecretStatus,
};

use super::{MODEL_NAME_BYTES_MAX, count, duration, fingerprint};
use crate::error::CallError;
use crate::models::{LoadStep, Stage};
use crate::serve::SecretStatus;

/// Longest path, in bytes: as long as one that Linux opens. It is in the request's log line.
const PATH_BYTES_MAX: usize = 4096;

/// Checks a load; `precision` is the server's.
pub fn load_settings(
    request: LoadRequest,
    precision: sconce_models::Precision,
) -> Result<(String, LoadSettings), CallError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:/".contains(&byte);
    let name = request.model;
    if !(1..=MODEL_NAME_BYTES_MAX).contains(&name.len()) || !name.bytes().all(allowed) {
        let problem = format!(
            "expected 1 to {MODEL_NAME_BYTES_MAX} letters, digits, `.`, `_`, `-`, `:` and `/`, \
             found {name:?}"
        );
        return Err(CallError::field("model", problem));
    }
    let settings = LoadSettings {
        path: path(request.path)?,
        quantize: quantize(request.quantize)?,
        context_length: context_length(request.context_length)?,
        keep_alive: request.keep_alive.map(keep_alive).transpose()?,
        precision,
    };
    Ok((name, settings))
}

/// Checks an estimate.
pub fn estimate(
    request: EstimateLoadRequest,
    precision: sconce_models::Precision,
) -> Result<LoadSettings, CallError> {
    Ok(LoadSettings {
        path: path(request.path)?,
        quantize: quantize(request.quantize)?,
        context_length: context_length(request.context_length)?,
        keep_alive: None,
        precision,
    })
}

fn path(path: String) -> Result<String, CallError> {
    if path.is_empty() {
        let problem = "expected a directory, a .gguf file or `sim:`, found none";
        return Err(CallError::field("path", problem));
    }
    if path.len() > PATH_BYTES_MAX {
        let problem = format!("expected at most {PATH_BYTES_MAX} bytes, found {}", path.len());
        return Err(CallError::field("path", problem));
    }
    Ok(path)
}

fn quantize(quantize: Option<String>) -> Result<Option<QuantizeFormat>, CallError> {
    let Some(name) = quantize else { return Ok(None) };
    match name.parse() {
        Ok(format) => Ok(Some(format)),
        Err(_) => {
            let names = QuantizeFormat::ALL.map(QuantizeFormat::name).join(", ");
            let problem = format!("expected one of {names}, found {name:?}");
            Err(CallError::field("quantize", problem))
        }
    }
}

fn context_length(length: Option<u32>) -> Result<Option<usize>, CallError> {
    match length {
        Some(0) => Err(CallError::field("context_length", "expected at least 1, found 0")),
        length => Ok(length.map(|n| n as usize)),
    }
}

fn keep_alive(wire: prost_types::Duration) -> Result<Duration, CallError> {
    match Duration::try_from(wire) {
        Ok(span) if !span.is_zero() => Ok(span),
        Ok(_) | Err(_) => {
            let problem = format!(
                "expected a time above 0, found {} s {} ns; leave it unset for never",
                wire.seconds, wire.nanos
            );
            Err(CallError::field("keep_alive", problem))
        }
    }
}

/// A step of a load.
pub fn progress(step: &LoadStep) -> LoadProgress {
    let stage = match step.stage {
        Stage::Open => LoadStage::Open,
        Stage::Tokenizer => LoadStage::Tokenizer,
        Stage::Weights => LoadStage::Weights,
    };
    LoadProgress {
        stage: stage.into(),
        bytes_done: step.bytes.done_bytes,
        bytes_total: step.bytes.total_bytes,
        elapsed: Some(duration(step.elapsed)),
    }
}

/// A model that is ready.
pub fn model_info(model: &LoadedModel, defaults: &Sampling, has_chat_template: bool) -> ModelInfo {
    let info = &model.info;
    ModelInfo {
        model: model.name.clone(),
        path: model.settings.path.clone(),
        architecture: info.architecture.clone(),
        parameters: info.parameters,
        weight_format: info.weight_format.clone(),
        context_length: count(info.context_length),
        context_length_trained: count(info.context_length_trained),
        vocab_size: count(info.vocab_size),
        layers: count(info.layers),
        hidden_size: count(info.hidden_size),
        eos_token_ids: info.eos_token_ids.clone(),
        bos_token_id: info.bos_token_id,
        has_chat_template,
        sampling_defaults: Some(sampling_defaults(defaults)),
        fingerprint: fingerprint(info.fingerprint),
        weights_bytes: model.footprint.weights_bytes,
        workspace_bytes: model.footprint.workspace_bytes,
        state_bytes: model.state_bytes,
        keep_alive: model.settings.keep_alive.map(duration),
    }
}

/// What unset sampling fields mean.
pub fn sampling_defaults(defaults: &Sampling) -> WireSampling {
    WireSampling {
        temperature: Some(defaults.temperature),
        top_p: Some(defaults.top_p),
        top_k: Some(count(defaults.top_k)),
        min_p: Some(defaults.min_p),
        repeat_penalty: Some(defaults.repeat_penalty),
        presence_penalty: Some(defaults.presence_penalty),
        frequency_penalty: Some(defaults.frequency_penalty),
        repeat_last_n: Some(i32::try_from(defaults.repeat_last_n).unwrap_or(-1)),
        seed: defaults.seed,
        logit_bias: defaults.logit_bias.iter().copied().collect(),
    }
}

/// The server at this moment.
pub fn status(
    status: &Status,
    draining: bool,
    uptime: Duration,
    secrets: Vec<SecretStatus>,
) -> GetStatusResponse {
    GetStatusResponse {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        draining,
        uptime: Some(duration(uptime)),
        memory: memory(status),
        sequences: Some(SequenceCounts {
            waiting: count(status.waiting),
            running: count(status.running),
        }),
        models: status.models.iter().map(model_status).collect(),
        totals: Some(totals(status)),
        secrets: secrets.into_iter().map(secret_status).collect(),
    }
}

fn totals(status: &Status) -> Totals {
    let (counters, cache) = (&status.counters, &status.cache);
    Totals {
        requests_accepted: counters.accepted,
        requests_finished: counters.finished,
        requests_failed: counters.failed,
        requests_cancelled: counters.cancelled,
        preemptions: counters.preemptions,
        steps: counters.steps,
        step_time: Some(duration(counters.step_time)),
        step_tokens: counters.step_tokens,
        prompt_tokens: counters.prompt_tokens,
        resumed_tokens: cache.tiers.iter().map(|tier| tier.resumed_tokens).sum(),
        completion_tokens: counters.completion_tokens,
        first_tokens: counters.first_tokens,
        first_token_time: Some(duration(counters.first_token_time)),
        token_gap_time: Some(duration(counters.token_gap_time)),
        cache_reasons: super::cache::reasons(cache),
    }
}

fn secret_status(secret: SecretStatus) -> WireSecretStatus {
    WireSecretStatus {
        name: secret.name.to_owned(),
        age: Some(duration(secret.age)),
        problem: secret.problem,
    }
}

fn memory(status: &Status) -> Vec<MemoryLedger> {
    let tiers = Tier::ALL.into_iter();
    tiers
        .map(|tier| {
            let held = status.memory.tier(tier);
            MemoryLedger {
                tier: super::tier(tier).into(),
                budget_bytes: (held.budget != u64::MAX).then_some(held.budget),
                weights_bytes: held.used(Class::Weights),
                workspace_bytes: held.used(Class::Workspace),
                live_state_bytes: held.used(Class::LiveState),
                cached_state_bytes: held.used(Class::CachedState),
            }
        })
        .collect()
}

fn model_status(model: &ModelStatus) -> WireStatus {
    let state = match model.state {
        ModelState::Loading => WireState::Loading,
        ModelState::Ready => WireState::Ready,
        ModelState::Unloading => WireState::Unloading,
        ModelState::Failed => WireState::Failed,
    };
    let busy = model.waiting + model.running > 0;
    WireStatus {
        model: model.name.clone(),
        state: state.into(),
        progress: (model.state == ModelState::Loading).then(|| LoadProgress {
            stage: LoadStage::Weights.into(),
            bytes_done: model.progress.done_bytes,
            bytes_total: model.progress.total_bytes,
            elapsed: None,
        }),
        sequences: Some(SequenceCounts {
            waiting: count(model.waiting),
            running: count(model.running),
        }),
        state_bytes_used: model.state_bytes_used,
        idle: (!busy).then(|| duration(model.idle)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sconce_models::Precision;

    fn field_of(request: LoadRequest) -> String {
        match load_settings(request, Precision::Fast) {
            Err(CallError::InvalidField { field, .. }) => field,
            other => panic!("expected a refusal, found {other:?}"),
        }
    }

    fn request() -> LoadRequest {
        LoadRequest { model: "m".into(), path: "sim:".into(), ..LoadRequest::default() }
    }

    #[test]
    fn a_load_is_checked_field_by_field() {
        assert!(load_settings(request(), Precision::Fast).is_ok());
        for model in ["", "a b", "x\n", &"x".repeat(MODEL_NAME_BYTES_MAX + 1)] {
            assert_eq!(field_of(LoadRequest { model: model.into(), ..request() }), "model");
        }
        for path in [String::new(), "x".repeat(PATH_BYTES_MAX + 1)] {
            assert_eq!(field_of(LoadRequest { path, ..request() }), "path");
        }
        let context_length = Some(0);
        assert_eq!(field_of(LoadRequest { context_length, ..request() }), "context_length");
        for (seconds, nanos) in [(0, 0), (-1, 0), (0, -1)] {
            let keep_alive = Some(prost_types::Duration { seconds, nanos });
            assert_eq!(field_of(LoadRequest { keep_alive, ..request() }), "keep_alive");
        }
    }

    #[test]
    fn known_packings_are_taken_and_an_unknown_one_is_wrong() {
        for format in QuantizeFormat::ALL {
            let quantize = Some(format.name().to_owned());
            let load = LoadRequest { quantize: quantize.clone(), ..request() };
            let (_, settings) = load_settings(load, Precision::Fast).expect("is right");
            assert_eq!(settings.quantize, Some(format));
            let asked = EstimateLoadRequest { path: "sim:".into(), quantize, context_length: None };
            assert_eq!(estimate(asked, Precision::Fast).expect("is right").quantize, Some(format));
        }
        for unknown in ["int5", "INT4", ""] {
            let quantize = Some(unknown.to_owned());
            assert_eq!(field_of(LoadRequest { quantize, ..request() }), "quantize");
        }
    }
}
