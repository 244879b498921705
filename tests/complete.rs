//! Complete over a socket: the order of its messages and what they say.

mod support;

use std::collections::HashSet;

use sconce_proto::v1::complete_request::Prompt;
use sconce_proto::v1::complete_response::Event;
use sconce_proto::v1::{
    CacheOptions, CacheReason, ChatMessage, ChatPrompt, CompleteRequest, DetokenizeRequest,
    FinishReason, ListModelsRequest, Sampling, Tier,
};
use support::{Fixture, MODEL, collect, plan, text, tokens, within};
use tonic::Request;

fn seeded(seed: u64) -> CompleteRequest {
    let sampling = Sampling { temperature: Some(6.0), seed: Some(seed), ..Sampling::default() };
    CompleteRequest { sampling: Some(sampling), ..text("hello", 32) }
}

fn greedy(max_tokens: u32) -> CompleteRequest {
    let sampling = Sampling { temperature: Some(0.0), ..Sampling::default() };
    CompleteRequest { sampling: Some(sampling), ..text("once upon a time", max_tokens) }
}

#[tokio::test]
async fn the_first_message_says_what_was_remembered_and_the_last_what_was_used() {
    within(async {
        let fixture = Fixture::start().await;
        let completed = fixture.complete(text("hello", 8)).await.expect("completes");
        let started = completed.started.as_ref().expect("a first message");
        assert_eq!(started.prompt_tokens, 5);
        let cache = started.cache.as_ref().expect("a report");
        assert_eq!(
            (cache.matched_tokens, cache.resumed_tokens, cache.recomputed_tokens),
            (0, 0, 5)
        );
        assert_eq!((cache.tier(), cache.reason()), (Tier::Unspecified, CacheReason::NotFound));

        let finished = completed.finished();
        assert_eq!(finished.reason(), FinishReason::Length);
        assert_eq!((finished.matched_stop.as_deref(), finished.stop_token_id), (None, None));
        let usage = finished.usage.expect("a usage");
        assert_eq!((usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens), (5, 0, 8));
        assert_eq!(completed.token_ids().len(), 8);
        let timings = finished.timings.expect("timings");
        let all = [timings.queue, timings.prefill, timings.decode, timings.first_token];
        assert!(all.iter().all(Option::is_some), "{timings:?}");
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_first_token_that_comes_long_after_the_first_message_is_not_lost() {
    within(async {
        let at_once = Fixture::start().await;
        let expected = at_once.complete(greedy(8)).await.expect("completes");
        at_once.end().await;
        // 16 tokens in one step: longer than the first message waits for company.
        let late = Fixture::with(plan("prefill_us=10000")).await;
        let completed = late.complete(greedy(8)).await.expect("completes");
        assert_eq!(completed.token_ids(), expected.token_ids());
        assert_eq!(completed.finished().usage, expected.finished().usage);
        late.end().await;
    })
    .await;
}

#[tokio::test]
async fn the_first_message_does_not_wait_for_a_late_first_token() {
    within(async {
        // A prompt of 1000 s, which is more than a test may take, in steps of 80 ms.
        let mut plan = plan("prefill_us=10000,context=1000000");
        plan.engine.prefill_chunk_tokens = 8;
        let fixture = Fixture::with(plan).await;
        let mut stream = fixture.open(tokens(vec![97; 100_000], 1)).await.expect("is admitted");
        let message = stream.message().await.expect("is alive").expect("goes on");
        let Some(Event::Started(started)) = message.event else {
            panic!("expected `started`, found {message:?}");
        };
        assert_eq!(started.prompt_tokens, 100_000);
        drop(stream);
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_bypassed_cache_is_reported_as_such() {
    within(async {
        let fixture = Fixture::start().await;
        let cache = Some(CacheOptions { bypass: true, ..CacheOptions::default() });
        let request = CompleteRequest { cache, ..text("hello", 1) };
        let completed = fixture.complete(request).await.expect("completes");
        let report = completed.started.expect("a first message").cache.expect("a report");
        assert_eq!(report.reason(), CacheReason::Bypassed);
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn the_text_is_that_of_the_tokens() {
    within(async {
        let fixture = Fixture::start().await;
        let completed = fixture.complete(seeded(3)).await.expect("completes");
        let request = DetokenizeRequest {
            model: MODEL.to_owned(),
            token_ids: completed.token_ids(),
            skip_special_tokens: Some(true),
        };
        let text =
            fixture.inference().detokenize(request).await.expect("decodes").into_inner().text;
        assert_eq!(completed.text(), text);
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_stop_string_across_tokens_is_cut_off_exactly() {
    within(async {
        let fixture = Fixture::start().await;
        let whole = fixture.complete(greedy(64)).await.expect("completes").text();
        let stop: String = whole.chars().skip(20).take(3).collect();
        assert!(stop.len() >= 3, "a model of bytes needs several tokens for {stop:?}");
        let expected = whole.split(&stop).next().expect("a first part").to_owned();
        let request =
            CompleteRequest { stop: vec!["\u{0}never".to_owned(), stop.clone()], ..greedy(64) };
        let completed = fixture.complete(request).await.expect("completes");
        assert_eq!(completed.text(), expected);
        let finished = completed.finished();
        assert_eq!(finished.reason(), FinishReason::Stop);
        assert_eq!(finished.matched_stop.as_ref(), Some(&stop));
        assert_eq!(finished.stop_token_id, None);
        let counted = finished.usage.expect("a usage").completion_tokens as usize;
        assert_eq!(counted, completed.token_ids().len());
        assert!(counted < 64);
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn text_held_back_for_a_stop_string_comes_at_the_end() {
    within(async {
        let fixture = Fixture::start().await;
        let whole = fixture.complete(greedy(16)).await.expect("completes").text();
        let end = whole.chars().last().expect("some text");
        let request = CompleteRequest { stop: vec![format!("{end}\u{0}never")], ..greedy(16) };
        let completed = fixture.complete(request).await.expect("completes");
        assert_eq!(completed.text(), whole);
        assert_eq!(completed.finished().reason(), FinishReason::Length);
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_stop_token_ends_the_completion_and_is_not_sent() {
    within(async {
        let fixture = Fixture::start().await;
        let whole = fixture.complete(greedy(32)).await.expect("completes").token_ids();
        let stop = whole[9];
        let first = whole.iter().position(|&id| id == stop).expect("is there");
        let request = CompleteRequest { stop_token_ids: vec![stop], ..greedy(32) };
        let completed = fixture.complete(request).await.expect("completes");
        assert_eq!(completed.token_ids(), whole[..first]);
        let finished = completed.finished();
        assert_eq!(finished.reason(), FinishReason::Stop);
        assert_eq!((finished.stop_token_id, finished.matched_stop.as_ref()), (Some(stop), None));
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn without_max_tokens_the_context_is_the_end() {
    within(async {
        let mut plan = support::plan("");
        plan.models[0].context_length = Some(64);
        let fixture = Fixture::with(plan).await;
        let request = CompleteRequest { max_tokens: None, ..tokens(vec![97; 50], 1) };
        let completed = fixture.complete(request).await.expect("completes");
        assert_eq!(completed.finished().reason(), FinishReason::Length);
        assert_eq!(completed.token_ids().len(), 14);
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn logprobs_come_for_each_token_when_asked_for() {
    within(async {
        let fixture = Fixture::start().await;
        for (asked, listed) in [(None, 0), (Some(0), 0), (Some(3), 3), (Some(20), 20)] {
            let request = CompleteRequest { logprobs: asked, ..greedy(6) };
            let completed = fixture.complete(request).await.expect("completes");
            for delta in &completed.deltas {
                let expected = if asked.is_some() { delta.token_ids.len() } else { 0 };
                assert_eq!(delta.logprobs.len(), expected);
                for (logprob, &id) in delta.logprobs.iter().zip(&delta.token_ids) {
                    assert_eq!(logprob.token_id, id);
                    assert!(logprob.logprob <= 0.0);
                    assert_eq!(logprob.top.len(), listed);
                    assert!(logprob.top.is_sorted_by(|a, b| a.logprob >= b.logprob));
                }
            }
        }
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_seed_makes_a_completion_reproducible() {
    within(async {
        let fixture = Fixture::start().await;
        let mut seen = HashSet::new();
        for seed in 0..8 {
            let first = fixture.complete(seeded(seed)).await.expect("completes").token_ids();
            let second = fixture.complete(seeded(seed)).await.expect("completes").token_ids();
            assert_eq!(first, second);
            seen.insert(first);
        }
        assert!(seen.len() > 1, "seeds make no difference");
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn unset_sampling_means_what_list_models_says() {
    within(async {
        let fixture = Fixture::start().await;
        let listed = fixture.models().list_models(ListModelsRequest {}).await.expect("lists");
        let defaults = listed.into_inner().models[0].sampling_defaults.clone().expect("are told");
        let with = |sampling| CompleteRequest { sampling: Some(sampling), ..text("hello", 32) };
        let unset = with(Sampling { seed: Some(7), ..Sampling::default() });
        let spelled_out = with(Sampling { seed: Some(7), ..defaults });
        let unset = fixture.complete(unset).await.expect("completes");
        let spelled_out = fixture.complete(spelled_out).await.expect("completes");
        assert_eq!(unset.token_ids(), spelled_out.token_ids());
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_chat_turn_is_rendered_and_answered() {
    within(async {
        let fixture = Fixture::start().await;
        let content = Some("hello".to_owned());
        let message = ChatMessage { role: "user".to_owned(), content, ..ChatMessage::default() };
        let chat = ChatPrompt { messages: vec![message], ..ChatPrompt::default() };
        let request = CompleteRequest { prompt: Some(Prompt::Chat(chat)), ..text("", 4) };
        let completed = fixture.complete(request).await.expect("completes");
        assert!(completed.started.expect("a first message").prompt_tokens > 5);
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn sixty_four_streams_at_once_say_what_each_says_alone() {
    within(async {
        let fixture = Fixture::start().await;
        let request = |i: u64| {
            let prompt = Prompt::Text(format!("prompt number {i}"));
            CompleteRequest { prompt: Some(prompt), ..seeded(i) }
        };
        let mut alone = Vec::new();
        for i in 0..64 {
            alone.push(fixture.complete(request(i)).await.expect("completes").token_ids());
        }
        let together = (0..64).map(|i| fixture.complete(request(i)));
        let together = futures::future::join_all(together).await;
        for (alone, together) in alone.into_iter().zip(together) {
            assert_eq!(together.expect("completes").token_ids(), alone);
        }
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn the_callers_request_id_comes_back() {
    within(async {
        let fixture = Fixture::start().await;
        let mut request = Request::new(text("hello", 2));
        request.metadata_mut().insert("x-request-id", "mine-1".parse().expect("ascii"));
        request.metadata_mut().insert("x-unknown", "ignored".parse().expect("ascii"));
        let response = fixture.inference().complete(request).await.expect("completes");
        assert_eq!(response.metadata().get("x-request-id").expect("comes back"), "mine-1");
        assert!(collect(response.into_inner()).await.status.is_none());

        let response = fixture.inference().complete(text("hello", 2)).await.expect("completes");
        let made = response.metadata().get("x-request-id").expect("is made").clone();
        assert_eq!(made.len(), 16);
        assert!(collect(response.into_inner()).await.status.is_none());
        fixture.end().await;
    })
    .await;
}
