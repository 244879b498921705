//! Each field of a completion that can be wrong, and each that is not served yet, over a socket.

mod support;

use sconce_proto::v1::complete_request::{Constraint, Prompt};
use sconce_proto::v1::{
    CacheOptions, ChatMessage, ChatPrompt, Choice, CompleteRequest, Media, Sampling, ToolCall,
};
use support::{Fixture, details, names_feature, names_field, text, tokens, within};
use tonic::Code;

fn sampling(sampling: Sampling) -> CompleteRequest {
    CompleteRequest { sampling: Some(sampling), ..text("a", 4) }
}

fn chat(chat: ChatPrompt) -> CompleteRequest {
    CompleteRequest { prompt: Some(Prompt::Chat(chat)), ..text("", 4) }
}

fn message(role: &str) -> ChatMessage {
    ChatMessage {
        role: role.to_owned(),
        content: Some("hello".to_owned()),
        ..ChatMessage::default()
    }
}

#[tokio::test]
async fn every_sampling_field_has_its_range() {
    within(async {
        let fixture = Fixture::start().await;
        let unset = Sampling::default;
        let mut cases = Vec::new();
        for bad in [f32::NAN, f32::INFINITY, -0.5, 101.0] {
            cases.push(("temperature", Sampling { temperature: Some(bad), ..unset() }));
        }
        for bad in [f32::NAN, 0.0, -1.0, 1.01] {
            cases.push(("top_p", Sampling { top_p: Some(bad), ..unset() }));
        }
        for bad in [f32::NAN, -0.1, 1.1] {
            cases.push(("min_p", Sampling { min_p: Some(bad), ..unset() }));
        }
        for bad in [f32::NAN, f32::INFINITY, 0.0, -1.0] {
            cases.push(("repeat_penalty", Sampling { repeat_penalty: Some(bad), ..unset() }));
        }
        for bad in [f32::NAN, f32::NEG_INFINITY, 100.5] {
            cases.push(("presence_penalty", Sampling { presence_penalty: Some(bad), ..unset() }));
            cases.push(("frequency_penalty", Sampling { frequency_penalty: Some(bad), ..unset() }));
        }
        cases.push(("repeat_last_n", Sampling { repeat_last_n: Some(-2), ..unset() }));
        let bias = |id, bias| Sampling { logit_bias: [(id, bias)].into(), ..unset() };
        cases.push(("logit_bias[7]", bias(7, f32::NAN)));
        cases.push(("logit_bias[4000000000]", bias(4_000_000_000, 1.0)));
        let many = Sampling { logit_bias: (0..4097).map(|id| (id, 1.0)).collect(), ..unset() };
        cases.push(("logit_bias", many));
        for (field, bad) in cases {
            let status = fixture.refused(sampling(bad)).await;
            names_field(&status, &format!("sampling.{field}"));
        }
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn every_sampling_field_is_taken_within_its_range() {
    within(async {
        let fixture = Fixture::start().await;
        let all = Sampling {
            temperature: Some(0.7),
            top_p: Some(0.9),
            top_k: Some(40),
            min_p: Some(0.05),
            repeat_penalty: Some(1.1),
            presence_penalty: Some(0.5),
            frequency_penalty: Some(-0.5),
            repeat_last_n: Some(-1),
            seed: Some(u64::MAX),
            logit_bias: [(7, -3.0)].into(),
        };
        let completed = fixture.complete(sampling(all)).await.expect("is taken");
        assert_eq!(completed.token_ids().len(), 4);
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn every_other_field_has_its_range() {
    within(async {
        let fixture = Fixture::start().await;
        let a = || text("a", 4);
        let none = || CompleteRequest { prompt: None, ..a() };
        let stops = |n: usize| CompleteRequest { stop: vec!["x".to_owned(); n], ..a() };
        let stop = |s: &str| CompleteRequest { stop: vec!["x".to_owned(), s.to_owned()], ..a() };
        let stop_tokens = |ids: Vec<u32>| CompleteRequest { stop_token_ids: ids, ..a() };
        let cases = [
            ("model", CompleteRequest { model: String::new(), ..a() }),
            ("prompt", none()),
            ("text", text("", 4)),
            ("tokens.ids", tokens(vec![], 4)),
            ("tokens.ids[1]", tokens(vec![1, u32::MAX], 4)),
            ("max_tokens", CompleteRequest { max_tokens: Some(0), ..a() }),
            ("max_tokens", CompleteRequest { max_tokens: Some(u32::MAX), ..a() }),
            ("logprobs", CompleteRequest { logprobs: Some(21), ..a() }),
            ("stop", stops(33)),
            ("stop[1]", stop("")),
            ("stop[1]", stop(&"y".repeat(1025))),
            ("stop_token_ids", stop_tokens(vec![1; 1025])),
            ("stop_token_ids[1]", stop_tokens(vec![1, u32::MAX])),
        ];
        for (field, request) in cases {
            names_field(&fixture.refused(request).await, field);
        }
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn every_option_of_the_cache_has_its_range() {
    within(async {
        let fixture = Fixture::start().await;
        let none = CacheOptions::default;
        let points = |restore_points| CacheOptions { restore_points, ..none() };
        let salt = |salt: String| CacheOptions { salt: Some(salt), ..none() };
        let cases = [
            ("cache.restore_points[1]", points(vec![3, 0])),
            ("cache.restore_points[2]", points(vec![5, 1, 6])),
            ("cache.restore_points", points(vec![1; 65])),
            ("cache.salt", salt(String::new())),
            ("cache.salt", salt("x".repeat(257))),
            ("cache.restore_points", CacheOptions { bypass: true, ..points(vec![1]) }),
            ("cache.pin", CacheOptions { bypass: true, pin: true, ..none() }),
        ];
        for (field, options) in cases {
            let request = CompleteRequest { cache: Some(options), ..text("hello", 4) };
            names_field(&fixture.refused(request).await, field);
        }
        let ends = CacheOptions { salt: Some("x".repeat(256)), ..points(vec![5, 1, 5]) };
        let request = CompleteRequest { cache: Some(ends), ..text("hello", 4) };
        fixture.complete(request).await.expect("is taken");
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn every_field_of_a_conversation_is_checked() {
    within(async {
        let fixture = Fixture::start().await;
        let calls = |call: ToolCall| {
            let message = ChatMessage { tool_calls: vec![call], ..message("assistant") };
            chat(ChatPrompt { messages: vec![message], ..ChatPrompt::default() })
        };
        let with_tool = |tool: &str| {
            let tools = vec!["{}".to_owned(), tool.to_owned()];
            chat(ChatPrompt { messages: vec![message("user")], tools, ..ChatPrompt::default() })
        };
        let call = |name: &str, arguments: &str| ToolCall {
            id: None,
            name: name.to_owned(),
            arguments: arguments.to_owned(),
        };
        let nobody = ChatPrompt { messages: vec![message("")], ..ChatPrompt::default() };
        let cases = [
            ("chat.messages", chat(ChatPrompt::default())),
            ("chat.messages[0].role", chat(nobody)),
            ("chat.messages[0].tool_calls[0].name", calls(call("", "{}"))),
            ("chat.messages[0].tool_calls[0].arguments", calls(call("f", "[]"))),
            ("chat.messages[0].tool_calls[0].arguments", calls(call("f", "{"))),
            ("chat.tools[1]", with_tool("3")),
            // The simulated model's template does not read tools, and would drop them.
            ("chat.tools", with_tool("{}")),
        ];
        for (field, request) in cases {
            names_field(&fixture.refused(request).await, field);
        }
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_prompt_over_the_context_tells_both_numbers() {
    within(async {
        let fixture = Fixture::start().await;
        let listed = fixture.models().list_models(sconce_proto::v1::ListModelsRequest {}).await;
        let context = listed.expect("lists").into_inner().models[0].context_length;
        let request = CompleteRequest { max_tokens: None, ..tokens(vec![1; context as usize], 1) };
        let status = fixture.refused(request).await;
        names_field(&status, "tokens");
        assert_eq!(status.message().matches(&context.to_string()).count(), 2, "{status:?}");

        let status = fixture.refused(tokens(vec![1; 10], context - 9)).await;
        names_field(&status, "max_tokens");
        assert!(status.message().contains(&context.to_string()), "{status:?}");
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn an_unknown_model_is_not_found() {
    within(async {
        let fixture = Fixture::start().await;
        let request = CompleteRequest { model: "nobody".to_owned(), ..text("a", 4) };
        details(&fixture.refused(request).await, Code::NotFound, "MODEL_NOT_FOUND");
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn names_of_any_length_are_refused_in_a_short_answer() {
    within(async {
        let fixture = Fixture::start().await;
        let long = "x".repeat(1 << 20);
        let request = CompleteRequest { model: long.clone(), ..text("a", 4) };
        names_field(&fixture.refused(request).await, "model");
        // Longer than what clients take for headers, had it come back whole.
        let value =
            prost_types::Value { kind: Some(prost_types::value::Kind::NumberValue(f64::NAN)) };
        let kwargs = prost_types::Struct { fields: [(long, value)].into() };
        let request = chat(ChatPrompt {
            messages: vec![message("user")],
            template_kwargs: Some(kwargs),
            ..ChatPrompt::default()
        });
        let status = fixture.refused(request).await;
        details(&status, Code::InvalidArgument, "INVALID_FIELD");
        assert!(status.message().starts_with("chat.template_kwargs.xxx"), "{status:?}");
        fixture.end().await;
    })
    .await;
}

#[tokio::test]
async fn fields_not_served_yet_are_unimplemented_by_name() {
    within(async {
        let fixture = Fixture::start().await;
        let a = || text("a", 4);
        let constraint = |c| CompleteRequest { constraint: Some(c), ..a() };
        let choice = Choice { choices: vec!["a".to_owned()] };
        let cases = [
            ("media", CompleteRequest { media: vec![Media::default()], ..a() }),
            ("json_schema", constraint(Constraint::JsonSchema("{}".to_owned()))),
            ("regex", constraint(Constraint::Regex("a*".to_owned()))),
            ("grammar", constraint(Constraint::Grammar("start: \"a\"".to_owned()))),
            ("choice", constraint(Constraint::Choice(choice))),
        ];
        for (feature, request) in cases {
            names_feature(&fixture.refused(request).await, feature);
        }
        fixture.end().await;
    })
    .await;
}
