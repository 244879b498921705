//! ModelService over a socket: Load, Unload, ListModels, EstimateLoad, GetStatus.

mod support;

use sconce_proto::v1::load_response::Event;
use sconce_proto::v1::{
    EstimateLoadRequest, ListModelsRequest, LoadProgress, LoadRequest, ModelInfo, ModelState, Tier,
    UnloadRequest,
};
use support::{Fixture, MODEL, details, names_field, plan, text, within};
use tonic::{Code, Status};

fn request(model: &str) -> LoadRequest {
    LoadRequest { model: model.to_owned(), path: "sim:".to_owned(), ..LoadRequest::default() }
}

async fn load(
    fixture: &Fixture,
    request: LoadRequest,
) -> Result<(Vec<LoadProgress>, ModelInfo), Status> {
    let mut stream = fixture.models().load(request).await?.into_inner();
    let mut steps = Vec::new();
    while let Some(message) = stream.message().await? {
        match message.event.expect("an event") {
            Event::Progress(progress) => steps.push(progress),
            Event::ModelInfo(info) => {
                assert_eq!(stream.message().await.expect("no error"), None, "after the last");
                return Ok((steps, info));
            }
        }
    }
    panic!("the stream ended without a model");
}

async fn refused(fixture: &Fixture, request: LoadRequest) -> Status {
    load(fixture, request).await.expect_err("is refused")
}

async fn names(fixture: &Fixture) -> Vec<String> {
    let listed = fixture.models().list_models(ListModelsRequest {}).await.expect("lists");
    listed.into_inner().models.into_iter().map(|model| model.model).collect()
}

async fn unload(fixture: &Fixture, model: &str) -> Result<(), Status> {
    let request = UnloadRequest { model: model.to_owned() };
    fixture.models().unload(request).await.map(drop)
}

