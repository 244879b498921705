//! Chat templates against golden renderings by Jinja2 with transformers' settings: templates of
//! real models (fetched) and the language features they use.

#![allow(clippy::unwrap_used, reason = "a failed test panics")]

mod support;

use sconce_text::{ChatRequest, ChatTemplate, EncodeOptions, Tokenizer};
use serde::Deserialize;
use serde_json::{Map, Value};

#[derive(Deserialize)]
struct Golden {
    template: String,
    special_tokens: Map<String, Value>,
    request: Request,
    expected: Option<String>,
    /// What the template said when it refused the conversation by `raise_exception`.
    refused: Option<String>,
}

#[derive(Deserialize)]
struct Request {
    messages: Vec<Value>,
    #[serde(default)]
    tools: Vec<Value>,
    #[serde(default)]
    add_generation_prompt: bool,
    kwargs: Map<String, Value>,
}

#[derive(Deserialize)]
struct Features {
    messages: Vec<Value>,
    cases: Vec<Feature>,
}

#[derive(Deserialize)]
struct Feature {
    source: String,
    expected: Option<String>,
    line: Option<usize>,
}

fn compile(source: &str, special: &[(&str, &str)]) -> ChatTemplate {
    let special: Vec<_> = special.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    ChatTemplate::new(&[("default".into(), source.into())], &special).unwrap()
}

fn check_model(name: &str, fetched: Option<(Tokenizer, String)>) {
    let Some((tokenizer, source)) = fetched else { return };
    let goldens: Vec<Golden> = support::fixture("chat.json");
    let mut seen = 0;
    for golden in goldens.into_iter().filter(|golden| golden.template == name) {
        let special = golden.special_tokens.iter();
        let special: Vec<_> = special.map(|(k, v)| (k.as_str(), v.as_str().unwrap())).collect();
        let request = ChatRequest {
            messages: golden.request.messages,
            tools: golden.request.tools,
            add_generation_prompt: golden.request.add_generation_prompt,
            kwargs: golden.request.kwargs,
            ..ChatRequest::default()
        };
        let rendered = compile(&source, &special).render(&request);
        match (&golden.expected, &golden.refused) {
            (Some(expected), _) => {
                let text = rendered.unwrap();
                assert_eq!(&text, expected, "{name} {seen}");
                check_single_bos(&tokenizer, &text);
            }
            (None, words) => {
                let error = rendered.unwrap_err();
                assert!(error.line.is_some(), "{error}");
                if let Some(words) = words {
                    assert_eq!(&error.message, words, "{name} {seen}");
                }
            }
        }
        seen += 1;
    }
    assert_eq!(seen, 12, "{name}");
}

/// The template writes BOS itself; encoding must not add another.
fn check_single_bos(tokenizer: &Tokenizer, text: &str) {
    let ids = tokenizer.encode(text, EncodeOptions::CHAT).unwrap();
    if let [first, second, ..] = ids[..] {
        assert!(first != second || Some(first) != tokenizer.bos_id(), "{text:?}");
    }
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
}

#[test]
fn smollm2_renders_as_transformers_does() {
    check_model("smollm2", support::smollm2());
}

#[test]
fn qwen3_renders_as_transformers_does() {
    check_model("qwen3", support::packed("qwen3"));
}

#[test]
fn gemma3_renders_as_transformers_does() {
    check_model("gemma3", support::packed("gemma3"));
}

#[test]
fn llama_3_1_renders_as_transformers_does() {
    check_model("llama3_1", support::packed("llama3_1"));
}

#[test]
fn language_features_render_as_jinja2_does() {
    let features: Features = support::fixture("features.json");
    let mut wrong = Vec::new();
    for feature in features.cases {
        let request = ChatRequest { messages: features.messages.clone(), ..ChatRequest::default() };
        let template = ChatTemplate::new(
            &[("default".into(), feature.source.clone())],
            &[("bos_token".into(), "<s>".into())],
        );
        let rendered = template.and_then(|template| template.render(&request));
        match (feature.expected, rendered) {
            (Some(expected), Ok(text)) if text == expected => {}
            (None, Err(error)) if error.line == feature.line => {}
            (expected, rendered) => {
                wrong.push(format!("{}\n  {expected:?}\n  {rendered:?}", feature.source));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
