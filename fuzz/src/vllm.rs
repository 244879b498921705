//! `vllm.grpc.engine.VllmEngine`, drawn from the fuzzer's bytes, on the server of the other requests.
//! Every completion that was asked for ends once, with as many tokens as it says, or the call is
//! refused by the caller's fault; afterwards nothing runs.

use arbitrary::{Result, Unstructured};
use sconce_proto::compat::smg::grpc::common::{FlushCacheRequest, GetTokenizerRequest};
use sconce_proto::compat::vllm::grpc::engine::generate_request::Input;
use sconce_proto::compat::vllm::grpc::engine::generate_response::Response;
use sconce_proto::compat::vllm::grpc::engine::sampling_params::Constraint;
use sconce_proto::compat::vllm::grpc::engine::vllm_engine_client::VllmEngineClient;
use sconce_proto::compat::vllm::grpc::engine::{
    AbortRequest, EmbedRequest, GenerateComplete, GenerateRequest, GenerateStreamChunk,
    GetLoadsRequest, GetModelInfoRequest, GetServerInfoRequest, HealthCheckRequest,
    KvTransferParams, MediaRef, MediaRefs, MultimodalInputs, SamplingParams, TokenizedInput,
};

use crate::requests::{float, ids, stream, unary};
use crate::server::{COMPLETION_TOKENS_MAX, Server, Service, answered, check, each};
use crate::text::{count, noises, perhaps, several, text};

/// Most requests of an input.
const REQUESTS_MAX: usize = 4;
/// Most messages that are read of a stream; one has fewer.
const MESSAGES_MAX: usize = 4096;

pub(crate) fn run(bytes: &[u8]) {
    each(bytes, REQUESTS_MAX, ask);
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    noises(64, 300)
}

async fn ask(server: &Server, u: &mut Unstructured<'_>) -> Result<()> {
    let mut client = VllmEngineClient::new(server.service.clone());
    match u.int_in_range(0..=15)? {
        0 => unary("HealthCheck", client.health_check(HealthCheckRequest {})).await,
        1 => {
            let timeout_s = float(u)?;
            unary("FlushCache", client.flush_cache(FlushCacheRequest { timeout_s })).await;
        }
        2 => unary("Abort", client.abort(AbortRequest { request_ids: names(u)? })).await,
        3 => unary("GetModelInfo", client.get_model_info(GetModelInfoRequest {})).await,
        4 => unary("GetServerInfo", client.get_server_info(GetServerInfoRequest {})).await,
        5 => {
            let dp_rank = perhaps(u, Unstructured::arbitrary)?;
            let include = several(u, 2, |u| text(u, 8))?;
            unary("GetLoads", client.get_loads(GetLoadsRequest { dp_rank, include })).await;
        }
        6 => {
            let answer = client.get_tokenizer(GetTokenizerRequest {});
            stream("GetTokenizer", answer, MESSAGES_MAX).await;
        }
        7 => unary("Embed", client.embed(EmbedRequest::default())).await,
        _ => generate(&mut client, u).await?,
    }
    Ok(())
}

fn names(u: &mut Unstructured<'_>) -> Result<Vec<String>> {
    several(u, 3, name)
}

/// Few, so that requests and aborts meet.
fn name(u: &mut Unstructured<'_>) -> Result<String> {
    Ok((*u.choose(&["", "a", "b"])?).to_owned())
}

async fn generate(client: &mut VllmEngineClient<Service>, u: &mut Unstructured<'_>) -> Result<()> {
    let request = request(u)?;
    let most = perhaps(u, |u| u.int_in_range(0..=8))?.unwrap_or(MESSAGES_MAX);
    let abort_after = perhaps(u, |u| u.int_in_range(0..=8_usize))?;
    let mut account = Account::of(&request);
    let mut messages = match answered("Generate", client.generate(request.clone())).await {
        Ok(response) => response.into_inner(),
        Err(status) => {
            check("Generate", &status);
            return Ok(());
        }
    };
    for index in 0..most {
        if abort_after == Some(index) {
            let request_ids = vec![request.request_id.clone()];
            unary("Abort", client.abort(AbortRequest { request_ids })).await;
        }
        match answered("Generate", messages.message()).await {
            Ok(Some(message)) => match message.response.expect("every message says something") {
                Response::Chunk(chunk) => account.chunk(&chunk),
                Response::Complete(complete) => account.complete(&complete),
            },
            Ok(None) => {
                account.check();
                break;
            }
            Err(status) => {
                check("Generate", &status);
                break;
            }
        }
    }
    Ok(())
}

/// What was told of each completion of a request.
#[derive(Debug)]
struct Account {
    request: GenerateRequest,
    /// Tokens that came in chunks, and whether the completion has ended.
    told: Vec<(u32, bool)>,
}

impl Account {
    fn of(request: &GenerateRequest) -> Self {
        let completions = request.sampling_params.as_ref().map_or(1, |params| params.n.max(1));
        // More are refused.
        let completions = completions.min(1024) as usize;
        Self { request: request.clone(), told: vec![(0, false); completions] }
    }

    fn chunk(&mut self, chunk: &GenerateStreamChunk) {
        assert!(self.request.stream, "a chunk that nobody asked for: {self:?}");
        let (tokens, ended) = &mut self.told[chunk.index as usize];
        assert!(!*ended, "tokens after the end: {chunk:?}");
        assert_eq!(chunk.completion_tokens as usize, chunk.token_ids.len(), "{chunk:?}");
        *tokens += chunk.completion_tokens;
    }

