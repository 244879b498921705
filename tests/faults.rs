//! Faults of the engine as callers and probes see them: a device thread that panics, one that stands
//! still.

mod support;

use std::time::Duration;

use sconce_proto::health::health_check_response::ServingStatus;
use sconce_proto::health::{HealthCheckRequest, HealthCheckResponse};
use sconce_proto::v1::complete_response::Event;
use sconce_server::serve::{EnginePlan, ServeError, ServePlan};
use support::http::get;
use support::{Fixture, details, plan, tokens, within};
use tonic::{Code, Streaming};

/// A prompt of so many tokens.
fn prompt(len: usize) -> Vec<u32> {
    (0..len).map(|i| (i * 7 % 251) as u32).collect()
}

async fn watch(fixture: &Fixture, service: &str) -> Streaming<HealthCheckResponse> {
    let request = HealthCheckRequest { service: service.to_owned() };
    fixture.health().watch(request).await.expect("watches").into_inner()
}

async fn news(watch: &mut Streaming<HealthCheckResponse>) -> ServingStatus {
    watch.message().await.expect("is alive").expect("stays open").status()
}

#[tokio::test]
async fn a_panic_of_the_device_thread_ends_the_requests_it_had_and_readiness_for_a_while() {
    within(async {
        // The long prompt is what it dies of; the other runs beside it.
        let fixture = Fixture::with(plan("crash_at=100,decode_us=2000,context=1000000")).await;
        let (mut live, mut ready) =
            (watch(&fixture, "liveness").await, watch(&fixture, "readiness").await);
        assert_eq!(news(&mut live).await, ServingStatus::Serving);
        assert_eq!(news(&mut ready).await, ServingStatus::Serving);
        let mut beside = fixture.open(tokens(prompt(10), 80)).await.expect("is admitted");
        while !matches!(
            beside.message().await.expect("goes on").expect("an event").event,
            Some(Event::Delta(_))
        ) {}
        let killer = fixture.complete(tokens(prompt(120), 10)).await;
        details(&killer.expect_err("dies"), Code::Internal, "INTERNAL");
        let error = loop {
            match beside.message().await {
                Ok(message) => assert!(message.is_some(), "an end in order"),
                Err(error) => break error,
            }
        };
        details(&error, Code::Internal, "INTERNAL");
        assert_eq!(news(&mut ready).await, ServingStatus::NotServing);
        assert_eq!(news(&mut ready).await, ServingStatus::Serving);
        let after = fixture.complete(tokens(prompt(10), 4)).await.expect("goes on");
        assert_eq!(after.token_ids().len(), 4);
        assert_eq!(fixture.handle.models().device().restarts, 1);
        let page = get(&fixture.handle.local_addrs()[0], "/metrics").await.body;
        assert!(page.contains("\nsconce_engine_restarts_total 1\n"), "{page}");
        drop((ready, beside));
        fixture.settled().await;
        fixture.handle.shut_down();
        // It never died, as its watchers would have heard.
        assert!(live.message().await.expect("ends in order").is_none());
        drop((live, fixture.channel));
        fixture.task.await.expect("does not panic").expect("ends in order");
    })
    .await;
}

#[tokio::test]
async fn a_device_thread_that_keeps_panicking_ends_the_server() {
    within(async {
        let fixture = Fixture::with(plan("crash_at=100")).await;
        let mut refused = 0;
        // Refused while it restarts; the fourth panic is one too many.
        while !fixture.task.is_finished() {
            match fixture.complete(tokens(prompt(120), 10)).await {
                Ok(completed) => panic!("{completed:?}"),
                Err(error) => assert!(
                    matches!(error.code(), Code::Internal | Code::Unavailable | Code::Unknown),
                    "{error:?}"
                ),
            }
            refused += 1;
            assert!(refused < 100_000, "it goes on and on");
        }
        let error = fixture.task.await.expect("does not panic").expect_err("is lost");
        assert!(matches!(error, ServeError::EngineLost { restarts: 4 }), "{error}");
    })
    .await;
}

#[tokio::test]
async fn a_step_longer_than_any_is_the_end_of_liveness_until_it_is_over() {
    within(async {
        let step_time_max = Duration::from_millis(100);
        let with = |engine| ServePlan {
            engine: EnginePlan { step_time_max, ..engine },
            ..plan("prefill_us=200000")
        };
        let fixture = Fixture::with(with(plan("").engine)).await;
        let mut live = watch(&fixture, "liveness").await;
        assert_eq!(news(&mut live).await, ServingStatus::Serving);
        // Two seconds in one step.
        let completed = fixture.complete(tokens(prompt(10), 1));
        let heard = async {
            assert_eq!(news(&mut live).await, ServingStatus::NotServing);
            assert_eq!(news(&mut live).await, ServingStatus::Serving);
        };
        let (completed, ()) = tokio::join!(completed, heard);
        assert_eq!(completed.expect("ends in order").token_ids().len(), 1);
        drop(live);
        fixture.end().await;
    })
    .await;
}
