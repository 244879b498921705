//! `vllm.grpc.engine.VllmEngine`: one model, for a gateway that tokenizes and shows text itself.
//!
//! Each RPC decodes, asks [`Models`], encodes, as in `grpc`. What is refused, and why, is in
//! `docs/PROTOCOL.md`.

mod aborts;
mod choice;
mod info;
mod load;
mod request;
mod served;
mod tokenizer;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use futures::{Stream, StreamExt as _, stream};
use sconce_proto::compat::smg::grpc::common::{
    FlushCacheRequest, FlushCacheResponse, GetTokenizerChunk, GetTokenizerRequest, KvEventBatch,
    ProfileResponse, StartProfileRequest, StopProfileRequest, SubscribeKvEventsRequest,
};
use sconce_proto::compat::vllm::grpc::engine::vllm_engine_server::VllmEngine as Protocol;
use sconce_proto::compat::vllm::grpc::engine::{
    AbortRequest, AbortResponse, EmbedRequest, EmbedResponse, GenerateRequest, GenerateResponse,
    GetLoadsRequest, GetLoadsResponse, GetModelInfoRequest, GetModelInfoResponse,
    GetServerInfoRequest, GetServerInfoResponse, HealthCheckRequest, HealthCheckResponse,
};
use tonic::{Request, Response, Status};

use super::kv_events::{self, Feed};
use crate::caller::Caller;
use crate::error::CallError;
use crate::grpc::{call_context, notes};
use crate::models::Models;
use aborts::Aborts;
use choice::Choice;
use load::LoadMeter;
pub use served::Served;
use tokenizer::Archives;

/// What the service is made with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// The model that it serves; the only one that is ready if none is named.
    pub model: Option<String>,
    /// Most sequences that run at once on one model.
    pub sequences_max: usize,
}

/// See the module; clones are the same.
#[derive(Debug, Clone)]
pub struct VllmEngine {
    models: Models,
    served: Served,
    aborts: Aborts,
    archives: Archives,
    meter: Arc<LoadMeter>,
    feed: Feed,
    /// Milliseconds since 1970 of the last Generate; 0 before the first.
    last_generate: Arc<AtomicU64>,
}

impl VllmEngine {
    /// A service on `models`. Must be called within a tokio runtime, in which it follows what is
    /// remembered for as long as it lives.
    pub fn new(models: Models, settings: Settings) -> Self {
        let served = Served::new(models.clone(), settings.model);
        let meter = Arc::new(LoadMeter::new(models.clone(), settings.sequences_max));
        Self {
            feed: kv_events::follow(models.clone(), served.clone()),
            aborts: Aborts::default(),
            archives: Archives::default(),
            meter,
            served,
            models,
            last_generate: Arc::default(),
        }
    }

    fn note_generate(&self) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let millis = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        self.last_generate.store(millis, Ordering::Relaxed);
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn not_served<T>(feature: &str) -> Result<Response<T>, Status> {
    Err(CallError::not_offered(feature).into())
}

#[tonic::async_trait]
impl Protocol for VllmEngine {
    type GenerateStream = Answers<GenerateResponse>;

    /// Answers when there is something to say, so that whatever is refused before the first token is
    /// the call's own error, which a gateway tries again elsewhere.
    async fn generate(
        &self,
        request: Request<GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        self.note_generate();
        let context = call_context(&request)?;
        let request = request.into_inner();
        // Before anything is waited for: a text can take long to tokenize, and be aborted meanwhile.
        let abort = self.aborts.register(&context.caller, &request.request_id);
        let model = self.served.model().await?;
        let asked = request::decode(request, &model).await?;
        notes::call(&asked.call, &context.request_id, &context.facts);
        let (count, streams) = (asked.completions, asked.stream);
        let mut choices: Vec<_> = (0..count)
            .map(|index| {
                let choice = Choice::new(&self.models, &asked, index, context.clone(), &abort);
                // Fused: what does not stream is read to its end here, and then once more.
                Box::pin(stream::unfold(choice, Choice::next).fuse())
            })
            .collect();
        let mut answers = match choices.len() {
            1 => choices.remove(0).left_stream(),
            _ => stream::select_all(choices).right_stream(),
        };
        let mut ready = Vec::new();
        while let Some(answer) = answers.next().await {
            ready.push(Ok(answer?));
            // What does not stream is said when all of it is known.
            if streams {
                break;
            }
        }
        let rest = stream::iter(ready).chain(answers.map(move |answer| {
            let _registered = &abort;
            answer.map_err(Status::from)
        }));
        Ok(Response::new(Box::pin(rest)))
    }

    async fn embed(&self, _: Request<EmbedRequest>) -> Result<Response<EmbedResponse>, Status> {
        not_served("Embed")
    }

    /// An error while there is no model, as of a server that does not listen yet: a gateway asks on,
    /// where any answer makes it read labels, once, that are not there.
    async fn health_check(
        &self,
        _: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let healthy = !self.models.is_draining();
        let message = if healthy {
            self.served.model().await?;
            "ready".to_owned()
        } else {
            CallError::Draining.to_string()
        };
        Ok(Response::new(HealthCheckResponse { healthy, message }))
    }

    async fn flush_cache(
        &self,
        request: Request<FlushCacheRequest>,
    ) -> Result<Response<FlushCacheResponse>, Status> {
        let timeout = request.into_inner().timeout_s;
        if timeout.is_nan() || timeout < 0.0 {
            let problem = format!("expected 0 seconds or more, found {timeout}");
            return Err(CallError::field("timeout_s", problem).into());
        }
        let model = self.served.model().await?;
        self.models.flush_cache(&model.loaded().name).await?;
        let message = "forgot what neither running requests nor snapshots need".to_owned();
        Ok(Response::new(FlushCacheResponse { success: true, message }))
    }

