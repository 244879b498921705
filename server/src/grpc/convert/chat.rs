//! Conversations: wire messages to the JSON that chat templates see.

use prost_types::value::Kind;
use sconce_proto::v1::{ChatMessage, ChatPrompt, ToolCall};
use serde_json::{Map, Value, json};

use crate::completion::ChatCall;
use crate::error::CallError;

/// Variables of every template that `template_kwargs` must not replace.
const RESERVED: &[&str] = &["messages", "tools", "documents", "add_generation_prompt"];

/// Largest integer that a JSON number on the wire (a double) holds exactly.
const EXACT_INTEGER_MAX: f64 = 9_007_199_254_740_992.0;

/// Checks a conversation; `field` is its path in the request.
pub fn chat(prompt: ChatPrompt, field: &str) -> Result<ChatCall, CallError> {
    if prompt.messages.is_empty() {
        let problem = "expected at least one message, found none";
        return Err(CallError::field(format!("{field}.messages"), problem));
    }
    let messages = prompt.messages.into_iter().enumerate();
    let messages = messages
        .map(|(i, message)| self::message(message, &format!("{field}.messages[{i}]")))
        .collect::<Result<_, _>>()?;
    let tools = prompt.tools.iter().enumerate();
    let tools = tools
        .map(|(i, tool)| object(tool, &format!("{field}.tools[{i}]")))
        .collect::<Result<_, _>>()?;
    let mut kwargs = Map::new();
    for (name, value) in prompt.template_kwargs.unwrap_or_default().fields {
        let field = format!("{field}.template_kwargs.{name}");
        if RESERVED.contains(&name.as_str()) {
            let problem = "expected another name, for the server sets this variable itself";
            return Err(CallError::field(field, problem));
        }
        kwargs.insert(name, json_value(value, &field)?);
    }
    let add_generation_prompt = prompt.add_generation_prompt.unwrap_or(true);
    Ok(ChatCall { messages, tools, kwargs, add_generation_prompt })
}

fn message(message: ChatMessage, field: &str) -> Result<Value, CallError> {
    if message.role.is_empty() {
        return Err(CallError::field(format!("{field}.role"), "expected a role, found none"));
    }
    let mut object = Map::new();
    object.insert("role".into(), message.role.into());
    let texts = [
        ("content", message.content),
        ("name", message.name),
        ("reasoning_content", message.reasoning_content),
        ("tool_call_id", message.tool_call_id),
    ];
    for (key, text) in texts {
        object.extend(text.map(|text| (key.to_owned(), text.into())));
    }
    if !message.tool_calls.is_empty() {
        let calls = message.tool_calls.into_iter().enumerate();
        let calls: Vec<_> = calls
            .map(|(i, call)| tool_call(call, &format!("{field}.tool_calls[{i}]")))
            .collect::<Result<_, _>>()?;
        object.insert("tool_calls".into(), calls.into());
    }
    Ok(object.into())
}

fn tool_call(call: ToolCall, field: &str) -> Result<Value, CallError> {
    if call.name.is_empty() {
        return Err(CallError::field(format!("{field}.name"), "expected a name, found none"));
    }
    let arguments = object(&call.arguments, &format!("{field}.arguments"))?;
    let mut object = Map::new();
    object.extend(call.id.map(|id| ("id".to_owned(), id.into())));
    object.insert("type".into(), "function".into());
    object.insert("function".into(), json!({ "name": call.name, "arguments": arguments }));
    Ok(object.into())
}

/// Parses the text of a JSON object.
fn object(text: &str, field: &str) -> Result<Value, CallError> {
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(object.into()),
        Ok(_) => Err(CallError::field(field, "expected a JSON object, found another JSON value")),
        Err(error) => {
            Err(CallError::field(field, format!("expected a JSON object as text: {error}")))
        }
    }
}