    fn complete(&mut self, complete: &GenerateComplete) {
        let (tokens, ended) = &mut self.told[complete.index as usize];
        assert!(!std::mem::replace(ended, true), "two ends: {complete:?}");
        let found = if self.request.stream {
            assert!(complete.output_ids.is_empty(), "tokens told twice: {complete:?}");
            *tokens
        } else {
            complete.output_ids.len() as u32
        };
        assert_eq!(complete.completion_tokens, found, "{complete:?}");
        let most = self.request.sampling_params.as_ref().and_then(|params| params.max_tokens);
        assert!(most.is_none_or(|most| found <= most), "{complete:?}, {:?}", self.request);
        let reason = complete.finish_reason.as_str();
        assert!(matches!(reason, "stop" | "length" | "abort"), "{complete:?}");
    }

    /// At the end of a stream without an error.
    fn check(&self) {
        assert!(self.told.iter().all(|&(_, ended)| ended), "{self:?}");
    }
}

fn request(u: &mut Unstructured<'_>) -> Result<GenerateRequest> {
    // What is refused comes seldom, so that the rest is seen.
    let refused = u.ratio(1, 10)?;
    let seldom = |u: &mut Unstructured<'_>| Ok(refused && u.arbitrary()?);
    Ok(GenerateRequest {
        request_id: if u.arbitrary()? { name(u)? } else { text(u, 20)? },
        input: match u.int_in_range(0..=7)? {
            0 => None,
            1 | 2 => Some(Input::Text(text(u, 200)?)),
            _ => {
                let (original_text, input_ids) = (text(u, 4)?, ids(u)?);
                Some(Input::Tokenized(TokenizedInput { original_text, input_ids }))
            }
        },
        sampling_params: if u.ratio(7, 8)? { Some(sampling(u)?) } else { None },
        stream: u.arbitrary()?,
        kv_transfer_params: seldom(u)?.then(KvTransferParams::default),
        mm_inputs: seldom(u)?.then(MultimodalInputs::default),
        extra_mm_inputs: if seldom(u)? { vec![MultimodalInputs::default()] } else { Vec::new() },
        kv_transfer_params_json: if seldom(u)? { Some(text(u, 8)?) } else { None },
        data_parallel_rank: if seldom(u)? { Some(u.arbitrary()?) } else { None },
        media_refs: if seldom(u)? {
            let item = |u: &mut Unstructured<'_>| {
                Ok(MediaRef { modality: u.arbitrary()?, url: text(u, 8)? })
            };
            Some(MediaRefs { items: several(u, 2, item)? })
        } else {
            None
        },
    })
}

fn sampling(u: &mut Unstructured<'_>) -> Result<SamplingParams> {
    // Most fields are left at the default, since one wrong one refuses the request.
    let sometimes = |u: &mut Unstructured<'_>| if u.ratio(1, 4)? { float(u) } else { Ok(0.0) };
    let bias = |u: &mut Unstructured<'_>| {
        let id = if u.ratio(1, 8)? { u.arbitrary()? } else { u.int_in_range(0..=255)? };
        Ok((id, float(u)?))
    };
    Ok(SamplingParams {
        temperature: perhaps(u, float)?,
        top_p: sometimes(u)?,
        top_k: if u.arbitrary()? { 0 } else { u.arbitrary()? },
        min_p: sometimes(u)?,
        frequency_penalty: sometimes(u)?,
        presence_penalty: sometimes(u)?,
        repetition_penalty: sometimes(u)?,
        max_tokens: if u.ratio(1, 16)? {
            None
        } else {
            Some(u.int_in_range(0..=COMPLETION_TOKENS_MAX)?)
        },
        min_tokens: if u.ratio(1, 4)? { count(u)? } else { 0 },
        stop: if u.arbitrary()? { several(u, 4, |u| text(u, 6))? } else { Vec::new() },
        stop_token_ids: if u.arbitrary()? { several(u, 4, count)? } else { Vec::new() },
        skip_special_tokens: u.arbitrary()?,
        spaces_between_special_tokens: u.arbitrary()?,
        ignore_eos: u.arbitrary()?,
        n: if u.ratio(1, 4)? { count(u)? } else { u.int_in_range(0..=3)? },
        logprobs: if u.ratio(1, 4)? { Some(u.int_in_range(-2..=25)?) } else { None },
        prompt_logprobs: if u.ratio(1, 32)? { Some(u.arbitrary()?) } else { None },
        seed: perhaps(u, Unstructured::arbitrary)?,
        include_stop_str_in_output: u.arbitrary()?,
        logit_bias: if u.ratio(1, 4)? {
            several(u, 3, bias)?.into_iter().collect()
        } else {
            Default::default()
        },
        truncate_prompt_tokens: if u.ratio(1, 4)? { Some(u.int_in_range(-2..=40)?) } else { None },
        grammar_from_first_token: u.arbitrary()?,
        constraint: match u.int_in_range(0..=31)? {
            0 => Some(Constraint::Regex(text(u, 8)?)),
            1 => Some(Constraint::JsonObject(u.arbitrary()?)),
            _ => None,
        },
    })
}
