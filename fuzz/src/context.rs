//! `traceparent` and `tracestate` against the grammar of W3C Trace Context: a context is taken as it
//! stands, or there is none.

use http::{HeaderMap, HeaderValue};
use sconce_server::trace::TraceContext;

/// Between the values that an input is cut into; no header has it.
const CUT: u8 = b'\n';

/// Longest `tracestate` that is passed on.
const STATE_BYTES_MAX: usize = 512;

pub(crate) fn run(bytes: &[u8]) {
    let mut headers = HeaderMap::new();
    for (index, value) in bytes.split(|byte| *byte == CUT).enumerate() {
        let Ok(value) = HeaderValue::from_bytes(value) else { return };
        let name = if index == 0 { "traceparent" } else { "tracestate" };
        headers.append(name, value);
    }
    let parent = headers.get("traceparent").and_then(|value| value.to_str().ok());
    let found = TraceContext::of(&headers);
    assert_eq!(found.is_some(), parent.is_some_and(is_parent), "{parent:?}: {found:?}");
    let Some(found) = found else { return };
    let parent = parent.expect("it was taken");
    assert_eq!(found.trace_id(), parent[3..35]);
    let span: String = found.parent.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(span, parent[36..52]);
    let flags = u8::from_str_radix(&parent[53..55], 16).expect("digits");
    assert_eq!(found.sampled, flags & 1 == 1);
    assert!(found.state.len() <= STATE_BYTES_MAX, "{}", found.state.len());
    let states: Vec<_> = headers.get_all("tracestate").iter().map(HeaderValue::as_bytes).collect();
    let joined = states.join(&b',');
    assert!(found.state.is_empty() || found.state.as_bytes() == joined, "{found:?}");
}

/// The grammar, by hand: four fields of lower-case digits, of which a later version may have more.
fn is_parent(text: &str) -> bool {
    let digits = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let (fixed, more) = match text.split_at_checked(55) {
        Some(parts) => parts,
        None => return false,
    };
    let fields: Vec<&str> = fixed.split('-').collect();
    let [version, trace, parent, flags] = fields[..] else { return false };
    let lengths = [version.len(), trace.len(), parent.len(), flags.len()] == [2, 32, 16, 2];
    let zero = |text: &str| text.bytes().all(|byte| byte == b'0');
    let rest = more.is_empty() || (version != "00" && more.starts_with('-'));
    lengths
        && fields.iter().all(|field| digits(field))
        && version != "ff"
        && !zero(trace)
        && !zero(parent)
        && rest
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let texts = [
        String::new(),
        PARENT.to_owned(),
        format!("{PARENT}-more"),
        format!("{}-more", PARENT.replacen("00", "cc", 1)),
        format!("{PARENT}\na=1\nb=2,c=3"),
        format!("{PARENT}\n{}", "x".repeat(STATE_BYTES_MAX + 1)),
        PARENT.to_uppercase(),
        PARENT.replacen("00", "ff", 1),
        PARENT.replace("b7ad6b7169203331", "0000000000000000"),
    ];
    texts.into_iter().map(String::into_bytes).collect()
}
