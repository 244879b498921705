//! `vllm.grpc.engine.VllmEngine/Generate` and `Abort` over a socket: what streams, what ends it, what
//! is refused.

mod support;

use std::collections::HashMap;

use sconce_proto::compat::smg::grpc::common::FlushCacheRequest;
use sconce_proto::compat::vllm::grpc::engine::generate_complete::MatchedStop;
use sconce_proto::compat::vllm::grpc::engine::generate_request::Input;
use sconce_proto::compat::vllm::grpc::engine::generate_response::Response;
use sconce_proto::compat::vllm::grpc::engine::sampling_params::Constraint;
use sconce_proto::compat::vllm::grpc::engine::{
    AbortRequest, ChoiceConstraint, GenerateRequest, KvTransferParams, MediaRef, MediaRefs,
    MultimodalInputs, SamplingParams,
};
use support::vllm::{bytes, engine, generate, greedy, read, request, said, whole};
use support::{Fixture, details, names_feature, names_field, plan, within};
use tonic::Code;

const SLOW: &str = "decode_us=1000,context=1000000";

#[tokio::test]
async fn chunks_tell_what_is_new_and_one_answer_tells_all() {
    within(async {
        let fixture = Fixture::start().await;
        let streamed = generate(&fixture, request("a", bytes("Once"), greedy(12))).await;
        assert_eq!(streamed.ids(0).len(), 12);
        for chunk in &streamed.chunks {
            assert_eq!(chunk.completion_tokens as usize, chunk.token_ids.len());
            assert_eq!((chunk.prompt_tokens, chunk.cached_tokens), (4, 0));
        }
        let end = streamed.end();
        assert_eq!((end.finish_reason.as_str(), end.completion_tokens), ("length", 12));
        assert!(end.output_ids.is_empty() && end.matched_stop.is_none());

        let at_once = generate(&fixture, whole(request("b", bytes("Once"), greedy(12)))).await;
        assert!(at_once.chunks.is_empty());
        let end = at_once.end();
        assert_eq!(end.output_ids, streamed.ids(0));
        assert_eq!((end.prompt_tokens, end.completion_tokens, end.cached_tokens), (4, 12, 3));

        let text = GenerateRequest {
            input: Some(Input::Text("Once".to_owned())),
            ..whole(request("c", Vec::new(), greedy(12)))
        };
        assert_eq!(generate(&fixture, text).await.end().output_ids, streamed.ids(0));
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn the_token_that_ends_a_completion_is_sent_and_counted() {
    within(async {
        let fixture = Fixture::with(plan("eos_after=5")).await;
        let ended = generate(&fixture, request("a", bytes("x"), greedy(64))).await;
        let ids = ended.ids(0);
        assert_eq!((ids.len(), ids[5]), (6, 257));
        let end = ended.end();
        assert_eq!((end.finish_reason.as_str(), end.completion_tokens), ("stop", 6));
        assert_eq!(end.matched_stop, None, "the model's own end matches nothing");

        let params = SamplingParams { stop_token_ids: vec![ids[3]], ..greedy(64) };
        let first = ids.iter().position(|&id| id == ids[3]).expect("is there");
        let stopped = generate(&fixture, request("b", bytes("x"), params)).await;
        assert_eq!(stopped.ids(0), ids[..=first]);
        assert_eq!(stopped.end().matched_stop, Some(MatchedStop::MatchedTokenId(ids[3])));

        let params = SamplingParams { ignore_eos: true, ..greedy(20) };
        let endless = generate(&fixture, request("c", bytes("x"), params)).await;
        assert_eq!((endless.ids(0).len(), endless.end().finish_reason.as_str()), (20, "length"));

        let params = SamplingParams { min_tokens: 9, ..greedy(64) };
        let later = generate(&fixture, request("d", bytes("x"), params)).await;
        assert!(later.ids(0).len() > 9 && !later.ids(0)[..9].contains(&257));
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_stop_string_ends_the_generation_early() {
    within(async {
        let fixture = Fixture::start().await;
        let all = generate(&fixture, whole(request("a", bytes("Once"), greedy(200)))).await;
        let text: String = all.end().output_ids.iter().map(|&id| id as u8 as char).collect();
        let stop = &text[20..24];
        let end = text.find(stop).expect("is there") + stop.len();
        let params = SamplingParams { stop: vec![stop.to_owned()], ..greedy(200) };
        let stopped = generate(&fixture, request("b", bytes("Once"), params.clone())).await;
        assert_eq!(stopped.ids(0), bytes(&text[..end]));
        let last = stopped.end();
        assert_eq!((last.finish_reason.as_str(), last.completion_tokens as usize), ("stop", end));
        assert_eq!(last.matched_stop, Some(MatchedStop::MatchedStopStr(stop.to_owned())));

        let params = SamplingParams { min_tokens: end as u32, ..params };
        let later = generate(&fixture, request("c", bytes("Once"), params)).await;
        assert!(later.ids(0).len() > end, "not before the least number of tokens");
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn several_completions_come_by_index_and_repeat_with_a_seed() {
    within(async {
        let fixture = Fixture::start().await;
        let params =
            |seed| SamplingParams { temperature: Some(4.0), n: 3, seed: Some(seed), ..greedy(16) };
        let one = generate(&fixture, request("a", bytes("Once"), params(-7))).await;
        assert_eq!(one.complete.len(), 3);
        assert!((0..3).all(|index| one.ids(index).len() == 16));
        assert_ne!(one.ids(0), one.ids(1), "each draws for itself");
        let again = generate(&fixture, whole(request("b", bytes("Once"), params(-7)))).await;
        for end in &again.complete {
            assert_eq!(end.output_ids, one.ids(end.index));
        }
        let other = generate(&fixture, request("c", bytes("Once"), params(8))).await;
        assert_ne!(other.ids(0), one.ids(0));
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn more_completions_than_run_at_once_take_turns() {
    within(async {
        let mut plan = plan("");
        plan.engine.sequences_max = 2;
        let fixture = Fixture::with(plan).await;
        // More tokens than a reader may be behind, so that nobody may wait for all to begin.
        let params = SamplingParams { n: 5, ..greedy(300) };
        let all = generate(&fixture, request("a", bytes("Once"), params)).await;
        assert!((0..5).all(|index| all.ids(index).len() == 300));
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn logprobs_bias_and_clamping_follow_the_protocol() {
    within(async {
        let mut short = plan("");
        short.models[0].context_length = Some(64);
        let fixture = Fixture::with(short).await;
        let params = SamplingParams { logprobs: Some(2), ..greedy(3) };
        let told = generate(&fixture, request("a", bytes("x"), params.clone())).await;
        for chunk in &told.chunks {
            let logprobs = chunk.output_logprobs.as_ref().expect("was asked for");
            assert_eq!(logprobs.token_ids, chunk.token_ids);
            assert_eq!(logprobs.top_logprobs[0].token_ids[0], chunk.token_ids[0]);
            assert_eq!(logprobs.top_logprobs[0].values[0], logprobs.token_logprobs[0]);
            assert_eq!(logprobs.top_logprobs[0].values.len(), 2);
        }
        let told = generate(&fixture, whole(request("a", bytes("x"), params))).await;
        let logprobs = told.end().output_logprobs.as_ref().expect("was asked for");
        assert_eq!(logprobs.token_ids, told.end().output_ids);

        // What would come is biased away; a zero means the default everywhere else.
        let first = told.end().output_ids[0];
        let logit_bias = HashMap::from([(first as i32, -100.0)]);
        let biased = SamplingParams { logit_bias, ..greedy(3) };
        let biased = generate(&fixture, request("b", bytes("x"), biased)).await;
        assert_ne!(biased.ids(0)[0], first);

        let clamped = generate(&fixture, request("c", vec![97; 60], greedy(1000))).await;
        assert_eq!((clamped.ids(0).len(), clamped.end().finish_reason.as_str()), (4, "length"));
        let open = SamplingParams { max_tokens: None, ..greedy(1) };
        let open = generate(&fixture, request("d", vec![97; 60], open)).await;
        assert_eq!(open.ids(0).len(), 4);
        let params = SamplingParams { truncate_prompt_tokens: Some(10), ..greedy(2) };
        let cut = generate(&fixture, request("e", vec![97; 500], params)).await;
        assert_eq!(cut.end().prompt_tokens, 10);
        let params = SamplingParams { truncate_prompt_tokens: Some(-1), ..greedy(2) };
        let cut = generate(&fixture, request("f", vec![97; 500], params)).await;
        assert_eq!((cut.end().prompt_tokens, cut.ids(0).len()), (63, 1));
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn what_is_not_served_is_refused_by_name() {
    within(async {
        let fixture = Fixture::start().await;
        let text = |text: &str| text.to_owned();
        let constraints = [
            ("json_schema", Constraint::JsonSchema(text("{}"))),
            ("regex", Constraint::Regex(text("a+"))),
            ("grammar", Constraint::Grammar(text("root ::= \"a\""))),
            ("structural_tag", Constraint::StructuralTag(text("{}"))),
            ("json_object", Constraint::JsonObject(true)),
            ("choice", Constraint::Choice(ChoiceConstraint { choices: vec![text("a")] })),
        ];
        for (field, constraint) in constraints {
            let params = SamplingParams { constraint: Some(constraint), ..greedy(4) };
            let refused = engine(&fixture).generate(request("a", bytes("x"), params)).await;
            let feature = format!("sampling_params.{field}");
            names_feature(&refused.expect_err("is refused"), &feature);
        }
        let plain = || request("a", bytes("x"), greedy(4));
        let media = MediaRefs { items: vec![MediaRef::default()] };
        let asked = [
            (
                "mm_inputs",
                GenerateRequest { mm_inputs: Some(MultimodalInputs::default()), ..plain() },
            ),
            (
                "extra_mm_inputs",
                GenerateRequest { extra_mm_inputs: vec![MultimodalInputs::default()], ..plain() },
            ),
            ("media_refs", GenerateRequest { media_refs: Some(media), ..plain() }),
            (
                "kv_transfer_params",
                GenerateRequest {
                    kv_transfer_params: Some(KvTransferParams::default()),
                    ..plain()
                },
            ),
            (
                "kv_transfer_params_json",
                GenerateRequest { kv_transfer_params_json: Some(text("{}")), ..plain() },
            ),
            (
                "sampling_params.prompt_logprobs",
                request("a", bytes("x"), SamplingParams { prompt_logprobs: Some(0), ..greedy(4) }),
            ),
        ];
        for (feature, request) in asked {
            let refused = engine(&fixture).generate(request).await;
            names_feature(&refused.expect_err("is refused"), feature);
        }
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn what_is_out_of_range_is_refused_by_name() {
    within(Box::pin(async {
        let mut short = plan("");
        short.models[0].context_length = Some(64);
        let fixture = Fixture::with(short).await;
        let params = |change: fn(&mut SamplingParams)| {
            let mut params = greedy(4);
            change(&mut params);
            request("a", bytes("x"), params)
        };
        let none = GenerateRequest { input: None, ..params(|_| {}) };
        let rank = GenerateRequest { data_parallel_rank: Some(1), ..params(|_| {}) };
        let cases = [
            ("input", none),
            ("data_parallel_rank", rank),
            ("tokenized.input_ids", request("a", Vec::new(), greedy(4))),
            ("tokenized.input_ids[1]", request("a", vec![1, 259], greedy(4))),
            ("tokenized.input_ids", request("a", vec![1; 64], greedy(4))),
            ("sampling_params.temperature", params(|p| p.temperature = Some(-1.0))),
            ("sampling_params.top_p", params(|p| p.top_p = 1.5)),
            ("sampling_params.min_p", params(|p| p.min_p = f32::NAN)),
            ("sampling_params.repetition_penalty", params(|p| p.repetition_penalty = -1.0)),
            ("sampling_params.presence_penalty", params(|p| p.presence_penalty = 2.5)),
            ("sampling_params.frequency_penalty", params(|p| p.frequency_penalty = -3.0)),
            ("sampling_params.max_tokens", params(|p| p.max_tokens = Some(0))),
            ("sampling_params.min_tokens", params(|p| p.min_tokens = 5)),
            ("sampling_params.n", params(|p| p.n = 65)),
            ("sampling_params.logprobs", params(|p| p.logprobs = Some(-1))),
            ("sampling_params.logprobs", params(|p| p.logprobs = Some(21))),
            ("sampling_params.stop[0]", params(|p| p.stop = vec![String::new()])),
            ("sampling_params.stop_token_ids[0]", params(|p| p.stop_token_ids = vec![259])),
            ("sampling_params.logit_bias[-1]", params(|p| _ = p.logit_bias.insert(-1, 1.0))),
            ("sampling_params.logit_bias[1]", params(|p| _ = p.logit_bias.insert(1, f32::NAN))),
            (
                "sampling_params.truncate_prompt_tokens",
                params(|p| p.truncate_prompt_tokens = Some(0)),
            ),
        ];
        for (field, request) in cases {
            let refused = engine(&fixture).generate(request).await;
            names_field(&refused.expect_err(field), field);
        }
        fixture.end().await;
    }))
    .await;
}

#[tokio::test]
async fn an_abort_ends_a_stream_with_a_last_message() {
    within(async {
        let fixture = Fixture::with(plan(SLOW)).await;
        let mut client = engine(&fixture);
        let params = SamplingParams { n: 2, ..greedy(900_000) };
        let mut stream =
            client.generate(request("mine", bytes("x"), params)).await.expect("runs").into_inner();
        let first = said(stream.message().await.expect("is alive").expect("is open"));
        assert!(matches!(first, Response::Chunk(_)));
        let other = client.generate(request("other", bytes("y"), greedy(50))).await;
        let request_ids = vec!["unknown".to_owned(), "mine".to_owned()];
        client.abort(AbortRequest { request_ids }).await.expect("is answered");
        let rest = read(stream).await;
        assert!(rest.status.is_none(), "{rest:?}");
        let reasons: Vec<_> = rest.complete.iter().map(|end| end.finish_reason.as_str()).collect();
        assert_eq!(reasons, ["abort", "abort"]);
        let other = read(other.expect("runs").into_inner()).await;
        assert_eq!(other.ids(0).len(), 50, "others run on");
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn an_abort_ends_what_waits_or_does_not_stream() {
    within(async {
        let mut plan = plan(SLOW);
        plan.engine.sequences_max = 1;
        let fixture = Fixture::with(plan).await;
        let client = engine(&fixture);
        let run = |id: &str| {
            let (mut client, id) = (client.clone(), id.to_owned());
            async move {
                let asked = whole(request(&id, bytes("x"), greedy(900_000)));
                read(client.generate(asked).await.expect("ends in order").into_inner()).await
            }
        };
        let running = tokio::spawn(run("runs"));
        let counts = |running, waiting| {
            move |status: &sconce_proto::v1::GetStatusResponse| {
                let counts = status.sequences.unwrap_or_default();
                (counts.running, counts.waiting) == (running, waiting)
            }
        };
        fixture.until("one runs", counts(1, 0)).await;
        let waiting = tokio::spawn(run("waits"));
        fixture.until("one waits", counts(1, 1)).await;
        for id in ["waits", "runs"] {
            let request_ids = vec![id.to_owned()];
            client.clone().abort(AbortRequest { request_ids }).await.expect("is answered");
        }
        for run in [running, waiting] {
            let said = run.await.expect("does not panic");
            assert_eq!(said.end().finish_reason, "abort");
        }
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_caller_who_goes_away_frees_his_sequence() {
    within(async {
        let fixture = Fixture::with(plan(SLOW)).await;
        let mut client = engine(&fixture);
        let stream = client.generate(request("a", bytes("x"), greedy(900_000))).await;
        drop(stream.expect("runs"));
        let mut other = client.clone();
        let asked = whole(request("b", bytes("x"), greedy(900_000)));
        let call = tokio::spawn(async move { other.generate(asked).await });
        fixture
            .until("the second alone", |status| {
                status.sequences.is_some_and(|counts| counts.running == 1)
            })
            .await;
        call.abort();
        // Back to the start: no sequence is left.
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_full_queue_and_a_closed_server_are_told_before_the_first_message() {
    within(async {
        let mut plan = plan(SLOW);
        (plan.engine.sequences_max, plan.engine.waiting_max) = (1, 1);
        let fixture = Fixture::with(plan).await;
        let mut client = engine(&fixture);
        let running = client.generate(request("a", bytes("x"), greedy(900_000))).await;
        let mut other = client.clone();
        let waiting =
            tokio::spawn(
                async move { other.generate(request("b", bytes("x"), greedy(900_000))).await },
            );
        fixture
            .until("one waits", |status| status.sequences.is_some_and(|counts| counts.waiting == 1))
            .await;
        let full = client.generate(request("c", bytes("x"), greedy(4))).await;
        let full = full.expect_err("is refused");
        assert!(details(&full, Code::ResourceExhausted, "QUEUE_FULL").retry_info().is_some());
        client.flush_cache(FlushCacheRequest { timeout_s: 0.0 }).await.expect("beside what runs");

        fixture.handle.models().close();
        let closed = client.generate(request("d", bytes("x"), greedy(4))).await;
        details(&closed.expect_err("is refused"), Code::Unavailable, "DRAINING");
        waiting.abort();
        drop((running, client));
        fixture.shut_down().await;
    })
    .await;
}