    async fn start_profile(
        &self,
        _: Request<StartProfileRequest>,
    ) -> Result<Response<ProfileResponse>, Status> {
        not_served("StartProfile")
    }

    async fn stop_profile(
        &self,
        _: Request<StopProfileRequest>,
    ) -> Result<Response<ProfileResponse>, Status> {
        not_served("StopProfile")
    }

    async fn abort(
        &self,
        request: Request<AbortRequest>,
    ) -> Result<Response<AbortResponse>, Status> {
        let caller = Caller::of(request.extensions());
        for id in request.into_inner().request_ids {
            self.aborts.abort(&caller, &id);
        }
        Ok(Response::new(AbortResponse {}))
    }

    async fn get_model_info(
        &self,
        _: Request<GetModelInfoRequest>,
    ) -> Result<Response<GetModelInfoResponse>, Status> {
        Ok(Response::new(info::model(&self.served.model().await?)))
    }

    async fn get_server_info(
        &self,
        _: Request<GetServerInfoRequest>,
    ) -> Result<Response<GetServerInfoResponse>, Status> {
        let last = self.last_generate.load(Ordering::Relaxed);
        let model = self.served.model().await.ok();
        let info = info::server(&self.models, model.as_ref(), self.meter.sequences_max(), last);
        Ok(Response::new(info))
    }

    async fn get_loads(
        &self,
        request: Request<GetLoadsRequest>,
    ) -> Result<Response<GetLoadsResponse>, Status> {
        request::only_rank(request.into_inner().dp_rank, "dp_rank")?;
        Ok(Response::new(self.meter.read().response()))
    }

    type GetTokenizerStream = Answers<GetTokenizerChunk>;

    async fn get_tokenizer(
        &self,
        _: Request<GetTokenizerRequest>,
    ) -> Result<Response<Self::GetTokenizerStream>, Status> {
        let model = self.served.model().await?;
        let chunks = self.archives.chunks(&model).await?;
        Ok(Response::new(Box::pin(stream::iter(chunks.map(Ok)))))
    }

    type SubscribeKvEventsStream = Answers<KvEventBatch>;

    async fn subscribe_kv_events(
        &self,
        request: Request<SubscribeKvEventsRequest>,
    ) -> Result<Response<Self::SubscribeKvEventsStream>, Status> {
        // The first batch comes at once, so that no load comes before it whether asked for or not.
        let cursor = request.into_inner().start_sequence_number;
        let meter = self.meter.clone();
        let load = move || meter.read().record();
        let batches = self.feed.subscribe(cursor, load)?;
        Ok(Response::new(Box::pin(batches.map(|batch| batch.map_err(Status::from)))))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use sconce_engine::LoadSettings;
    use sconce_proto::compat::vllm::grpc::engine::SamplingParams;
    use sconce_proto::compat::vllm::grpc::engine::generate_request::Input;
    use sconce_proto::compat::vllm::grpc::engine::generate_response::Response as Said;

    use super::*;
    use crate::layer::deadline::Deadline;
    use crate::serve::ServePlan;

    /// Bytes of a text that is tokenized on another thread, so that who asks has to wait.
    const LONG: usize = 20_000;

    /// A service with one simulated model.
    async fn service() -> VllmEngine {
        let plan = ServePlan::default();
        let models = Models::start(&plan.engine, &plan.cache, plan.precision).expect("starts");
        let settings =
            LoadSettings { path: "sim:context=32768".to_owned(), ..LoadSettings::default() };
        models.load("sim", settings).await.expect("begins").finished().await.expect("loads");
        VllmEngine::new(models, Settings { model: None, sequences_max: 1 })
    }

    fn asks(text: String) -> Request<GenerateRequest> {
        // So many tokens that none that is begun ends before it is aborted.
        let params = SamplingParams {
            max_tokens: Some(1 << 20),
            ignore_eos: true,
            ..SamplingParams::default()
        };
        let mut request = Request::new(GenerateRequest {
            request_id: "a".to_owned(),
            input: Some(Input::Text(text)),
            sampling_params: Some(params),
            ..GenerateRequest::default()
        });
        let deadline = Deadline(Instant::now() + Duration::from_secs(60));
        request.extensions_mut().insert(deadline);
        request
    }

    #[tokio::test]
    async fn an_abort_is_heard_while_the_text_is_tokenized() {
        let service = service().await;
        let mut call = service.generate(asks("x".repeat(LONG)));
        assert!(futures::poll!(call.as_mut()).is_pending());
        let aborted = AbortRequest { request_ids: vec!["a".to_owned()] };
        service.abort(Request::new(aborted)).await.expect("is answered");
        let answers: Vec<_> = call.await.expect("ends in order").into_inner().collect().await;
        let [Ok(GenerateResponse { response: Some(Said::Complete(end)) })] = &answers[..] else {
            panic!("{answers:?}")
        };
        assert_eq!(end.finish_reason, "abort");
        assert_eq!(service.aborts.names(), 0);
    }

    #[tokio::test]
    async fn a_request_that_does_not_come_to_run_leaves_no_name_behind() {
        let service = service().await;
        let mut call = service.generate(asks("x".repeat(LONG)));
        assert!(futures::poll!(call.as_mut()).is_pending());
        assert_eq!(service.aborts.names(), 1);
        drop(call);
        assert_eq!(service.aborts.names(), 0, "its caller hung up");
        assert!(service.generate(asks("x".repeat(2 * LONG))).await.is_err());
        assert_eq!(service.aborts.names(), 0, "it is too long");
    }
}
