//! Rules of rendering that need no golden file: bounds, choice of the template, errors.

use std::time::{Duration, UNIX_EPOCH};

use serde_json::json;

use super::*;

fn compile(source: &str) -> ChatTemplate {
    let special = [("bos_token".to_owned(), "<s>".to_owned())];
    ChatTemplate::new(&[("default".to_owned(), source.to_owned())], &special).unwrap()
}

fn request() -> ChatRequest {
    ChatRequest { messages: vec![json!({"role": "user", "content": "hi"})], ..Default::default() }
}

fn render(source: &str) -> Result<String, TemplateError> {
    compile(source).render(&request())
}

#[test]
fn a_template_that_does_not_parse_is_refused_with_its_line() {
    let sources = [("default".to_owned(), "a\n{% if %}\n".to_owned())];
    let error = ChatTemplate::new(&sources, &[]).unwrap_err();
    assert_eq!((error.template.as_str(), error.line), ("default", Some(2)));
    let text = error.to_string();
    assert!(text.starts_with("chat template \"default\", line 2: "), "{text}");
}

#[test]
fn the_words_of_raise_exception_are_kept_with_the_line() {
    let error = render("\n\n{{ raise_exception('Roles must alternate!') }}").unwrap_err();
    assert_eq!((error.line, error.message.as_str()), (Some(3), "Roles must alternate!"));
}

#[test]
fn endless_work_ends_with_an_error() {
    let source = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
    assert!(render(source).unwrap_err().message.contains("10000000 instructions"));
    let source = "{% macro m() %}{{ m() }}{% endmacro %}\n{{ m() }}";
    assert!(render(source).unwrap_err().message.contains("recursion"));
    let source = "{% for a in range(9999) %}{{ 'x' * 99999 }}{% endfor %}";
    assert!(render(source).unwrap_err().message.contains("exceeds 67108864 bytes"));
    let source = "{{ 'x' * 99999999999999 }}";
    assert_eq!(render(source).unwrap_err().line, Some(1));
}

#[test]
fn where_the_library_panics_the_template_is_refused() {
    let template = compile("{{ messages[0].content[::-1] }}");
    assert_eq!(template.render(&request()).unwrap(), "ih");
    let empty = ChatRequest { messages: vec![json!({"role": "user", "content": ""})], ..request() };
    let refused = "the template engine fails at this template";
    assert_eq!(template.render(&empty).unwrap_err().message, refused);
    assert_eq!(template.render_marked(&empty).unwrap_err().message, refused);
    assert_eq!(template.render(&request()).unwrap(), "ih");
}

#[test]
fn a_template_loads_no_other_template() {
    for source in ["{% include 'secret' %}", "{% extends '/etc/passwd' %}", "{% import 'x' as y %}"]
    {
        assert!(render(source).is_err(), "{source}");
    }
}

#[test]
fn the_tool_use_template_is_chosen_when_there_are_tools() {
    let named = |name: &str| (name.to_owned(), format!("{name} {{{{ tools is none }}}}"));
    let both = ChatTemplate::new(&[named("default"), named("tool_use")], &[]).unwrap();
    let with_tools = ChatRequest { tools: vec![json!({"name": "f"})], ..request() };
    assert_eq!(both.render(&request()).unwrap(), "default True");
    assert_eq!(both.render(&with_tools).unwrap(), "tool_use False");
    let only = ChatTemplate::new(&[named("default")], &[]).unwrap();
    assert_eq!(only.render(&with_tools).unwrap(), "default False");
    let asked = ChatRequest { template: Some("rag".to_owned()), ..request() };
    let error = both.render(&asked).unwrap_err().to_string();
    assert!(error.contains("\"rag\"") && error.contains("default, tool_use"), "{error}");
}

#[test]
fn a_template_that_never_reads_tools_says_so() {
    let template = |source: &str| {
        ChatTemplate::new(&[("default".to_owned(), source.to_owned())], &[]).unwrap()
    };
    assert!(!template("{{ messages[0].content }}").reads_tools(&request()));
    assert!(template("{% for tool in tools %}{{ tool }}{% endfor %}").reads_tools(&request()));
    let ours = "{% set tools = [] %}{{ tools }}";
    assert!(!template(ours).reads_tools(&request()));
}

#[test]
fn variables_reach_the_template_and_replace_special_tokens_only() {
    let source = "{{ bos_token }}{{ enable_thinking }}{{ nested.a[0] }}";
    let mut asked = request();
    asked.kwargs.insert("enable_thinking".to_owned(), json!(false));
    asked.kwargs.insert("nested".to_owned(), json!({"a": [1.5]}));
    assert_eq!(compile(source).render(&asked).unwrap(), "<s>False1.5");
    asked.kwargs.insert("bos_token".to_owned(), json!("<bos>"));
    assert_eq!(compile(source).render(&asked).unwrap(), "<bos>False1.5");
    asked.kwargs.insert("messages".to_owned(), json!([]));
    let error = compile(source).render(&asked).unwrap_err();
    assert!(error.message.contains("\"messages\""), "{error}");
}

#[test]
fn messages_keep_any_key_and_nothing_is_escaped() {
    let source = "{% for m in messages %}{{ m.content }}{{ m.extra.deep }}{% endfor %}";
    let message = json!({"role": "user", "content": "<a> & \"b\"", "extra": {"deep": null}});
    let asked = ChatRequest { messages: vec![message], ..Default::default() };
    assert_eq!(compile(source).render(&asked).unwrap(), "<a> & \"b\"None");
}

#[test]
fn strftime_now_shows_the_time_of_the_request() {
    let now = Some(UNIX_EPOCH + Duration::from_secs(1_795_237_200));
    let asked = ChatRequest { now, ..request() };
    let template = compile("{{ strftime_now('%d %b %Y') }}");
    assert_eq!(template.render(&asked).unwrap(), "21 Nov 2026");
    let error = compile("\n{{ strftime_now('%Q') }}").render(&asked).unwrap_err();
    assert_eq!(error.line, Some(2));
}

#[test]
fn marks_for_training_change_no_line_and_no_white_space() {
    let source = "{%- generation %}\na\n{%- endgeneration -%}\n\n{{ undefined.x }}";
    assert_eq!(render(source).unwrap_err().line, Some(5));
    assert_eq!(render("x\n{%- generation %}\na\n{%- endgeneration -%}\n y").unwrap(), "xay");
    assert_eq!(render("{% set generation = 1 %}{{ generation }}").unwrap(), "1");
}

#[test]
fn a_source_that_is_too_long_is_refused() {
    let source = " ".repeat(MAX_TEMPLATE_BYTES + 1);
    let error = ChatTemplate::new(&[("default".to_owned(), source)], &[]).unwrap_err();
    assert!(error.message.contains("1048577 bytes"), "{error}");
    let source = "{{ ".to_owned() + &"(".repeat(100_000);
    assert!(ChatTemplate::new(&[("default".to_owned(), source)], &[]).is_err());
}
