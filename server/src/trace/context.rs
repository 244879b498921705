//! A caller's trace context: the `traceparent` and `tracestate` headers of W3C Trace Context,
//! <https://www.w3.org/TR/trace-context/>.

use std::fmt::Write as _;

use http::HeaderMap;

/// Longest `tracestate` that is passed on, in bytes; the specification asks for at least as much.
const STATE_BYTES_MAX: usize = 512;

/// Whose span a request continues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    /// Not all zero.
    pub trace: [u8; 16],
    /// The caller's span, not all zero.
    pub parent: [u8; 8],
    /// Whether the caller keeps its spans.
    pub sampled: bool,
    /// What tracing systems pass along, unread.
    pub state: String,
}

impl TraceContext {
    /// That of a request, if it has one. As the specification asks, one that is malformed is no
    /// error: the request has none.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut parents = headers.get_all("traceparent").iter();
        let context = parse(parents.next()?.to_str().ok()?)?;
        if parents.next().is_some() {
            return None;
        }
        let states: Option<Vec<&str>> =
            headers.get_all("tracestate").iter().map(|state| state.to_str().ok()).collect();
        let mut state = states.unwrap_or_default().join(",");
        if state.len() > STATE_BYTES_MAX {
            state.clear();
        }
        Some(Self { state, ..context })
    }

    /// The trace as 32 hexadecimal digits.
    pub fn trace_id(&self) -> String {
        self.trace.iter().fold(String::with_capacity(32), |mut text, byte| {
            // Writing to text does not fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

/// Reads `version-trace-parent-flags`. A later version may have more behind the flags.
fn parse(text: &str) -> Option<TraceContext> {
    let mut parts = text.splitn(5, '-');
    let [version] = bytes::<1>(parts.next()?)?;
    let (trace, parent) = (bytes(parts.next()?)?, bytes(parts.next()?)?);
    let [flags] = bytes::<1>(parts.next()?)?;
    let more = parts.next().is_some();
    let valid = version != 0xff && !(version == 0 && more) && trace != [0; 16] && parent != [0; 8];
    let sampled = flags & 1 == 1;
    valid.then_some(TraceContext { trace, parent, sampled, state: String::new() })
}

/// `N` bytes as lower-case hexadecimal digits.
fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn headers(entries: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in entries {
            headers.append(*name, value.parse().expect("a header value"));
        }
        headers
    }

    #[test]
    fn a_context_is_read_with_its_state() {
        let all = headers(&[("traceparent", PARENT), ("tracestate", "a=1"), ("tracestate", "b=2")]);
        let context = TraceContext::of(&all).expect("is valid");
        assert_eq!(context.trace_id(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(context.parent, [0xb7, 0xad, 0x6b, 0x71, 0x69, 0x20, 0x33, 0x31]);
        assert!(context.sampled);
        assert_eq!(context.state, "a=1,b=2");
        let long = "x".repeat(STATE_BYTES_MAX + 1);
        let all = headers(&[("traceparent", PARENT), ("tracestate", &long)]);
        assert_eq!(TraceContext::of(&all).expect("is valid").state, "");
    }

    #[test]
    fn what_is_malformed_is_no_context() {
        for text in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333\u{e9}-01",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
        let later = PARENT.replacen("00", "01", 1) + "-more";
        assert!(parse(&later).is_some(), "a later version may say more");
        let not_kept = format!("{}-02", PARENT.trim_end_matches("-01"));
        assert!(!parse(&not_kept).expect("is valid").sampled);
        let twice = headers(&[("traceparent", PARENT), ("traceparent", PARENT)]);
        assert_eq!(TraceContext::of(&twice), None);
    }
}
