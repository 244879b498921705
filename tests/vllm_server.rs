//! `vllm.grpc.engine.VllmEngine` about itself: health, labels, load, the tokenizer, which model.

mod support;

use std::io::Read as _;

use sconce_proto::compat::smg::grpc::common::{
    FlushCacheRequest, GetTokenizerRequest, StartProfileRequest, StopProfileRequest,
    SubscribeKvEventsRequest,
};
use sconce_proto::compat::vllm::grpc::engine::{
    EmbedRequest, GetLoadsRequest, GetModelInfoRequest, GetServerInfoRequest, HealthCheckRequest,
};
use sconce_proto::health::health_check_response::ServingStatus;
use sconce_proto::names;
use sconce_proto::v1::{GetStatusResponse, UnloadRequest};
use sconce_server::serve::ModelPlan;
use sha2::{Digest as _, Sha256};
use support::vllm::{bytes, engine, generate, greedy, request};
use support::{Fixture, MODEL, details, names_feature, names_field, plan, within};
use tonic::Code;

#[tokio::test]
async fn labels_say_what_the_model_and_the_server_are() {
    within(async {
        let fixture = Fixture::with(plan("context=512")).await;
        let mut client = engine(&fixture);
        let model = client.get_model_info(GetModelInfoRequest {}).await.expect("tells");
        let model = model.into_inner();
        assert_eq!(model.served_model_name, MODEL);
        assert!(model.is_generation && !model.supports_vision);
        assert_eq!((model.max_context_length, model.max_req_input_len), (512, 511));
        assert_eq!((model.vocab_size, model.bos_token_id), (259, 256));
        assert_eq!(model.eos_token_ids, [257]);
        assert!(model.tokenizer_path.starts_with('/'), "{}", model.tokenizer_path);
        assert_eq!(model.default_sampling_params_json, "");

        let before = client.get_server_info(GetServerInfoRequest {}).await.expect("tells");
        assert_eq!(before.into_inner().last_receive_timestamp, 0.0);
        generate(&fixture, request("a", bytes("x"), greedy(4))).await;
        let server = client.get_server_info(GetServerInfoRequest {}).await.expect("tells");
        let server = server.into_inner();
        assert_eq!((server.server_type.as_str(), server.data_parallel_size), ("sconce", 1));
        assert_eq!((server.block_size, server.max_num_seqs), (64, 64));
        assert!(server.last_receive_timestamp > 1e9 && !server.is_paused);

        let loads = client.get_loads(GetLoadsRequest::default()).await.expect("tells").into_inner();
        let load = &loads.loads[0];
        assert_eq!((loads.loads.len(), loads.dp_rank_count), (1, 1));
        assert_eq!((load.num_running_reqs, load.num_waiting_reqs, load.num_total_reqs), (0, 0, 0));
        assert_eq!(load.token_usage, 0.0, "what is remembered does not count");
        assert!(load.max_total_num_tokens >= 512 && load.max_running_requests == 64);
        let other = GetLoadsRequest { dp_rank: Some(1), include: Vec::new() };
        names_field(&client.get_loads(other).await.expect_err("is refused"), "dp_rank");
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn running_requests_count_as_load() {
    within(async {
        let fixture = Fixture::with(plan("decode_us=1000,context=100000")).await;
        let mut client = engine(&fixture);
        let mut stream = client
            .generate(request("a", vec![97; 1000], greedy(90_000)))
            .await
            .expect("runs")
            .into_inner();
        stream.message().await.expect("is alive").expect("says something");
        let loads = client.get_loads(GetLoadsRequest::default()).await.expect("tells").into_inner();
        assert_eq!(loads.loads[0].num_running_reqs, 1);
        assert!(loads.loads[0].token_usage > 0.0);
        assert_eq!(loads.loads[0].utilization, loads.loads[0].token_usage);
        let server = client.get_server_info(GetServerInfoRequest {}).await.expect("tells");
        assert_eq!(server.into_inner().active_requests, 1);
        drop(stream);
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn prompts_in_the_queue_count_as_tokens_to_compute() {
    within(async {
        let mut plan = plan("decode_us=1000,context=100000");
        (plan.engine.sequences_max, plan.engine.waiting_max) = (1, 2);
        let fixture = Fixture::with(plan).await;
        let mut client = engine(&fixture);
        let running = client.generate(request("a", bytes("x"), greedy(90_000))).await;
        let mut waiting = Vec::new();
        for (id, tokens) in [("b", 1000), ("c", 500)] {
            let mut client = client.clone();
            let asked = request(id, vec![97; tokens], greedy(4));
            waiting.push(tokio::spawn(async move { client.generate(asked).await }));
        }
        let wait = |count| {
            move |status: &GetStatusResponse| {
                status.sequences.is_some_and(|counts| counts.waiting == count)
            }
        };
        fixture.until("the queue is full", wait(2)).await;
        let refused = client.generate(request("d", vec![97; 2000], greedy(4))).await;
        details(&refused.expect_err("is refused"), Code::ResourceExhausted, "QUEUE_FULL");
        let loads = client.get_loads(GetLoadsRequest::default()).await.expect("tells").into_inner();
        let load = &loads.loads[0];
        assert_eq!((load.num_waiting_reqs, load.num_waiting_uncached_tokens), (2, 1500));
        let events = client.subscribe_kv_events(SubscribeKvEventsRequest::default()).await;
        let first = events.expect("opens").into_inner().message().await.expect("is alive");
        let load = first.expect("is open").load.expect("a load");
        assert_eq!((load.waiting_requests, load.waiting_uncached_tokens), (2, Some(1500)));

        waiting.iter().for_each(tokio::task::JoinHandle::abort);
        fixture.until("the queue is empty", wait(0)).await;
        let loads = client.get_loads(GetLoadsRequest::default()).await.expect("tells").into_inner();
        assert_eq!(loads.loads[0].num_waiting_uncached_tokens, 0);
        drop(running);
        fixture.end().await;
    })
    .await;
}

/// The bytes of the tokenizer's archive, and the digests of its chunks.
async fn tokenizer(fixture: &Fixture) -> (Vec<u8>, Vec<String>) {
    let mut client = engine(fixture);
    let mut stream =
        client.get_tokenizer(GetTokenizerRequest {}).await.expect("opens").into_inner();
    let (mut archive, mut digests) = (Vec::new(), Vec::new());
    while let Some(chunk) = stream.message().await.expect("runs on") {
        archive.extend_from_slice(&chunk.data);
        digests.push(chunk.sha256);
    }
    (archive, digests)
}

#[tokio::test]
async fn the_tokenizer_comes_as_an_archive_with_a_digest() {
    within(async {
        let fixture = Fixture::start().await;
        let (archive, mut digests) = tokenizer(&fixture).await;
        let digest: String = Sha256::digest(&archive).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(digests.pop(), Some(digest));
        assert!(digests.iter().all(String::is_empty), "only the last chunk has it");
        // It is kept for whoever comes next.
        assert_eq!(tokenizer(&fixture).await.0, archive);

        let mut zip = zip::ZipArchive::new(std::io::Cursor::new(archive)).expect("is an archive");
        let mut text = |name: &str| {
            let mut text = String::new();
            zip.by_name(name).expect(name).read_to_string(&mut text).expect("is text");
            text
        };
        let config: serde_json::Value =
            serde_json::from_str(&text("tokenizer_config.json")).expect("is JSON");
        assert_eq!(config["eos_token"], "<|end|>");
        assert!(config["chat_template"].as_str().is_some_and(|template| template.contains("role")));
        let tokenizer: serde_json::Value =
            serde_json::from_str(&text("tokenizer.json")).expect("is JSON");
        assert_eq!(tokenizer["model"]["vocab"]["a"], 97);
        assert!(text("generation_config.json").contains("257"));
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn health_follows_the_model_and_the_drain() {
    within(async {
        let mut plan = plan("");
        plan.drain.withdrawal = std::time::Duration::from_secs(3600);
        let fixture = Fixture::with(plan).await;
        let mut client = engine(&fixture);
        let healthy = client.health_check(HealthCheckRequest {}).await.expect("tells").into_inner();
        assert!(healthy.healthy, "{healthy:?}");
        let registered = async || {
            let service = names::VLLM_ENGINE.to_owned();
            let request = sconce_proto::health::HealthCheckRequest { service };
            fixture.health().check(request).await.expect("is registered").into_inner().status()
        };
        assert_eq!(registered().await, ServingStatus::Serving);
        let unload = UnloadRequest { model: MODEL.to_owned() };
        fixture.models().unload(unload).await.expect("unloads");
        let refused = client.health_check(HealthCheckRequest {}).await;
        details(&refused.expect_err("is refused"), Code::Unavailable, "NO_MODEL_READY");
        let refused = client.generate(request("a", bytes("x"), greedy(4))).await;
        details(&refused.expect_err("is refused"), Code::Unavailable, "NO_MODEL_READY");
        let refused = client.get_model_info(GetModelInfoRequest {}).await;
        details(&refused.expect_err("is refused"), Code::Unavailable, "NO_MODEL_READY");
        fixture.handle.shut_down();
        fixture.until("draining", |status| status.draining).await;
        let healthy = client.health_check(HealthCheckRequest {}).await.expect("tells").into_inner();
        assert!(!healthy.healthy && healthy.message.contains("shutting down"), "{healthy:?}");
        fixture.handle.close();
        drop((client, fixture.channel));
        fixture.task.await.expect("does not panic").expect("ends in order");
    })
    .await;
}

#[tokio::test]
async fn of_several_models_the_setting_says_which() {
    within(async {
        let mut several = plan("");
        let other = ModelPlan {
            name: "other".to_owned(),
            path: "sim:seed=7,context=99".to_owned(),
            ..several.models[0].clone()
        };
        several.models.push(other);
        let fixture = Fixture::with(several.clone()).await;
        let refused = engine(&fixture).get_model_info(GetModelInfoRequest {}).await;
        let refused = refused.expect_err("is refused");
        let details = details(&refused, Code::FailedPrecondition, "MODEL_NOT_CHOSEN");
        let violations = &details.precondition_failure().expect("what to set").violations;
        assert_eq!(violations[0].subject, "compat.vllm_model");
        fixture.end().await;

        several.compat.vllm_model = Some("other".to_owned());
        let fixture = Fixture::with(several).await;
        let told = engine(&fixture).get_model_info(GetModelInfoRequest {}).await.expect("tells");
        assert_eq!(told.into_inner().max_context_length, 99);
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn it_can_be_turned_off() {
    within(async {
        let mut off = plan("");
        off.compat.vllm = false;
        let fixture = Fixture::with(off).await;
        let refused = engine(&fixture).health_check(HealthCheckRequest {}).await;
        details(&refused.expect_err("is not there"), Code::Unimplemented, "METHOD_NOT_FOUND");
        let service = names::VLLM_ENGINE.to_owned();
        let request = sconce_proto::health::HealthCheckRequest { service };
        let unknown = fixture.health().check(request).await.expect_err("is not registered");
        assert_eq!(unknown.code(), Code::NotFound);
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn what_it_does_not_do_it_says() {
    within(async {
        let fixture = Fixture::start().await;
        let mut client = engine(&fixture);
        let embed = client.embed(EmbedRequest::default()).await;
        names_feature(&embed.expect_err("is refused"), "Embed");
        let start = client.start_profile(StartProfileRequest::default()).await;
        names_feature(&start.expect_err("is refused"), "StartProfile");
        let stop = client.stop_profile(StopProfileRequest {}).await;
        names_feature(&stop.expect_err("is refused"), "StopProfile");
        let flush = client.flush_cache(FlushCacheRequest { timeout_s: -1.0 }).await;
        names_field(&flush.expect_err("is refused"), "timeout_s");
        fixture.end().await;
    })
    .await;
}
