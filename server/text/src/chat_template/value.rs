//! JSON values as template values. Order of keys is kept, as in Python.

use serde_json::Value as Json;

/// The template value of a JSON value.
pub(super) fn from_json(json: &Json) -> minijinja::Value {
    match json {
        Json::Null => minijinja::Value::from(()),
        Json::Bool(value) => (*value).into(),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(value), _) => value.into(),
            (None, Some(value)) => value.into(),
            (None, None) => number.as_f64().unwrap_or(f64::NAN).into(),
        },
        Json::String(value) => value.as_str().into(),
        Json::Array(values) => values.iter().map(from_json).collect(),
        Json::Object(entries) => minijinja::Value::from_pairs(
            entries.iter().map(|(key, value)| (key.clone(), from_json(value))),
        ),
    }
}
