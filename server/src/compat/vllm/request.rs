//! GenerateRequest: every field checked, once, and every refusal names the field by its path. Where
//! the protocol has no way to leave a field out, zero is its default.

use sconce_engine::CacheUse;
use sconce_proto::compat::vllm::grpc::engine::generate_request::Input;
use sconce_proto::compat::vllm::grpc::engine::sampling_params::Constraint;
use sconce_proto::compat::vllm::grpc::engine::{GenerateRequest, SamplingParams};
use sconce_text::{MAX_STOP_BYTES, MAX_STOPS};

use crate::completion::{CompletionCall, Prompt, SamplingOverrides};
use crate::error::CallError;
use crate::grpc::convert::{LOGIT_BIASES_MAX, LOGPROBS_MAX, STOP_TOKENS_MAX};
use crate::models::ReadyModel;

/// Most completions of one request.
const COMPLETIONS_MAX: u32 = 64;

/// Largest temperature; what is above is noise.
const TEMPERATURE_MAX: f32 = 100.0;

/// Largest presence or frequency penalty, either way, as the protocols above have it.
const PENALTY_MAX: f32 = 2.0;

/// A request that can be run.
#[derive(Debug)]
pub(super) struct Asked {
    /// What each completion is.
    pub(super) call: CompletionCall,
    /// How many completions.
    pub(super) completions: usize,
    /// Whether tokens are sent as they come.
    pub(super) stream: bool,
}

/// Checks a request for `model`.
///
/// # Errors
/// The first field that has a value it must not have, or that is not served.
pub(super) async fn decode(
    request: GenerateRequest,
    model: &ReadyModel,
) -> Result<Asked, CallError> {
    refuse_unserved(&request)?;
    only_rank(request.data_parallel_rank, "data_parallel_rank")?;
    let params = request.sampling_params.unwrap_or_default();
    refuse_constraint(params.constraint.as_ref())?;
    if params.prompt_logprobs.is_some() {
        return Err(CallError::not_offered("sampling_params.prompt_logprobs"));
    }
    let vocabulary = Vocabulary(model.loaded().info.vocab_size);
    let (mut prompt, field) = prompt(request.input, model, vocabulary).await?;
    let context = model.loaded().info.context_length;
    truncate(&mut prompt, params.truncate_prompt_tokens, context)?;
    if prompt.len() >= context {
        let found = prompt.len();
        let problem = format!(
            "expected a prompt shorter than the context of {context} tokens, found {found} tokens"
        );
        return Err(CallError::field(field, problem));
    }
    let room = context - prompt.len();
    let call = CompletionCall {
        model: model.loaded().name.clone(),
        prompt: Prompt::Tokens(prompt),
        max_tokens: Some(max_tokens(params.max_tokens, params.min_tokens, room)?),
        min_tokens: params.min_tokens as usize,
        logprobs: logprobs(params.logprobs)?,
        sampling: sampling(&params, vocabulary)?,
        stop_token_ids: stop_token_ids(params.stop_token_ids, vocabulary)?,
        stop: stops(params.stop)?,
        show_special: !params.skip_special_tokens,
        ignore_eos: params.ignore_eos,
        priority: 0,
        cache: CacheUse::default(),
    };
    let completions = match params.n {
        0 => 1,
        n if n <= COMPLETIONS_MAX => n as usize,
        n => return Err(wrong("n", format!("0 to {COMPLETIONS_MAX}"), n)),
    };
    Ok(Asked { call, completions, stream: request.stream })
}

/// Refuses a rank other than the only one.
pub(super) fn only_rank(rank: Option<i32>, field: &str) -> Result<(), CallError> {
    match rank {
        None | Some(0) => Ok(()),
        Some(found) => {
            let problem = format!("expected 0, for there is one rank, found {found}");
            Err(CallError::field(field, problem))
        }
    }
}

