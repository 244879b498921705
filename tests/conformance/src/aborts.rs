//! The three ways in which the gateway gives up a request, and that each frees its place.

use std::time::Duration;

use futures::StreamExt as _;
use serde_json::json;
use tonic::Code;

use crate::requests::{bytes, chat, endless};
use crate::worker::{SLOW, Worker, answered, read, run, until_load, within};

/// One place to run in, one in the queue.
const NARROW: [(&str, &str); 2] = [("ENGINE__SEQUENCES_MAX", "1"), ("ENGINE__WAITING_MAX", "1")];

#[tokio::test]
async fn an_abort_ends_the_stream_with_a_last_message() {
    within(async {
        let worker = Worker::start(SLOW, &[]);
        let client = worker.client().await;
        let mut stream = client.generate(endless("mine")).await.expect("runs");
        stream.next().await.expect("is open").expect("is alive");
        let reason = || "by hand".to_owned();
        client.abort_request("unknown".to_owned(), reason()).await.expect("is passed over");
        client.abort_request("mine".to_owned(), reason()).await.expect("is answered");
        let said = read(stream).await;
        assert!(said.status.is_none(), "{said:?}");
        let end = said.end();
        assert_eq!(end.finish_reason, "abort");
        // One more was read above.
        assert_eq!(end.completion_tokens as usize, said.ids(0).len() + 1);
        until_load(&client, 0, 0).await;
    })
    .await;
}

#[tokio::test]
async fn a_stream_that_is_dropped_is_aborted_by_the_client_and_makes_room() {
    within(async {
        let worker = Worker::start(SLOW, &NARROW);
        let client = worker.client().await;
        // The client reads a dropped stream on until the server ends it; a test is done long before.
        let patient = Duration::from_secs(3600);
        let stream = client.generate(endless("a")).await.expect("runs");
        let other = client.clone();
        let next = tokio::spawn(async move {
            run(&other, chat("b", bytes("y"), json!({"max_completion_tokens": 3}))).await
        });
        until_load(&client, 1, 1).await;
        drop(stream.with_release_drain_bound(patient));
        assert_eq!(next.await.expect("does not panic").end().finish_reason, "length");

        // Likewise where the client waits for the first token before it aborts.
        let stream = client.generate(endless("c")).await.expect("runs");
        drop(stream.defer_abort_until_first_item().with_release_drain_bound(patient));
        until_load(&client, 0, 0).await;
    })
    .await;
}

#[tokio::test]
async fn a_stream_that_is_reset_without_an_abort_makes_room() {
    within(async {
        let worker = Worker::start(SLOW, &NARROW);
        let client = worker.client().await;
        let mut stream = client.generate(endless("a")).await.expect("runs");
        stream.next().await.expect("is open").expect("is alive");
        // So the client takes it for complete, and sends no abort.
        stream.mark_completed();
        drop(stream);
        until_load(&client, 0, 0).await;

        // A client of HTTP who does not stream and goes away: the call is dropped before its answer.
        let running = client.generate(endless("b")).await.expect("runs");
        let other = client.clone();
        let waiting = tokio::spawn(async move {
            run(&other, chat("c", bytes("y"), json!({"max_completion_tokens": 900}))).await
        });
        until_load(&client, 1, 1).await;
        let full = client.generate(endless("d")).await.map(drop).expect_err("is refused");
        answered(&full, Code::ResourceExhausted);
        waiting.abort();
        until_load(&client, 1, 0).await;
        drop(running);
        until_load(&client, 0, 0).await;
    })
    .await;
}

#[tokio::test]
async fn a_request_that_waits_or_does_not_stream_can_be_aborted() {
    within(async {
        let worker = Worker::start(SLOW, &NARROW);
        let client = worker.client().await;
        let run = |id: &'static str| {
            let client = client.clone();
            let options = json!({"max_completion_tokens": 900_000, "ignore_eos": true});
            tokio::spawn(async move { run(&client, chat(id, bytes("x"), options)).await })
        };
        let running = run("runs");
        until_load(&client, 1, 0).await;
        let waiting = run("waits");
        until_load(&client, 1, 1).await;
        for id in ["waits", "runs"] {
            client.abort_request(id.to_owned(), String::new()).await.expect("is answered");
        }
        for run in [running, waiting] {
            assert_eq!(run.await.expect("does not panic").end().finish_reason, "abort");
        }
        until_load(&client, 0, 0).await;
    })
    .await;
}
