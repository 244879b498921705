//! What a worker says of itself: health, labels, load; and how it refuses.

use std::process::Stdio;
use std::sync::Arc;

use serde_json::{Value, json};
use smg_grpc_client::TraceInjector;
use tonic::Code;
use tonic::metadata::{MetadataMap, MetadataValue};

use crate::requests::{bytes, chat, chat_with_tools, completion, endless, plain};
use crate::worker::{MODEL, SLOW, Worker, answered, load, run, until_load, within};

#[tokio::test]
async fn labels_are_what_the_gateway_needs_to_route() {
    within(async {
        let settings = [("ENGINE__SEQUENCES_MAX", "7")];
        let worker = Worker::start("sim:context=512", &settings);
        let client = worker.client().await;
        let health = client.health_check().await.expect("tells");
        assert!(health.healthy, "{health:?}");

        // The gateway makes labels of the fields as serde names them.
        let model = client.get_model_info().await.expect("tells");
        let model = serde_json::to_value(model).expect("labels");
        assert_eq!(model["served_model_name"], MODEL);
        assert_eq!(
            (&model["is_generation"], &model["supports_vision"]),
            (&true.into(), &false.into())
        );
        assert_eq!(
            (&model["max_context_length"], &model["vocab_size"]),
            (&512.into(), &259.into())
        );
        assert_eq!((&model["eos_token_ids"], &model["bos_token_id"]), (&json!([257]), &256.into()));
        for path in ["model_path", "tokenizer_path"] {
            // Else it is looked up as a name of a hub.
            assert!(model[path].as_str().is_some_and(|path| path.starts_with('/')), "{model:#}");
        }

        let server = client.get_server_info().await.expect("tells");
        let server = serde_json::to_value(server).expect("labels");
        assert_eq!((&server["block_size"], &server["max_num_seqs"]), (&64.into(), &7.into()));
        assert_eq!(
            (&server["data_parallel_size"], &server["is_paused"]),
            (&1.into(), &false.into())
        );
        assert_eq!(server["server_type"], "sconce");
        for nothing in ["kv_connector", "kv_role", "mm_processor", "constrained_decoding_start"] {
            assert_eq!(server[nothing], "", "{server:#}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_server_that_drains_is_unhealthy_and_still_serves() {
    within(async {
        let worker = Worker::start("sim:", &[("SERVER__WITHDRAWAL", "1h")]);
        let client = worker.client().await;
        worker.terminate();
        while client.health_check().await.expect("tells").healthy {}
        assert!(client.get_server_info().await.expect("tells").is_paused);
        let said =
            run(&client, chat("a", bytes("Once"), json!({"max_completion_tokens": 4}))).await;
        assert_eq!(said.end().completion_tokens, 4);
    })
    .await;
}

#[tokio::test]
async fn the_load_counts_what_runs_and_waits() {
    within(async {
        let worker = Worker::start(SLOW, &[("ENGINE__SEQUENCES_MAX", "1")]);
        let client = worker.client().await;
        let idle = load(&client).await;
        assert_eq!((idle.num_total_reqs, idle.token_usage), (0, 0.0));
        assert!(idle.max_total_num_tokens > 0 && idle.max_running_requests == 1, "{idle:?}");

        let running = client.generate(endless("runs")).await.expect("runs");
        let other = client.clone();
        let waiting = tokio::spawn(async move { other.generate(endless("waits")).await });
        until_load(&client, 1, 1).await;
        let busy = load(&client).await;
        assert_eq!(
            (busy.num_total_reqs, client.get_server_info().await.expect("tells").active_requests),
            (2, 2)
        );
        assert!(busy.token_usage > 0.0 && busy.num_used_tokens > 0, "{busy:?}");
        // Both are shares of the memory, as in what is pushed with events.
        assert_eq!(busy.utilization, busy.token_usage);
        waiting.abort();
        drop(running);
        until_load(&client, 0, 0).await;
    })
    .await;
}

#[tokio::test]
async fn what_is_not_offered_is_answered_as_such() {
    within(async {
        let worker = Worker::start("sim:", &[]);
        let client = worker.client().await;
        run(&client, chat("a", bytes("x"), json!({"max_completion_tokens": 1}))).await;
        let embed = client.build_embed_request("a".to_owned(), None, bytes("Once"));
        let refused = client.embed(embed).await.expect_err("is refused");
        answered(&refused, Code::Unimplemented);
        assert!(refused.message().contains("Embed"), "{refused:?}");

        let schema = json!({"type": "json_schema", "json_schema": {"name": "a", "schema": {}}});
        let grammar = "root ::= \"a\"";
        let tool = |kind| {
            let request = chat_with_tools("a", bytes("x"), json!({}), Some((kind, "{}")));
            request.expect("makes a Generate")
        };
        let constrained = [
            (
                "json_schema",
                chat("a", bytes("x"), json!({"response_format": {"type": "json_object"}})),
            ),
            ("json_schema", chat("a", bytes("x"), json!({"response_format": schema}))),
            ("regex", chat("a", bytes("x"), json!({"regex": "a+"}))),
            ("grammar", chat("a", bytes("x"), json!({"ebnf": grammar}))),
            ("json_schema", completion("a", bytes("x"), json!({"json_schema": "{}"}))),
            ("regex", plain("a", bytes("x"), true, json!({"regex": "a+"}))),
            ("structural_tag", tool("structural_tag")),
            ("json_schema", tool("json_schema")),
            ("grammar", tool("ebnf")),
            ("regex", tool("regex")),
        ];
        for (field, request) in constrained {
            let refused = client.generate(request).await.map(drop).expect_err("is refused");
            answered(&refused, Code::Unimplemented);
            let field = format!("sampling_params.{field}");
            assert!(refused.message().contains(&field), "{field}: {refused:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_is_the_callers_fault_and_a_full_queue_is_not() {
    within(async {
        let settings = [("ENGINE__SEQUENCES_MAX", "1"), ("ENGINE__WAITING_MAX", "1")];
        let worker = Worker::start("sim:decode_us=1000,context=1000000", &settings);
        let client = worker.client().await;
        let wrong = [
            ("tokenized.input_ids", chat("a", Vec::new(), json!({}))),
            ("tokenized.input_ids[0]", chat("a", vec![259], json!({}))),
            ("tokenized.input_ids", chat("a", vec![1; 1_000_000], json!({}))),
            ("sampling_params.max_tokens", completion("a", bytes("x"), json!({"max_tokens": 0}))),
            // HTTP has 128.
            ("sampling_params.n", completion("a", bytes("x"), json!({"n": 65}))),
        ];
        for (field, request) in wrong {
            let refused = client.generate(request).await.map(drop).expect_err("is refused");
            answered(&refused, Code::InvalidArgument);
            assert!(refused.message().starts_with(field), "{field}: {refused:?}");
        }

        let running = client.generate(endless("runs")).await.expect("runs");
        let other = client.clone();
        let waiting = tokio::spawn(async move { other.generate(endless("waits")).await });
        until_load(&client, 1, 1).await;
        let refused = client.generate(endless("c")).await.map(drop).expect_err("is refused");
        answered(&refused, Code::ResourceExhausted);
        waiting.abort();
        drop(running);
    })
    .await;
}

#[tokio::test]
async fn flushing_forgets_what_nobody_uses() {
    within(async {
        let worker = Worker::start("sim:", &[]);
        let client = worker.client().await;
        let prompt: Vec<u32> = (0..300).map(|i| i * 7 % 250).collect();
        let ask = || chat("a", prompt.clone(), json!({"max_completion_tokens": 2}));
        assert_eq!(run(&client, ask()).await.end().cached_tokens, 0);
        assert_eq!(run(&client, ask()).await.end().cached_tokens, 299);
        for timeout in [0.0, 5.0] {
            let flushed = client.flush_cache(timeout).await.expect("flushes");
            assert!(flushed.success, "{flushed:?}");
            assert_eq!(run(&client, ask()).await.end().cached_tokens, 0);
        }
        let refused = client.flush_cache(-1.0).await.expect_err("is refused");
        answered(&refused, Code::InvalidArgument);
    })
    .await;
}

/// Puts one trace into each call.
struct OneTrace;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

impl TraceInjector for OneTrace {
    fn inject(
        &self,
        metadata: &mut MetadataMap,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let parent = format!("00-{TRACE}-b7ad6b7169203331-01");
        metadata.insert("traceparent", MetadataValue::try_from(parent)?);
        Ok(())
    }
}

#[tokio::test]
async fn the_trace_of_a_call_is_in_the_servers_log() {
    within(async {
        let settings = [("TELEMETRY__LOG", "info"), ("TELEMETRY__LOG_FORMAT", "json")];
        let mut worker = Worker::with_log("sim:", &settings, Stdio::piped());
        let client = worker.client().await.with_trace_injector(Arc::new(OneTrace));
        run(&client, chat("a", bytes("Once"), json!({"max_completion_tokens": 2}))).await;
        let mut lines = worker.log();
        let told = tokio::task::spawn_blocking(move || {
            let generate = "vllm.grpc.engine.VllmEngine/Generate";
            let lines = lines.by_ref().map(|line| serde_json::from_str::<Value>(&line));
            lines.flatten().find(|line| line["rpc"] == generate)
        });
        let told = told.await.expect("reads").expect("a line of the call");
        assert_eq!((&told["trace_id"], &told["code"]), (&TRACE.into(), &"OK".into()), "{told:#}");
        assert_eq!(told["model"], MODEL);
    })
    .await;
}