fn refuse_unserved(request: &GenerateRequest) -> Result<(), CallError> {
    let asked = [
        ("mm_inputs", request.mm_inputs.is_some()),
        ("extra_mm_inputs", !request.extra_mm_inputs.is_empty()),
        ("media_refs", request.media_refs.as_ref().is_some_and(|media| !media.items.is_empty())),
        ("kv_transfer_params", request.kv_transfer_params.is_some()),
        ("kv_transfer_params_json", request.kv_transfer_params_json.is_some()),
    ];
    match asked.into_iter().find(|&(_, is_asked)| is_asked) {
        Some((field, _)) => Err(CallError::not_offered(field)),
        None => Ok(()),
    }
}

/// Text that only looks as if it kept to a constraint would be worse than none.
fn refuse_constraint(constraint: Option<&Constraint>) -> Result<(), CallError> {
    let field = match constraint {
        None | Some(Constraint::JsonObject(false)) => return Ok(()),
        Some(Constraint::JsonSchema(_)) => "json_schema",
        Some(Constraint::Regex(_)) => "regex",
        Some(Constraint::Grammar(_)) => "grammar",
        Some(Constraint::StructuralTag(_)) => "structural_tag",
        Some(Constraint::JsonObject(true)) => "json_object",
        Some(Constraint::Choice(_)) => "choice",
    };
    Err(CallError::not_offered(format!("sampling_params.{field}")))
}

/// The tokens of the prompt, at least one, and the field that they came in.
async fn prompt(
    input: Option<Input>,
    model: &ReadyModel,
    vocabulary: Vocabulary,
) -> Result<(Vec<u32>, &'static str), CallError> {
    let (ids, field) = match input {
        Some(Input::Tokenized(tokenized)) => {
            vocabulary.check("tokenized.input_ids", &tokenized.input_ids)?;
            (tokenized.input_ids, "tokenized.input_ids")
        }
        Some(Input::Text(text)) => (model.encode(Prompt::Text(text), None).await?.ids, "text"),
        None => {
            let problem = "expected one of `tokenized` and `text`, found none";
            return Err(CallError::field("input", problem));
        }
    };
    if ids.is_empty() {
        return Err(CallError::field(field, "expected at least one token, found none"));
    }
    Ok((ids, field))
}

/// Keeps the end of a prompt.
fn truncate(prompt: &mut Vec<u32>, keep: Option<i32>, context: usize) -> Result<(), CallError> {
    let keep = match keep {
        None => return Ok(()),
        // One token is to be completed.
        Some(-1) => context - 1,
        Some(keep @ 1..) => keep as usize,
        Some(found) => return Err(wrong("truncate_prompt_tokens", "-1, or 1 or more", found)),
    };
    prompt.drain(..prompt.len().saturating_sub(keep));
    Ok(())
}

/// What was asked, as far as the context has room.
fn max_tokens(asked: Option<u32>, min_tokens: u32, room: usize) -> Result<usize, CallError> {
    let max = match asked {
        Some(0) => return Err(wrong("max_tokens", "at least 1", 0)),
        Some(max) => max as usize,
        None => room,
    };
    if min_tokens as usize > max {
        return Err(wrong("min_tokens", format!("at most max_tokens, {max}"), min_tokens));
    }
    Ok(max.min(room))
}

fn logprobs(asked: Option<i32>) -> Result<Option<usize>, CallError> {
    let Some(found) = asked else { return Ok(None) };
    let fits = usize::try_from(found).ok().filter(|&n| n <= LOGPROBS_MAX);
    fits.map(Some).ok_or_else(|| wrong("logprobs", format!("0 to {LOGPROBS_MAX}"), found))
}

