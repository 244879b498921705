//! `grpc.health.v1.Health` over a socket: which names, which states, what a watcher hears.

mod support;

use sconce_proto::health::health_check_response::ServingStatus;
use sconce_proto::health::{HealthCheckRequest, HealthListRequest};
use sconce_proto::names;
use sconce_proto::v1::{LoadRequest, UnloadRequest};
use support::{Fixture, MODEL, details, plan, within};
use tonic::Code;

const NEEDS_A_MODEL: &[&str] =
    &["", "readiness", names::INFERENCE_SERVICE, names::STATE_SERVICE, names::VLLM_ENGINE];
const ALWAYS: &[&str] = &["liveness", names::MODEL_SERVICE, names::HEALTH_SERVICE];

fn of(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.to_owned() }
}

async fn check(fixture: &Fixture, service: &str) -> ServingStatus {
    let answer = fixture.health().check(of(service)).await.expect("is registered");
    answer.into_inner().status()
}

#[tokio::test]
async fn every_registered_name_serves_once_a_model_is_ready() {
    within(async {
        let fixture = Fixture::start().await;
        for name in NEEDS_A_MODEL.iter().chain(ALWAYS) {
            assert_eq!(check(&fixture, name).await, ServingStatus::Serving, "{name:?}");
        }
        let list = fixture.health().list(HealthListRequest {}).await.expect("lists").into_inner();
        let mut listed: Vec<_> = list.statuses.keys().map(String::as_str).collect();
        let mut known: Vec<_> = NEEDS_A_MODEL.iter().chain(ALWAYS).copied().collect();
        listed.sort_unstable();
        known.sort_unstable();
        assert_eq!(listed, known);
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn an_unknown_name_is_not_found_by_check_and_unknown_to_watch() {
    within(async {
        let fixture = Fixture::start().await;
        let status = fixture.health().check(of("nobody")).await.expect_err("is not registered");
        let details = details(&status, Code::NotFound, "SERVICE_NOT_FOUND");
        assert_eq!(details.resource_info().expect("names the service").resource_name, "nobody");

        let mut watch = fixture.health().watch(of("nobody")).await.expect("opens").into_inner();
        let first = watch.message().await.expect("is alive").expect("says something");
        assert_eq!(first.status(), ServingStatus::ServiceUnknown);
        // It stays open: other calls go through while the next message does not come.
        let next = watch.message();
        tokio::select! {
            biased;
            news = next => panic!("expected silence, found {news:?}"),
            () = async { fixture.settled().await } => {}
        }
        drop(watch);
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn readiness_follows_the_models() {
    within(async {
        let mut empty = plan("");
        empty.models.clear();
        let server = sconce_server::serve::Server::bind(empty).await.expect("binds");
        let handle = server.handle();
        let task = tokio::spawn(server.run(std::future::pending()));
        let channel = support::connect(&handle).await;
        let mut health = sconce_proto::health::health_client::HealthClient::new(channel.clone());
        let mut models =
            sconce_proto::v1::model_service_client::ModelServiceClient::new(channel.clone());

        let mut watch = health.watch(of("readiness")).await.expect("opens").into_inner();
        let mut next = async || watch.message().await.expect("is alive").expect("is open").status();
        assert_eq!(next().await, ServingStatus::NotServing);
        let service = health.check(of(names::MODEL_SERVICE)).await.expect("is registered");
        assert_eq!(service.into_inner().status(), ServingStatus::Serving);

        let load = LoadRequest {
            model: MODEL.to_owned(),
            path: "sim:".to_owned(),
            ..LoadRequest::default()
        };
        let mut load = models.load(load).await.expect("begins").into_inner();
        while load.message().await.expect("loads").is_some() {}
        assert_eq!(next().await, ServingStatus::Serving);
        let unload = UnloadRequest { model: MODEL.to_owned() };
        models.unload(unload).await.expect("unloads");
        assert_eq!(next().await, ServingStatus::NotServing);

        handle.shut_down();
        task.await.expect("does not panic").expect("ends in order");
    })
    .await;
}
