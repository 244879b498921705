//! Template values as JSON text in the layout of Python's `json.dumps`, byte for byte, because
//! models have learned that layout.

use std::fmt::Write as _;

use minijinja::Value;
use minijinja::value::ValueKind;

/// Deepest nesting that is written.
const MAX_DEPTH: usize = 128;

/// The parameters of `json.dumps`.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) indent: Option<usize>,
    pub(super) item_separator: String,
    pub(super) key_separator: String,
    pub(super) ensure_ascii: bool,
    pub(super) sort_keys: bool,
}

impl Layout {
    /// Python's defaults: with an indent, lines end without a space.
    pub(super) fn python(indent: Option<usize>) -> Self {
        Self {
            indent,
            item_separator: if indent.is_some() { "," } else { ", " }.to_owned(),
            key_separator: ": ".to_owned(),
            ensure_ascii: false,
            sort_keys: false,
        }
    }
}

/// The JSON text of `value`.
pub(super) fn write(value: &Value, layout: &Layout) -> Result<String, String> {
    let mut writer = Writer { layout, text: String::new() };
    writer.value(value, 0)?;
    Ok(writer.text)
}

struct Writer<'a> {
    layout: &'a Layout,
    text: String,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), String> {
        if depth > MAX_DEPTH {
            return Err(format!("tojson: the value is nested deeper than {MAX_DEPTH}"));
        }
        match value.kind() {
            ValueKind::None => self.text.push_str("null"),
            ValueKind::Bool => self.text.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.number(value)?,
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => self.list(value, depth)?,
            ValueKind::Map => self.map(value, depth)?,
            other => return Err(format!("tojson: a value of kind {other} has no JSON form")),
        }
        Ok(())
    }

    fn number(&mut self, value: &Value) -> Result<(), String> {
        if value.is_integer() {
            let _ = write!(self.text, "{value}");
            return Ok(());
        }
        let number = f64::try_from(value.clone()).map_err(|e| format!("tojson: {e}"))?;
        self.text.push_str(&python_float(number));
        Ok(())
    }

    fn string(&mut self, text: &str) {
        self.text.push('"');
        for c in text.chars() {
            match c {
                '"' => self.text.push_str("\\\""),
                '\\' => self.text.push_str("\\\\"),
                '\n' => self.text.push_str("\\n"),
                '\r' => self.text.push_str("\\r"),
                '\t' => self.text.push_str("\\t"),
                '\u{8}' => self.text.push_str("\\b"),
                '\u{c}' => self.text.push_str("\\f"),
                c if c < ' ' || (self.layout.ensure_ascii && c > '~') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(self.text, "\\u{unit:04x}");
                    }
                }
                c => self.text.push(c),
            }
        }
        self.text.push('"');
    }

    fn list(&mut self, value: &Value, depth: usize) -> Result<(), String> {
        self.text.push('[');
        let mut first = true;
        for item in value.try_iter().map_err(|e| format!("tojson: {e}"))? {
            self.before_item(first, depth + 1);
            self.value(&item, depth + 1)?;
            first = false;
        }
        self.close(first, depth, ']');
        Ok(())
    }

    fn map(&mut self, value: &Value, depth: usize) -> Result<(), String> {
        let mut keys: Vec<Value> = value.try_iter().map_err(|e| format!("tojson: {e}"))?.collect();
        if self.layout.sort_keys {
            keys.sort();
        }
        self.text.push('{');
        for (index, key) in keys.iter().enumerate() {
            self.before_item(index == 0, depth + 1);
            match key.as_str() {
                Some(text) => self.string(text),
                None => self.string(&write(key, self.layout)?),
            }
            self.text.push_str(&self.layout.key_separator);
            let item = value.get_item(key).map_err(|e| format!("tojson: {e}"))?;
            self.value(&item, depth + 1)?;
        }
        self.close(keys.is_empty(), depth, '}');
        Ok(())
    }

    fn before_item(&mut self, first: bool, depth: usize) {
        if !first {
            self.text.push_str(&self.layout.item_separator);
        }
        self.line(depth);
    }

    fn close(&mut self, empty: bool, depth: usize, bracket: char) {
        if !empty {
            self.line(depth);
        }
        self.text.push(bracket);
    }

    fn line(&mut self, depth: usize) {
        if let Some(width) = self.layout.indent {
            self.text.push('\n');
            self.text.push_str(&" ".repeat(width * depth));
        }
    }
}

/// A float as Python's `repr` writes it: the shortest digits that give the same number, with an
/// exponent below 1e-4 and from 1e16 on.
fn python_float(number: f64) -> String {
    if number.is_nan() {
        return "NaN".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').expect("the format has an exponent");
    let exponent: i32 = exponent.parse().expect("an exponent is an integer");
    if number != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = format!("{number}");
    if plain.contains('.') { plain } else { format!("{plain}.0") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_python_writes_them() {
        let cases = [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (-2.5, "-2.5"),
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.234e300, "1.234e+300"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Infinity"),
        ];
        for (number, expected) in cases {
            assert_eq!(python_float(number), expected);
        }
    }

    #[test]
    fn strings_escape_only_what_json_must() {
        let layout = Layout::python(None);
        let text = write(&Value::from("<a href='x'>\u{e9}\u{1f600}\u{7f}\u{1}\n\"\\"), &layout);
        assert_eq!(text.unwrap(), "\"<a href='x'>\u{e9}\u{1f600}\u{7f}\\u0001\\n\\\"\\\\\"");
        let layout = Layout { ensure_ascii: true, ..layout };
        assert_eq!(
            write(&Value::from("\u{1f600}\u{7f}"), &layout).unwrap(),
            r#""\ud83d\ude00\u007f""#
        );
    }
}
