//! Clients that go away or stop reading, over a socket: what they held is freed, others go on.

mod support;

use sconce_proto::v1::CompleteRequest;
use sconce_proto::v1::complete_response::Event;
use support::{Fixture, details, plan, text, tokens, within};
use tonic::Code;

/// A model that takes its time, so that a completion is still running when it is cancelled.
const SLOW: &str = "decode_us=1000,context=1000000";

#[tokio::test]
async fn dropping_the_stream_frees_the_sequence() {
    within(async {
        let fixture = Fixture::with(plan(SLOW)).await;
        let mut stream = fixture.open(text("forever", 900_000)).await.expect("opens");
        for _ in 0..3 {
            stream.message().await.expect("is alive").expect("goes on");
        }
        fixture
            .until("one running", |status| {
                status.sequences.is_some_and(|counts| counts.running == 1)
            })
            .await;
        drop(stream);
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_call_dropped_in_the_queue_leaves_it() {
    within(async {
        let mut plan = plan(SLOW);
        plan.engine.sequences_max = 1;
        let fixture = Fixture::with(plan).await;
        let occupant = fixture.open(text("busy", 900_000)).await.expect("opens");
        {
            let waiting = fixture.open(text("next", 4));
            let seen = fixture.until("one waiting", |status| {
                status.sequences.is_some_and(|counts| counts.waiting == 1)
            });
            tokio::select! {
                opened = waiting => panic!("admitted beside the occupant: {opened:?}"),
                () = seen => {}
            }
        }
        fixture
            .until("none waiting", |status| {
                status.sequences.is_some_and(|counts| (counts.waiting, counts.running) == (0, 1))
            })
            .await;
        drop(occupant);
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_stream_dropped_in_prefill_is_not_computed_further() {
    within(async {
        // A prefill of ten minutes in chunks of 10 ms.
        let mut plan = plan("prefill_us=1000,context=1000000");
        plan.engine.prefill_chunk_tokens = 10;
        let fixture = Fixture::with(plan).await;
        let mut stream = fixture.open(tokens(vec![97; 600_000], 4)).await.expect("opens");
        let first = stream.message().await.expect("is alive").expect("says something");
        assert!(matches!(first.event, Some(Event::Started(_))));
        drop(stream);
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_client_that_stops_reading_does_not_stop_others() {
    within(async {
        let fixture = Fixture::with(plan("context=10000000")).await;
        let channel = support::connect(&fixture.handle).await;
        let mut client =
            sconce_proto::v1::inference_service_client::InferenceServiceClient::new(channel);
        let endless = CompleteRequest { logprobs: Some(20), ..text("forever", 9_000_000) };
        let mut stalled = client.complete(endless).await.expect("opens").into_inner();
        stalled.message().await.expect("is alive").expect("says something");
        // Nobody reads `stalled` from here on; its windows fill and its sequence pauses.
        for i in 0..20 {
            let completed = fixture.complete(text(&format!("other {i}"), 50)).await;
            assert_eq!(completed.expect("completes").token_ids().len(), 50);
        }
        drop(stalled);
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_breaks_frees_all_its_sequences() {
    within(async {
        let fixture = Fixture::with(plan(SLOW)).await;
        let channel = support::connect(&fixture.handle).await;
        let client =
            sconce_proto::v1::inference_service_client::InferenceServiceClient::new(channel);
        let mut streams = Vec::new();
        for _ in 0..8 {
            let stream = client.clone().complete(text("forever", 900_000)).await.expect("opens");
            streams.push(stream.into_inner());
        }
        fixture
            .until("all running", |status| {
                status.sequences.is_some_and(|counts| counts.running == 8)
            })
            .await;
        drop((client, streams));
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_full_queue_refuses_before_the_first_message() {
    within(async {
        let mut plan = plan(SLOW);
        plan.engine.sequences_max = 1;
        plan.engine.waiting_max = 1;
        let fixture = Fixture::with(plan).await;
        let occupant = fixture.open(text("busy", 900_000)).await.expect("opens");
        {
            let waiting = fixture.open(text("next", 4));
            let refused = async {
                fixture
                    .until("one waiting", |status| {
                        status.sequences.is_some_and(|counts| counts.waiting == 1)
                    })
                    .await;
                fixture.inference().complete(text("too many", 4)).await
            };
            let refused = tokio::select! {
                opened = waiting => panic!("admitted beside the occupant: {opened:?}"),
                refused = refused => refused,
            };
            let status = refused.expect_err("is refused");
            let details = details(&status, Code::ResourceExhausted, "QUEUE_FULL");
            let retry = details.retry_info().expect("a RetryInfo").retry_delay;
            assert!(retry.is_some_and(|delay| !delay.is_zero()));
            assert_eq!(details.quota_failure().expect("a QuotaFailure").violations.len(), 1);
        }
        drop(occupant);
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_step_that_fails_fails_its_request_and_no_other() {
    within(async {
        for bug in ["fail_at=200", "panic_at=200", "nan_at=200"] {
            let fixture = Fixture::with(plan(bug)).await;
            let status = fixture.refused(text("a", 300)).await;
            details(&status, Code::Internal, "INTERNAL");
            let completed = fixture.complete(text("a", 100)).await.expect(bug);
            assert_eq!(completed.token_ids().len(), 100);
            fixture.end().await;
        }
    })
    .await;
}