fn sampling(
    params: &SamplingParams,
    vocabulary: Vocabulary,
) -> Result<SamplingOverrides, CallError> {
    let within = |field: &str, value: f32, expected: &str, holds: bool| {
        // A NaN fails every comparison.
        if holds { Ok(Some(value)) } else { Err(wrong(field, expected, value)) }
    };
    let or_one = |value: f32| if value == 0.0 { 1.0 } else { value };
    let temperature = params.temperature.unwrap_or(1.0);
    let (top_p, repeat) = (or_one(params.top_p), or_one(params.repetition_penalty));
    let penalty = |field: &str, value: f32| {
        within(field, value, "-2 to 2", (-PENALTY_MAX..=PENALTY_MAX).contains(&value))
    };
    let hot = (0.0..=TEMPERATURE_MAX).contains(&temperature);
    let repeats = repeat > 0.0 && repeat.is_finite();
    Ok(SamplingOverrides {
        temperature: within("temperature", temperature, "0 to 100", hot)?,
        top_p: within("top_p", top_p, "0 to 1", top_p > 0.0 && top_p <= 1.0)?,
        // -1 says "all" in the protocols above, and arrives as the largest number.
        top_k: Some(if params.top_k == u32::MAX { 0 } else { params.top_k as usize }),
        min_p: within("min_p", params.min_p, "0 to 1", (0.0..=1.0).contains(&params.min_p))?,
        repeat_penalty: within("repetition_penalty", repeat, "0 or more", repeats)?,
        presence_penalty: penalty("presence_penalty", params.presence_penalty)?,
        frequency_penalty: penalty("frequency_penalty", params.frequency_penalty)?,
        repeat_last_n: Some(usize::MAX),
        seed: params.seed.map(|seed| u64::from(seed.cast_unsigned())),
        logit_bias: logit_bias(params, vocabulary)?,
    })
}

fn logit_bias(
    params: &SamplingParams,
    vocabulary: Vocabulary,
) -> Result<Vec<(u32, f32)>, CallError> {
    at_most("logit_bias", params.logit_bias.len(), LOGIT_BIASES_MAX)?;
    let mut biases = Vec::with_capacity(params.logit_bias.len());
    for (&id, &bias) in &params.logit_bias {
        let field = format!("logit_bias[{id}]");
        let known = u32::try_from(id).ok().filter(|&id| vocabulary.has(id));
        let Some(known) = known else { return Err(wrong(&field, vocabulary.expected(), id)) };
        if !bias.is_finite() {
            return Err(wrong(&field, "a finite bias", bias));
        }
        biases.push((known, bias));
    }
    biases.sort_unstable_by_key(|&(id, _)| id);
    Ok(biases)
}

fn stop_token_ids(ids: Vec<u32>, vocabulary: Vocabulary) -> Result<Vec<u32>, CallError> {
    at_most("stop_token_ids", ids.len(), STOP_TOKENS_MAX)?;
    vocabulary.check("sampling_params.stop_token_ids", &ids)?;
    Ok(ids)
}

fn stops(stops: Vec<String>) -> Result<Vec<String>, CallError> {
    at_most("stop", stops.len(), MAX_STOPS)?;
    for (i, stop) in stops.iter().enumerate() {
        if !(1..=MAX_STOP_BYTES).contains(&stop.len()) {
            let expected = format!("1 to {MAX_STOP_BYTES} bytes");
            return Err(wrong(&format!("stop[{i}]"), expected, stop.len()));
        }
    }
    Ok(stops)
}

/// How many ids there are.
#[derive(Debug, Clone, Copy)]
struct Vocabulary(usize);

impl Vocabulary {
    fn has(self, id: u32) -> bool {
        (id as usize) < self.0
    }

    fn expected(self) -> String {
        format!("an id below the vocabulary size {}", self.0)
    }

    fn check(self, field: &str, ids: &[u32]) -> Result<(), CallError> {
        let Some(i) = ids.iter().position(|&id| !self.has(id)) else { return Ok(()) };
        let problem = format!("expected {}, found {}", self.expected(), ids[i]);
        Err(CallError::field(format!("{field}[{i}]"), problem))
    }
}

fn wrong(
    field: &str,
    expected: impl std::fmt::Display,
    found: impl std::fmt::Display,
) -> CallError {
    CallError::field(
        format!("sampling_params.{field}"),
        format!("expected {expected}, found {found}"),
    )
}

fn at_most(field: &str, found: usize, max: usize) -> Result<(), CallError> {
    if found <= max { Ok(()) } else { Err(wrong(field, format!("at most {max} entries"), found)) }
}
