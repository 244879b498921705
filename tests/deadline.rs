//! Deadlines over a socket: in the queue, in prefill, in the stream; malformed and capped ones.

mod support;

use std::time::Duration;

use sconce_proto::v1::FinishReason;
use support::patient::{patient, with_header, with_timeout};
use support::{Fixture, collect, details, plan, text, tokens, within};
use tonic::Code;

#[tokio::test]
async fn a_deadline_that_passes_in_the_queue_fails_before_the_first_message() {
    within(async {
        let mut plan = plan("decode_us=1000,context=1000000");
        plan.engine.sequences_max = 1;
        let fixture = Fixture::with(plan).await;
        let mut occupant = fixture.open(text("busy", 900_000)).await.expect("is admitted");
        occupant.message().await.expect("is alive").expect("says something");

        let request = with_timeout(text("late", 4), Duration::from_millis(100));
        let status = patient(&fixture.handle).complete(request).await.expect_err("is too late");
        details(&status, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
        fixture
            .until("only the occupant", |status| {
                status.sequences.is_some_and(|counts| counts.waiting == 0 && counts.running == 1)
            })
            .await;
        drop(occupant);
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_deadline_that_passes_in_prefill_ends_with_an_account() {
    within(async {
        // A prompt of 32 s in chunks of 80 ms.
        let mut plan = plan("prefill_us=10000");
        plan.engine.prefill_chunk_tokens = 8;
        let fixture = Fixture::with(plan).await;
        let request = with_timeout(tokens(vec![97; 3200], 4), Duration::from_secs(1));
        let stream = patient(&fixture.handle).complete(request).await.expect("is admitted");
        let completed = collect(stream.into_inner()).await;
        details(
            &completed.status.clone().expect("fails"),
            Code::DeadlineExceeded,
            "DEADLINE_EXCEEDED",
        );
        let finished = completed.finished();
        assert_eq!(finished.reason(), FinishReason::Deadline);
        let usage = finished.usage.expect("a usage");
        assert_eq!((usage.prompt_tokens, usage.completion_tokens), (3200, 0));
        assert_eq!(finished.timings.expect("timings").first_token, None);
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_deadline_that_passes_in_one_long_step_is_answered_before_the_step_ends() {
    within(async {
        // One step of 5 s; the request ends well before it does.
        let fixture = Fixture::with(plan("prefill_us=2500")).await;
        let request = with_timeout(tokens(vec![97; 2000], 4), Duration::from_millis(500));
        let stream = patient(&fixture.handle).complete(request).await.expect("is admitted");
        let completed = collect(stream.into_inner()).await;
        details(
            &completed.status.clone().expect("fails"),
            Code::DeadlineExceeded,
            "DEADLINE_EXCEEDED",
        );
        assert_eq!(completed.finished().reason(), FinishReason::Deadline);
        let timings = completed.finished().timings.expect("timings");
        assert!(timings.prefill.expect("a time").seconds < 4, "waited for the step: {timings:?}");
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_deadline_that_passes_in_the_stream_ends_with_an_account() {
    within(async {
        let fixture = Fixture::with(plan("decode_us=1000,context=1000000")).await;
        let request = with_timeout(text("forever", 900_000), Duration::from_secs(1));
        let stream = patient(&fixture.handle).complete(request).await.expect("is admitted");
        let completed = collect(stream.into_inner()).await;
        details(
            &completed.status.clone().expect("fails"),
            Code::DeadlineExceeded,
            "DEADLINE_EXCEEDED",
        );
        let finished = completed.finished();
        assert_eq!(finished.reason(), FinishReason::Deadline);
        let counted = finished.usage.expect("a usage").completion_tokens as usize;
        assert_eq!(counted, completed.token_ids().len());
        assert!(counted > 0, "no token in 1 s of 1 ms steps");
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn the_servers_limit_bounds_requests_without_a_deadline() {
    within(async {
        let mut plan = plan("decode_us=1000,context=1000000");
        plan.limits.request_seconds_max = Duration::from_secs(1);
        let fixture = Fixture::with(plan).await;
        let completed = collect(fixture.open(text("forever", 900_000)).await.expect("opens")).await;
        details(
            &completed.status.clone().expect("fails"),
            Code::DeadlineExceeded,
            "DEADLINE_EXCEEDED",
        );
        assert_eq!(completed.finished().reason(), FinishReason::Deadline);

        let long = with_header(text("forever", 900_000), "1H");
        let stream = patient(&fixture.handle).complete(long).await.expect("is admitted");
        let completed = collect(stream.into_inner()).await;
        assert_eq!(completed.status.expect("fails").code(), Code::DeadlineExceeded);
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_deadline_that_has_passed_is_refused_at_once() {
    within(async {
        let fixture = Fixture::start().await;
        let request = with_header(text("late", 4), "0n");
        let status = patient(&fixture.handle).complete(request).await.expect_err("is too late");
        details(&status, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_malformed_deadline_is_refused() {
    within(async {
        let fixture = Fixture::start().await;
        for malformed in ["1", "S", "1x", "123456789S", "-1S", "1.5S"] {
            let request = with_header(text("a", 4), malformed);
            let status = patient(&fixture.handle).complete(request).await.expect_err(malformed);
            details(&status, Code::InvalidArgument, "INVALID_METADATA");
            assert!(status.message().contains("grpc-timeout"), "{status:?}");
        }
        fixture.end().await;
    })
    .await;
}
