//! Chat templates against golden renderings by Jinja2 with transformers' settings: templates of
//! real models (fetched), the ids that their tokenizers make of the text, and the language features
//! they use.

#![allow(clippy::unwrap_used, reason = "a failed test panics")]

mod support;

use std::collections::HashMap;

use sconce_text::{ChatRequest, ChatTemplate, EncodeOptions, Tokenizer};
use serde::Deserialize;
use serde_json::{Map, Value, json};

#[derive(Deserialize)]
struct Golden {
    template: String,
    special_tokens: Map<String, Value>,
    request: Request,
    expected: Option<String>,
    ids: Option<Vec<u32>>,
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

/// Conversations whose messages are the texts of the corpus.
#[derive(Deserialize)]
struct CorpusChats {
    special_tokens: Map<String, Value>,
    cases: Vec<CorpusChat>,
}

#[derive(Deserialize)]
struct CorpusChat {
    /// Places in the corpus.
    texts: Vec<usize>,
    /// Whether the first text is the system's; the others are the user's and the assistant's in turn.
    system: bool,
    expected: String,
    ids: Vec<u32>,
}

#[derive(Deserialize)]
struct Corpus {
    texts: Vec<String>,
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
                check_ids(&tokenizer, &text, golden.ids.as_ref().unwrap());
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
    check_corpus(name, &source, &tokenizer);
}

/// Renders the corpus as conversations and encodes them with `tokenizer`.
fn check_corpus(name: &str, source: &str, tokenizer: &Tokenizer) {
    let corpus: Corpus = support::fixture("corpus.json");
    let mut goldens: HashMap<String, CorpusChats> = support::fixture("chat_corpus.json");
    let golden = goldens.remove(name).unwrap();
    let special = golden.special_tokens.iter();
    let special: Vec<_> = special.map(|(k, v)| (k.as_str(), v.as_str().unwrap())).collect();
    let template = compile(source, &special);
    let kwargs = Map::from_iter([("date_string".to_owned(), json!("21 Nov 2026"))]);
    let covered: usize = golden.cases.iter().map(|case| case.texts.len()).sum();
    assert_eq!(covered, corpus.texts.len());
    for case in golden.cases {
        let turns = ["user", "assistant"].into_iter().cycle();
        let roles = case.system.then_some("system").into_iter().chain(turns);
        let messages: Vec<Value> = (roles.zip(&case.texts))
            .map(|(role, &text)| json!({"role": role, "content": corpus.texts[text]}))
            .collect();
        let add_generation_prompt = messages.last().unwrap()["role"] == "user";
        let kwargs = kwargs.clone();
        let request =
            ChatRequest { messages, add_generation_prompt, kwargs, ..ChatRequest::default() };
        let text = template.render(&request).unwrap();
        assert_eq!(text, case.expected, "{name}");
        let ids = tokenizer.encode(&text, EncodeOptions::CHAT).unwrap();
        assert_eq!(ids, case.ids, "{name}: {text:?}");
    }
}

/// The ids are the reference's. The template writes BOS itself; encoding must not add another.
fn check_ids(tokenizer: &Tokenizer, text: &str, expected: &[u32]) {
    let ids = tokenizer.encode(text, EncodeOptions::CHAT).unwrap();
    assert_eq!(ids, expected, "{text:?}");
    if let [first, second, ..] = ids[..] {
        assert!(first != second || Some(first) != tokenizer.bos_id(), "{text:?}");
    }
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
}

#[test]
fn smollm2_renders_and_encodes_as_transformers_does() {
    check_model("smollm2", support::smollm2());
}

#[test]
fn qwen3_renders_and_encodes_as_transformers_does() {
    check_model("qwen3", support::packed("qwen3"));
}

#[test]
fn gemma3_renders_and_encodes_as_transformers_does() {
    check_model("gemma3", support::packed("gemma3"));
}

#[test]
fn gemma3_from_gguf_encodes_chats_as_its_tokenizer_json_does() {
    let (tokenizer, packed) = (support::gemma3_gguf(), support::packed("gemma3"));
    let (Some(tokenizer), Some((_, source))) = (tokenizer, packed) else { return };
    check_corpus("gemma3", &source, &tokenizer);
}

#[test]
fn llama_3_1_renders_and_encodes_as_transformers_does() {
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
