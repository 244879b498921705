//! Server reflection, both versions, over a socket.

mod support;

use sconce_proto::names;
use support::{Fixture, details, plan, within};
use tokio_stream::StreamExt as _;
use tonic::Code;
use tonic_reflection::pb::{v1, v1alpha};

#[tokio::test]
async fn version_1_lists_the_services_and_their_files() {
    within(async {
        use v1::server_reflection_client::ServerReflectionClient;
        use v1::server_reflection_request::MessageRequest;
        use v1::server_reflection_response::MessageResponse;

        let fixture = Fixture::start().await;
        let ask = |message| v1::ServerReflectionRequest {
            message_request: Some(message),
            ..v1::ServerReflectionRequest::default()
        };
        let requests = tokio_stream::iter([
            ask(MessageRequest::ListServices(String::new())),
            ask(MessageRequest::FileContainingSymbol(names::INFERENCE_SERVICE.to_owned())),
        ]);
        let mut client = ServerReflectionClient::new(fixture.channel.clone());
        let mut answers =
            client.server_reflection_info(requests).await.expect("answers").into_inner();

        let listed = answers.next().await.expect("an answer").expect("no error");
        let Some(MessageResponse::ListServicesResponse(services)) = listed.message_response else {
            panic!("expected services, found {listed:?}");
        };
        let listed: Vec<_> = services.service.iter().map(|s| s.name.as_str()).collect();
        for name in [
            names::HEALTH_SERVICE,
            names::INFERENCE_SERVICE,
            names::MODEL_SERVICE,
            names::STATE_SERVICE,
            names::VLLM_ENGINE,
            "grpc.reflection.v1.ServerReflection",
        ] {
            assert!(listed.contains(&name), "{name} is not in {listed:?}");
        }
        let file = answers.next().await.expect("an answer").expect("no error");
        assert!(matches!(
            file.message_response,
            Some(MessageResponse::FileDescriptorResponse(files)) if !files.file_descriptor_proto.is_empty()
        ));
        drop(answers);
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn version_1alpha_lists_the_services() {
    within(async {
        use v1alpha::server_reflection_client::ServerReflectionClient;
        use v1alpha::server_reflection_request::MessageRequest;
        use v1alpha::server_reflection_response::MessageResponse;

        let fixture = Fixture::start().await;
        let request = v1alpha::ServerReflectionRequest {
            message_request: Some(MessageRequest::ListServices(String::new())),
            ..v1alpha::ServerReflectionRequest::default()
        };
        let mut client = ServerReflectionClient::new(fixture.channel.clone());
        let answers = client.server_reflection_info(tokio_stream::iter([request])).await;
        let answer = answers.expect("answers").into_inner().next().await;
        let answer = answer.expect("an answer").expect("no error");
        let Some(MessageResponse::ListServicesResponse(services)) = answer.message_response else {
            panic!("expected services, found {answer:?}");
        };
        assert!(services.service.iter().any(|s| s.name == names::MODEL_SERVICE));
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn reflection_can_be_switched_off() {
    within(async {
        use v1::server_reflection_client::ServerReflectionClient;

        let mut plan = plan("");
        plan.reflection = false;
        let fixture = Fixture::with(plan).await;
        let mut client = ServerReflectionClient::new(fixture.channel.clone());
        let request = v1::ServerReflectionRequest::default();
        let status = client
            .server_reflection_info(tokio_stream::iter([request]))
            .await
            .expect_err("is not served");
        details(&status, Code::Unimplemented, "METHOD_NOT_FOUND");
        fixture.end().await;
    })
    .await;
}
