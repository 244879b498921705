//! The functions and filters that transformers adds to Jinja2 for chat templates.

use std::time::SystemTime;

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, Value};

use super::json::{self, Layout};
use super::strftime;

/// Widest indentation that `tojson` accepts.
const MAX_INDENT: usize = 64;

/// `raise_exception(message)`: the template refuses the conversation.
pub(super) fn raise_exception(message: &str) -> Result<String, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.to_owned()))
}

/// `strftime_now(format)`: the time of the request.
pub(super) fn strftime_now(now: SystemTime) -> Value {
    Value::from_function(move |format: &str| {
        strftime::format_utc(now, format).map_err(|e| Error::new(ErrorKind::InvalidOperation, e))
    })
}

/// `tojson(ensure_ascii, indent, separators, sort_keys)`: as Python's `json.dumps`, but with
/// `ensure_ascii` false unless asked for. Nothing is escaped for HTML.
pub(super) fn tojson(
    value: &Value,
    indent: Option<usize>,
    options: Kwargs,
) -> Result<String, Error> {
    let refuse = |message: String| Error::new(ErrorKind::InvalidOperation, message);
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get::<Option<usize>>("indent")?,
    };
    if let Some(width) = indent.filter(|&width| width > MAX_INDENT) {
        return Err(refuse(format!("tojson: indent is {width}, at most {MAX_INDENT} is allowed")));
    }
    let mut layout = Layout::python(indent);
    layout.ensure_ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    layout.sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    if let Some(separators) = options.get::<Option<Vec<String>>>("separators")? {
        let [item, key] = <[String; 2]>::try_from(separators)
            .map_err(|_| refuse("tojson: separators must be two strings".to_owned()))?;
        (layout.item_separator, layout.key_separator) = (item, key);
    }
    options.assert_all_used()?;
    json::write(value, &layout).map_err(refuse)
}