fn json_value(value: prost_types::Value, field: &str) -> Result<Value, CallError> {
    Ok(match value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(value)) => value.into(),
        Some(Kind::StringValue(value)) => value.into(),
        Some(Kind::NumberValue(value)) if !value.is_finite() => {
            let problem = format!("expected a finite number, found {value}");
            return Err(CallError::field(field, problem));
        }
        // Templates print `4`, not `4.0`, for what was written as `4`.
        Some(Kind::NumberValue(value))
            if value.fract() == 0.0 && value.abs() <= EXACT_INTEGER_MAX =>
        {
            (value as i64).into()
        }
        Some(Kind::NumberValue(value)) => value.into(),
        Some(Kind::StructValue(value)) => {
            let fields = value.fields.into_iter();
            fields
                .map(|(key, value)| Ok((key, json_value(value, field)?)))
                .collect::<Result<Map<_, _>, CallError>>()?
                .into()
        }
        Some(Kind::ListValue(value)) => {
            let values = value.values.into_iter();
            let values: Vec<_> =
                values.map(|value| json_value(value, field)).collect::<Result<_, _>>()?;
            values.into()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(content: &str) -> ChatMessage {
        let content = Some(content.to_owned());
        ChatMessage { role: "user".into(), content, ..ChatMessage::default() }
    }

    fn field_of(prompt: ChatPrompt) -> String {
        match chat(prompt, "chat") {
            Err(CallError::InvalidField { field, .. }) => field,
            other => panic!("expected an invalid field, found {other:?}"),
        }
    }

    #[test]
    fn a_message_has_the_fields_that_were_set_and_no_others() {
        let prompt = ChatPrompt { messages: vec![user("hi")], ..ChatPrompt::default() };
        let call = chat(prompt, "chat").expect("valid");
        assert_eq!(call.messages, [json!({"role": "user", "content": "hi"})]);
        assert!(call.add_generation_prompt);
    }

    #[test]
    fn tool_calls_take_the_form_templates_expect() {
        let call = ToolCall {
            id: Some("c1".into()),
            name: "f".into(),
            arguments: r#"{"b": 1, "a": 2}"#.into(),
        };
        let message = ChatMessage { tool_calls: vec![call], ..user("") };
        let prompt = ChatPrompt { messages: vec![message], ..ChatPrompt::default() };
        let call = chat(prompt, "chat").expect("valid");
        assert_eq!(
            call.messages[0]["tool_calls"].to_string(),
            r#"[{"id":"c1","type":"function","function":{"name":"f","arguments":{"b":1,"a":2}}}]"#
        );
    }

    #[test]
    fn whole_numbers_of_template_kwargs_stay_whole() {
        let number = |n| prost_types::Value { kind: Some(Kind::NumberValue(n)) };
        let fields = [("whole".to_owned(), number(4.0)), ("half".to_owned(), number(0.5))];
        let kwargs = prost_types::Struct { fields: fields.into() };
        let prompt = ChatPrompt {
            messages: vec![user("hi")],
            template_kwargs: Some(kwargs),
            ..ChatPrompt::default()
        };
        let call = chat(prompt, "chat").expect("valid");
        assert_eq!(call.kwargs["whole"].to_string(), "4");
        assert_eq!(call.kwargs["half"].to_string(), "0.5");
    }

    #[test]
    fn refusals_name_the_place() {
        assert_eq!(field_of(ChatPrompt::default()), "chat.messages");
        let nobody = ChatMessage::default();
        let prompt = ChatPrompt { messages: vec![user("a"), nobody], ..ChatPrompt::default() };
        assert_eq!(field_of(prompt), "chat.messages[1].role");
        let tools = vec!["{}".into(), "[]".into()];
        let prompt = ChatPrompt { messages: vec![user("a")], tools, ..ChatPrompt::default() };
        assert_eq!(field_of(prompt), "chat.tools[1]");
        let fields = [("messages".to_owned(), prost_types::Value { kind: None })].into();
        let template_kwargs = Some(prost_types::Struct { fields });
        let prompt =
            ChatPrompt { messages: vec![user("a")], template_kwargs, ..ChatPrompt::default() };
        assert_eq!(field_of(prompt), "chat.template_kwargs.messages");
    }
}