#[tokio::test]
async fn a_load_tells_its_stages_and_then_the_model() {
    within(async {
        let fixture = Fixture::start().await;
        let (steps, info) = load(&fixture, request("a")).await.expect("loads");
        assert!(!steps.is_empty());
        assert!(steps.is_sorted_by_key(|step| step.stage), "{steps:?}");
        assert_eq!((info.model.as_str(), info.architecture.as_str()), ("a", "sim"));
        assert!(info.has_chat_template && info.vocab_size >= 256 && info.context_length > 0);
        assert_eq!(names(&fixture).await, ["a", MODEL]);
        unload(&fixture, "a").await.expect("unloads");
        assert_eq!(names(&fixture).await, [MODEL]);
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_second_load_with_the_same_settings_answers_at_once() {
    within(async {
        let fixture = Fixture::start().await;
        let (_, first) = load(&fixture, request("a")).await.expect("loads");
        let (steps, second) = load(&fixture, request("a")).await.expect("is there");
        assert_eq!((steps, second), (Vec::new(), first));
        unload(&fixture, "a").await.expect("unloads");
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn loads_at_once_of_one_model_are_one_load() {
    within(async {
        let fixture = Fixture::start().await;
        let loads = futures::future::join_all((0..4).map(|_| load(&fixture, request("a")))).await;
        let infos: Vec<_> = loads.into_iter().map(|load| load.expect("loads").1).collect();
        assert!(infos.iter().all(|info| info == &infos[0]));
        unload(&fixture, "a").await.expect("unloads");
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn dropping_the_stream_cancels_the_load() {
    within(async {
        let fixture = Fixture::start().await;
        let path = "sim:load_ms=600000,load_steps=10000,weights_bytes=1000000".to_owned();
        let mut load = fixture
            .models()
            .load(LoadRequest { path, ..request("slow") })
            .await
            .expect("begins")
            .into_inner();
        let mut bytes = 0;
        while bytes == 0 {
            let message = load.message().await.expect("is alive").expect("goes on");
            let Some(Event::Progress(progress)) = message.event else {
                panic!("expected progress, found {message:?}");
            };
            bytes = progress.bytes_done;
        }
        let status = fixture.status().await;
        let slow = status.models.iter().find(|model| model.model == "slow").expect("is known");
        assert_eq!(slow.state(), ModelState::Loading);
        assert!(slow.progress.is_some());
        assert_eq!(status.memory[0].weights_bytes, 1_000_000);

        let completion =
            sconce_proto::v1::CompleteRequest { model: "slow".to_owned(), ..text("x", 2) };
        let status = fixture.refused(completion).await;
        let details = details(&status, Code::FailedPrecondition, "MODEL_NOT_READY");
        let violations = &details.precondition_failure().expect("a violation").violations;
        assert_eq!(violations[0].r#type, "MODEL_STATE");

        drop(load);
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn an_unload_cancels_a_load() {
    within(async {
        let fixture = Fixture::start().await;
        let path = "sim:load_ms=600000,load_steps=10000".to_owned();
        let slow = load(&fixture, LoadRequest { path, ..request("slow") });
        let unloaded = async {
            fixture.until("a load", |status| status.models.len() == 2).await;
            unload(&fixture, "slow").await
        };
        let (slow, unloaded) = futures::future::join(slow, unloaded).await;
        details(&slow.expect_err("was cancelled"), Code::Aborted, "LOAD_CANCELLED");
        unloaded.expect("was there");
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_name_taken_with_other_settings_exists_already() {
    within(async {
        let fixture = Fixture::start().await;
        let other = LoadRequest { context_length: Some(128), ..request(MODEL) };
        let details = details(&refused(&fixture, other).await, Code::AlreadyExists, "MODEL_EXISTS");
        let resource = details.resource_info().expect("names the model");
        assert_eq!(resource.resource_name, MODEL);
        assert!(resource.description.contains("128"), "{resource:?}");
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn every_field_of_a_load_is_checked() {
    within(async {
        let fixture = Fixture::start().await;
        let duration = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        let cases = [
            ("model", request("")),
            ("model", request("no spaces")),
            ("path", LoadRequest { path: String::new(), ..request("a") }),
            ("context_length", LoadRequest { context_length: Some(0), ..request("a") }),
            ("keep_alive", LoadRequest { keep_alive: duration(0), ..request("a") }),
            ("keep_alive", LoadRequest { keep_alive: duration(-1), ..request("a") }),
            ("quantize", LoadRequest { quantize: Some("int5".to_owned()), ..request("a") }),
            // A simulated model has no weights.
            ("quantize", LoadRequest { quantize: Some("int4".to_owned()), ..request("a") }),
            ("path", LoadRequest { path: "sim:nonsense=1".to_owned(), ..request("a") }),
        ];
        for (field, request) in cases {
            names_field(&refused(&fixture, request).await, field);
        }
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn an_estimate_counts_quantized_weights_and_refuses_to_quantize_twice() {
    within(async {
        let fixture = Fixture::start().await;
        let estimate = async |name: &str, quantize: Option<&str>| {
            let path = format!("{}/models/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
            let quantize = quantize.map(str::to_owned);
            let asked = EstimateLoadRequest { path, quantize, context_length: None };
            fixture.models().estimate_load(asked).await.map(tonic::Response::into_inner)
        };
        let plain = estimate("llama_f32", None).await.expect("is a checkpoint");
        let smaller = estimate("llama_f32", Some("mxfp4")).await.expect("can be quantized");
        assert!(smaller.weights_bytes < plain.weights_bytes, "{smaller:?} of {plain:?}");
        let status = estimate("gguf_llama_q4_0.gguf", Some("mxfp4")).await.expect_err("has blocks");
        names_field(&status, "quantize");
        assert!(status.message().contains("full precision"), "{status:?}");
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_path_without_a_checkpoint_says_what_was_found() {
    within(async {
        let fixture = Fixture::start().await;
        let dir = tempfile::tempdir().expect("a temp dir");
        let at = |name: &str| LoadRequest {
            path: dir.path().join(name).display().to_string(),
            ..request("a")
        };
        let status = refused(&fixture, at("nothing.gguf")).await;
        let details = details(&status, Code::NotFound, "CHECKPOINT_NOT_FOUND");
        assert_eq!(details.resource_info().expect("names the path").resource_type, "checkpoint");

        std::fs::write(dir.path().join("text.gguf"), "no checkpoint").expect("writes");
        let status = refused(&fixture, at("text.gguf")).await;
        names_field(&status, "path");
        assert!(status.message().contains("text.gguf"), "{status:?}");
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_pipe_is_refused_and_holds_no_thread() {
    within(async {
        let fixture = Fixture::start().await;
        let dir = tempfile::tempdir().expect("a temp dir");
        let pipe = dir.path().join("pipe.gguf");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.expect("mkfifo is there").success());
        let path = pipe.to_str().expect("UTF-8").to_owned();
        for context_length in [None, Some(64)] {
            let load = LoadRequest { path: path.clone(), context_length, ..request("a") };
            names_field(&refused(&fixture, load).await, "path");
        }
        let estimate = EstimateLoadRequest { path, ..EstimateLoadRequest::default() };
        let status = fixture.models().estimate_load(estimate).await.expect_err("is a pipe");
        names_field(&status, "path");
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_context_over_what_the_checkpoint_allows_names_its_field() {
    within(async {
        let fixture = Fixture::start().await;
        let path = "sim:context=64".to_owned();
        let load = LoadRequest { path: path.clone(), context_length: Some(65), ..request("a") };
        let status = refused(&fixture, load).await;
        names_field(&status, "context_length");
        assert!(status.message().contains("64"), "{status:?}");
        let estimate = EstimateLoadRequest { path, context_length: Some(65), quantize: None };
        let status = fixture.models().estimate_load(estimate).await.expect_err("is too long");
        names_field(&status, "context_length");
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn an_unknown_model_cannot_be_unloaded() {
    within(async {
        let fixture = Fixture::start().await;
        let status = unload(&fixture, "nobody").await.expect_err("is not there");
        details(&status, Code::NotFound, "MODEL_NOT_FOUND");
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn an_unloaded_model_is_gone_for_completions() {
    within(async {
        let fixture = Fixture::start().await;
        load(&fixture, request("a")).await.expect("loads");
        let completion =
            sconce_proto::v1::CompleteRequest { model: "a".to_owned(), ..text("x", 2) };
        fixture.complete(completion.clone()).await.expect("completes");
        unload(&fixture, "a").await.expect("unloads");
        details(&fixture.refused(completion).await, Code::NotFound, "MODEL_NOT_FOUND");
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn an_idle_model_goes_after_its_keep_alive() {
    within(async {
        let fixture = Fixture::start().await;
        let keep_alive = Some(prost_types::Duration { seconds: 0, nanos: 1_000_000 });
        load(&fixture, LoadRequest { keep_alive, ..request("a") }).await.expect("loads");
        fixture.until("one model", |status| status.models.len() == 1).await;
        assert_eq!(names(&fixture).await, [MODEL]);
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn an_estimate_is_what_the_load_then_takes() {
    within(async {
        let fixture = Fixture::start().await;
        let estimate = EstimateLoadRequest { path: "sim:".to_owned(), ..Default::default() };
        let estimate = fixture.models().estimate_load(estimate).await.expect("estimates");
        let estimate = estimate.into_inner();
        let (_, info) = load(&fixture, request("a")).await.expect("loads");
        assert_eq!(estimate.context_length, info.context_length);
        assert_eq!(estimate.weights_bytes, info.weights_bytes);
        assert_eq!(estimate.workspace_bytes, info.workspace_bytes);
        assert_eq!(estimate.state_bytes, info.state_bytes);
        assert_eq!(
            estimate.total_bytes,
            estimate.weights_bytes + estimate.workspace_bytes + estimate.state_bytes
        );
        unload(&fixture, "a").await.expect("unloads");

        let nothing =
            EstimateLoadRequest { path: "/nothing/here".to_owned(), ..Default::default() };
        let status = fixture.models().estimate_load(nothing).await.expect_err("nothing there");
        details(&status, Code::NotFound, "CHECKPOINT_NOT_FOUND");
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn the_status_tells_tiers_models_and_sequences() {
    within(async {
        let fixture = Fixture::start().await;
        let status = fixture.status().await;
        let tiers: Vec<_> = status.memory.iter().map(|ledger| ledger.tier()).collect();
        assert_eq!(tiers, [Tier::Device, Tier::Host, Tier::Disk]);
        assert_eq!((status.models.len(), status.models[0].state()), (1, ModelState::Ready));
        assert!(!status.draining && !status.version.is_empty() && status.uptime.is_some());
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_load_over_the_budget_exhausts_the_memory() {
    within(async {
        let mut plan = plan("");
        plan.models.clear();
        plan.engine.memory_budget = Some(1000);
        let server = sconce_server::serve::Server::bind(plan).await.expect("binds");
        let handle = server.handle();
        let task = tokio::spawn(server.run(std::future::pending()));
        let mut client = sconce_proto::v1::model_service_client::ModelServiceClient::new(
            support::connect(&handle).await,
        );
        let path = "sim:weights_bytes=1001".to_owned();
        let load = LoadRequest { path, ..request("a") };
        let mut stream = client.load(load).await.expect("begins").into_inner();
        let status = loop {
            match stream.message().await {
                Ok(Some(message)) => {
                    assert!(!matches!(message.event, Some(Event::ModelInfo(_))), "it loaded");
                }
                Ok(None) => panic!("the stream ended without an error"),
                Err(status) => break status,
            }
        };
        let details = details(&status, Code::ResourceExhausted, "MEMORY_EXHAUSTED");
        assert!(details.retry_info().is_some() && details.quota_failure().is_some());
        handle.shut_down();
        task.await.expect("does not panic").expect("ends in order");
    })
    .await;
}

#[tokio::test]
async fn a_planned_model_that_cannot_be_loaded_ends_the_server() {
    within(async {
        let mut plan = plan("");
        plan.models[0].path = "/nothing/here".to_owned();
        let server = sconce_server::serve::Server::bind(plan).await.expect("binds");
        let error = server.run(std::future::pending()).await.expect_err("cannot load");
        let message = error.to_string();
        assert!(message.contains(MODEL) && message.contains("/nothing/here"), "{message}");
    })
    .await;
}
