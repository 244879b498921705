//! Templates and conversations of strangers: rendered or refused within the bounds, and the marked
//! prompt is the plain one with its boundaries inside it.

use arbitrary::{Result, Unstructured};
use sconce_text::{ChatRequest, ChatTemplate};
use serde_json::{Map, Value, json};

use crate::text::{noises, perhaps, several, text};

/// What templates are made of.
const PIECES: [&str; 40] = [
    "{% for m in messages %}",
    "{%- for message in messages -%}",
    "{% endfor %}",
    "{{ m.role }}",
    "{{ message.content }}",
    "{{ messages[0].content|trim }}",
    "{{ messages }}",
    "{{ tools|tojson }}",
    "{% if tools %}",
    "{% else %}",
    "{% endif %}",
    "{% if m.tool_calls is defined %}",
    "{% set ns = namespace(x=0) %}",
    "{% set ns.x = ns.x + 1 %}",
    "{{ ns.x }}",
    "{% macro f(a) %}",
    "{% endmacro %}",
    "{{ f(1) }}",
    "{{ f(f(2)) }}",
    "{{ loop.index0 }}",
    "{% if loop.last %}",
    "{{ raise_exception('no') }}",
    "{{ strftime_now('%Y-%m-%d %j %%') }}",
    "{{ bos_token }}",
    "{% if add_generation_prompt %}",
    "{{ m.content[::-1] }}",
    "{{ 'ab' * 1000000 }}",
    "{{ range(100000)|list }}",
    "{{ m.content.split('\\n')|join('x') }}",
    "{{ m['content'][3:-2] }}",
    "{% generation %}",
    "{% endgeneration %}",
    "{{ x.y.z }}",
    "{% break %}",
    "{% continue %}",
    "{{ (1/0) }}",
    "{{ 10 ** 400 }}",
    "{# c #}",
    "{{ m.content.startswith('a') }}",
    "{{ messages[1:] | length }}",
];

pub(crate) fn run(bytes: &[u8]) {
    let _ = check(&mut Unstructured::new(bytes));
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    noises(48, 240)
}

fn source(u: &mut Unstructured<'_>) -> Result<String> {
    let piece = |u: &mut Unstructured<'_>| {
        if u.ratio(6, 7)? { Ok((*u.choose(&PIECES)?).to_owned()) } else { text(u, 40) }
    };
    Ok(several(u, 14, piece)?.concat())
}

fn message(u: &mut Unstructured<'_>) -> Result<Value> {
    let mut fields = Map::new();
    let role = u.choose(&["system", "user", "assistant", "tool", ""])?;
    fields.insert("role".to_owned(), json!(role));
    if u.ratio(7, 8)? {
        fields.insert("content".to_owned(), json!(text(u, 60)?));
    }
    if let Some(arguments) = perhaps(u, |u| text(u, 30))? {
        let call = json!([{"type": "function", "function": {"name": "f", "arguments": arguments}}]);
        fields.insert("tool_calls".to_owned(), call);
    }
    Ok(Value::Object(fields))
}

fn check(u: &mut Unstructured<'_>) -> Result<()> {
    let templates = [("default".to_owned(), source(u)?)];
    let tokens = [("bos_token".to_owned(), "<s>".to_owned())];
    let Ok(template) = ChatTemplate::new(&templates, &tokens) else { return Ok(()) };
    let tool = |u: &mut Unstructured<'_>| Ok(json!({"name": text(u, 20)?}));
    let request = ChatRequest {
        messages: several(u, 6, message)?,
        tools: several(u, 2, tool)?,
        add_generation_prompt: u.arbitrary()?,
        // The clock must not tick between the two renderings.
        now: Some(std::time::UNIX_EPOCH),
        ..ChatRequest::default()
    };
    let plain = template.render(&request);
    let marked = template.render_marked(&request);
    match (plain, marked) {
        (Ok(plain), Ok(marked)) => {
            assert_eq!(plain, marked.text);
            for &boundary in &marked.boundaries {
                assert!(plain.is_char_boundary(boundary), "{boundary} of {plain:?}");
            }
            assert!(marked.boundaries.is_sorted(), "{:?}", marked.boundaries);
        }
        (Err(plain), Err(marked)) => assert_eq!(plain, marked),
        (plain, marked) => panic!("{plain:?} and {marked:?}"),
    }
    let _ = template.reads_tools(&request);
    Ok(())
}
