//! Shutdown over a socket: withdrawn, closed, drained, cut off.

mod support;

use std::time::Duration;

use sconce_proto::health::HealthCheckRequest;
use sconce_proto::health::health_check_response::ServingStatus;
use sconce_proto::v1::FinishReason;
use support::{Fixture, collect, details, plan, text, within};
use tonic::Code;

const SLOW: &str = "decode_us=1000,context=1000000";

#[tokio::test]
async fn a_withdrawn_server_says_so_and_still_answers() {
    within(async {
        let mut plan = plan("");
        plan.drain.withdrawal = Duration::from_secs(3600);
        let fixture = Fixture::with(plan).await;
        let service = "readiness".to_owned();
        let mut watch = fixture
            .health()
            .watch(HealthCheckRequest { service })
            .await
            .expect("opens")
            .into_inner();
        let mut next = async || watch.message().await.expect("is alive").expect("is open").status();
        assert_eq!(next().await, ServingStatus::Serving);
        fixture.handle.shut_down();
        assert_eq!(next().await, ServingStatus::NotServing);
        assert!(fixture.status().await.draining);
        let completed = fixture.complete(text("still", 4)).await.expect("is served");
        assert_eq!(completed.token_ids().len(), 4);

        fixture.handle.close();
        assert_eq!(watch.message().await.expect("ends in order"), None);
        fixture.task.await.expect("does not panic").expect("ends in order");
    })
    .await;
}

#[tokio::test]
async fn what_runs_when_the_server_closes_runs_to_its_end() {
    within(async {
        let fixture = Fixture::with(plan(SLOW)).await;
        let mut stream = fixture.open(text("running", 300)).await.expect("opens");
        stream.message().await.expect("is alive").expect("says something");
        fixture.handle.shut_down();
        let mut tokens = 0;
        let mut finished = None;
        while let Some(message) = stream.message().await.expect("runs on") {
            match message.event.expect("an event") {
                sconce_proto::v1::complete_response::Event::Delta(delta) => {
                    tokens += delta.token_ids.len();
                }
                sconce_proto::v1::complete_response::Event::Finished(last) => finished = Some(last),
                other => panic!("unexpected {other:?}"),
            }
        }
        assert_eq!(tokens, 300);
        assert_eq!(finished.expect("a last message").reason(), FinishReason::Length);
        fixture.task.await.expect("does not panic").expect("ends in order");
    })
    .await;
}

#[tokio::test]
async fn what_does_not_end_in_time_is_cut_off_with_an_account() {
    within(async {
        let mut plan = plan(SLOW);
        plan.drain.drain = Duration::from_millis(50);
        let fixture = Fixture::with(plan).await;
        let mut stream = fixture.open(text("forever", 900_000)).await.expect("opens");
        let first = stream.message().await.expect("is alive").expect("says something");
        assert!(first.event.is_some());
        fixture.handle.shut_down();
        let mut finished = None;
        let status = loop {
            match stream.message().await {
                Ok(Some(message)) => {
                    use sconce_proto::v1::complete_response::Event;
                    if let Some(Event::Finished(last)) = message.event {
                        finished = Some(last);
                    }
                }
                Ok(None) => panic!("the stream ended in order"),
                Err(status) => break status,
            }
        };
        details(&status, Code::Unavailable, "DRAINING");
        let finished = finished.expect("an account");
        assert_eq!(finished.reason(), FinishReason::Shutdown);
        assert_eq!(finished.usage.expect("a usage").prompt_tokens, 7);
        fixture.task.await.expect("does not panic").expect("ends in order");
    })
    .await;
}

#[tokio::test]
async fn a_closed_server_takes_nothing_new() {
    within(async {
        let fixture = Fixture::with(plan(SLOW)).await;
        let stream = fixture.open(text("running", 900_000)).await.expect("opens");
        let address = fixture.handle.local_addrs()[0].to_string();
        fixture.handle.shut_down();
        // The listener closes; connections are refused from then on.
        loop {
            match tokio::net::TcpStream::connect(&address).await {
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => break,
                // Accepted still, or reset while it waited to be.
                Ok(_) | Err(_) => tokio::task::yield_now().await,
            }
        }
        let status = fixture.open(text("new", 4)).await.expect_err("is refused");
        // CANCELLED is what this client says of a call that its connection would not take.
        assert!(matches!(status.code(), Code::Unavailable | Code::Cancelled), "{status:?}");
        drop(stream);
        fixture.task.await.expect("does not panic").expect("ends in order");
    })
    .await;
}

#[tokio::test]
async fn an_idle_server_ends_at_once() {
    within(async {
        let fixture = Fixture::start().await;
        let completed = collect(fixture.open(text("a", 2)).await.expect("opens")).await;
        assert!(completed.status.is_none());
        // The connection stays open; GOAWAY closes it.
        fixture.handle.shut_down();
        fixture.task.await.expect("does not panic").expect("ends in order");
    })
    .await;
}
